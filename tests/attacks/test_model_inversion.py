"""Model inversion: the losses, how a victim is asked, and that it comes to see the class."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from release_views import attacked, natural, view_of
from torch import Tensor

from ppbench.attacks._asking import Victim, margin, poincare, transformed
from ppbench.attacks._straight import straight_through
from ppbench.attacks.gan_inversion import GanInversion
from ppbench.attacks.model_inversion import ModelInversion, confidence
from ppbench.codec import to_bytes8
from ppbench.data import Images
from ppbench.defense import PerImageDefense, resize
from ppbench.errors import NotApplicable, UserError
from ppbench.lessons import Lesson, Same
from ppbench.model import Model
from ppbench.plugins import build
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.victim import accuracy, teach
from ppbench.view import View

SHAPE = (3, 16, 16)
QUICK = ModelInversion(steps=3, bank=12, candidates=2, checks=2, prior_steps=2)


def white_box(name: str = "none", params: dict[str, object] | None = None, scope: str | None = None,
              model: Model | None = None, labels: Tensor | None = None) -> View:
    """A view of four targets, without the release."""
    private, public = natural(4, SHAPE, 1), natural(24, SHAPE, 2)
    view = view_of(private if labels is None else replace(private, labels=labels), public, name, params, scope)
    granted = frozenset({"labels", "public", "algorithm", "model"})
    return View(replace(view.sealed, granted=granted, release=None, target_rows=None, model=model or fresh()))


def fresh(channels: int = 3) -> Model:
    model = Model("ppbench.nets:convnet", {"num_classes": 2, "in_chans": channels, "width": 4})
    with seeded(0):
        return model.with_state(model.build())


# --- losses ----------------------------------------------------------------------------------------------------

def test_the_poincare_distance_is_that_of_the_ball() -> None:
    """Against the formula, in double precision: d = arcosh(1 + 2 |u - v|^2 / ((1 - |u|^2) (1 - |v|^2)))."""
    logits = torch.tensor([[3.0, -1.0, 1.0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    found = poincare(logits, torch.tensor([0, 1]))
    u, v = [0.6, -0.2, 0.2], [0.9999, 0.0, 0.0]
    apart = sum((a - b)**2 for a, b in zip(u, v, strict=True))
    expected = math.acosh(1 + 2 * apart / ((1 - sum(a * a for a in u)) * (1 - 0.9999**2)))
    assert float(found[0]) == pytest.approx(expected, abs=1e-3)
    assert found[1] > poincare(logits[1:].flip(1), torch.tensor([2]))[0]


@pytest.mark.parametrize("loss", [poincare, margin])
def test_losses_fall_towards_the_class_and_keep_a_gradient(loss: Any) -> None:
    labels = torch.tensor([2])
    values = [float(loss(torch.tensor([[0.0, 1.0, strength]]), labels)) for strength in (0.0, 1.0, 5.0, 50.0)]
    assert values == sorted(values, reverse=True)
    logits = torch.tensor([[1.0, 0.0, 30.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(loss(logits, labels).sum(), logits)
    assert slope.isfinite().all()
    assert float(slope[0, 2]) < 0 < float(slope[0, 0])


def test_the_margin_is_that_to_the_next_class() -> None:
    assert margin(torch.tensor([[1.0, 4.0, 2.5]]), torch.tensor([2])).tolist() == [1.5]


# --- asking ----------------------------------------------------------------------------------------------------

def test_a_cut_of_the_whole_image_is_the_image_or_its_mirror() -> None:
    images = torch.rand(20, 3, 8, 12, generator=generator(0))
    found = transformed(images, 1.0, generator(1))
    kept = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(found, images, strict=True)])
    turned = torch.tensor([torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(found, images, strict=True)])
    assert (kept ^ turned).all()
    assert kept.any()
    assert turned.any()


@pytest.mark.parametrize("axis", [2, 3])
def test_cuts_lie_inside_and_differ(axis: int) -> None:
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(200, 1, 64, 64)
    found = transformed(ramp.transpose(3, axis), 0.5, generator(1)).transpose(3, axis)[:, 0, 32]
    steps = found.diff(dim=1)  # where a cut reached outside, the border would stand still
    assert torch.allclose(steps, steps[:, 31:32].expand_as(steps), atol=0.3)
    assert float(steps.abs().amin()) > 0.2
    span = (found[:, 0] - found[:, 63]).abs()
    assert 0.48 * 64 < float(span.min()) < 0.6 * 64
    assert float(span.max()) > 0.9 * 64
    assert len(found[:, 0].unique()) > 100


def test_a_victim_is_asked_as_clients_ask() -> None:
    view = white_box("pixelate", {"block": 4})
    images = natural(3, SHAPE, 5).pixels
    sent = view.algorithm.defense.query(images, None, generator(0))
    expected = view.model.build().eval()(to_bytes8(sent))
    assert torch.allclose(Victim.of(view, generator(0)).logits(images, generator(1)), expected, atol=1e-6)


def test_keys_are_drawn_anew() -> None:
    view = white_box("patch-shuffle", {"patch": 4}, "image")
    images, victim = natural(3, SHAPE, 5).pixels, Victim.of(view, generator(0))
    first, again, other = (victim.logits(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("preset", ["vit-cipher", "etc", "le", "ele", "pe"])
def test_every_cipher_is_passed_with_a_derivative(preset: str) -> None:
    """Those that cut values into nibbles round: their own derivative is 0 everywhere."""
    view = white_box("block-scrambling", {"block": 4, "preset": preset}, "global")
    victim = Victim.of(view, generator(0))
    assert victim.leads == (preset not in ("le", "ele"))
    images = natural(2, SHAPE, 5).pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(victim.logits(images, generator(0))[:, 0].sum(), images)
    assert (slope.abs().flatten(1).sum(1) > 0).all()


@dataclass(frozen=True)
class Coarse(PerImageDefense):
    """Half as large, in four steps of brightness: without a derivative."""

    def encrypt(self, images: Tensor, key: dict[str, Tensor], rng: torch.Generator) -> Tensor:
        return (images[..., ::2, ::2] * 3).round() / 3


@pytest.mark.parametrize("detached", [False, True])
def test_straight_through_a_defense_without_derivative(detached: bool) -> None:
    images = torch.rand(2, *SHAPE, generator=generator(0)).requires_grad_()
    released = Coarse().encrypt(images.detach() if detached else images, {}, generator(0))
    found = straight_through(released, images, 8, leads=False)
    assert torch.allclose(found, (released * 255).round() / 255, atol=1e-6)
    weights = torch.rand(found.shape, generator=generator(1))
    (slope,) = torch.autograd.grad((found * weights).sum(), images)
    (expected,) = torch.autograd.grad((resize(images, (3, 8, 8)) * weights).sum(), images)
    assert torch.allclose(slope, expected)
    assert not straight_through(released, images.detach(), 0).requires_grad


def test_guesses_that_would_be_mixed_are_not_asked() -> None:
    with pytest.raises(NotApplicable, match="mix several images"):
        Victim.of(white_box("instahide"), generator(0))
    assert Victim.of(white_box("instahide", {"queries": "plain"}), generator(0)).leads


def test_victims_that_tell_nothing_are_not_asked() -> None:
    broken = fresh()
    assert broken.state is not None
    next(iter(broken.state.values())).view(-1)[0] = math.nan
    with pytest.raises(NotApplicable, match="not finite"):
        Victim.of(white_box(model=broken), generator(0))
    with pytest.raises(NotApplicable, match="one class"):
        Victim.of(View(replace(white_box().sealed, classes=1)), generator(0))


# --- the attack ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "params", "scope"), [
    ("none", {}, None), ("mixup", {"patch": 4}, None), ("pixelate", {"block": 4}, None),
    ("patch-shuffle", {"patch": 4}, "image"), ("block-scrambling", {"block": 4, "preset": "le"}, "global"),
    ("bn-synthesis", {"steps": 1, "teacher_epochs": 1}, None)])
@pytest.mark.parametrize("loss", ["poincare", "margin"])
def test_any_defense(name: str, params: dict[str, object], scope: str | None, loss: Any) -> None:
    view = white_box(name, params, scope)
    found = attacked(replace(QUICK, loss=loss), view)
    assert found.aligned
    assert found.objective is not None
    assert found.objective.shape == (4, 4)


def test_targets_of_a_class_share_an_estimate_and_others_do_not() -> None:
    found = attacked(QUICK, white_box(labels=torch.tensor([1, 0, 1, 1]))).images
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])


def test_the_result_depends_on_the_generator_alone() -> None:
    view = white_box("patch-shuffle", {"patch": 4}, "image")
    torch.manual_seed(1)
    first = attacked(QUICK, view).images
    torch.manual_seed(2)
    assert torch.equal(first, attacked(QUICK, view).images)


@pytest.mark.parametrize("public", [1, 2, 9])
def test_few_public_images(public: int) -> None:
    view = white_box()
    attacked(QUICK, View(replace(view.sealed, public=view.public[:public])))


def test_the_generator_is_that_of_gan_inversion() -> None:
    view = white_box()
    (prior,) = ModelInversion(prior_steps=7).priors(view).values()
    assert prior == GanInversion(prior_steps=7).priors(view)["generator"]


@pytest.mark.parametrize("params", [{"steps": 0}, {"bank": 0}, {"candidates": 0}, {"checks": 0}, {"rate": 0.0},
                                    {"pull": -1.0}, {"prior_steps": 0}, {"loss": "hinge"}])
def test_senseless_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"must|hinge"):
        build(Ref("attacks", "model-inversion", params))


def spots(count: int, seed: int, classes: int) -> Images:
    """Grey clouds with a bright spot whose place tells the class."""
    clouds = natural(count, SHAPE, seed)
    labels = torch.arange(count) % classes
    pixels = 0.4 * clouds.pixels + 0.2
    for row, label in enumerate(labels.tolist()):
        top, left = (10, 2) if label else (2, 10)
        pixels[row, :, top: top + 4, left: left + 4] = 1
    return Images(pixels, labels, torch.arange(count))


def test_it_finds_what_tells_the_classes_apart() -> None:
    """The public images have a spot as well, of no known class: the victim's weights say which belongs where."""
    private, public = spots(64, 1, 2), spots(120, 2, 2)
    model = Model("ppbench.nets:convnet", {"num_classes": 2, "in_chans": 3, "width": 8})
    with seeded(0):
        model = model.with_state(model.build())
    how = Recipe(steps=60, batch=16, learning_rate=3e-3)
    model, _ = teach(model, Same(Lesson(private.pixels, private.labels)), how, generator(0))
    assert accuracy(model, private.pixels, private.labels) > 0.95
    view = white_box(model=model, labels=torch.tensor([0, 1, 0, 1]))
    unknown = replace(public, labels=torch.zeros_like(public.labels))
    view = View(replace(view.sealed, public=unknown))
    result = attacked(ModelInversion(steps=20, bank=60, candidates=3, checks=4, prior_steps=150), view)
    found = result.images
    brightness = torch.stack([found[:2, :, 2:6, 10:14].mean((1, 2, 3)), found[:2, :, 10:14, 2:6].mean((1, 2, 3))])
    assert float(brightness[0, 0]) > float(brightness[1, 0]) + 0.1
    assert float(brightness[1, 1]) > float(brightness[0, 1]) + 0.1
    sure = confidence(Victim.of(view, generator(0)), found[:2], 8, 0.9, generator(3))
    assert float(sure.diagonal().min()) > 0.8
    assert result.objective is not None
    assert (result.objective[-1] < result.objective[0] - 1).all()  # descent finds more than the choice of starts

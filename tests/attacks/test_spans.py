"""What convolutions' gradients tell of their inputs, and a search that begins there."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import REAL
from gradient_views import attacked, decibels, run
from release_views import cifar
from torch import Tensor, nn
from torch.nn.functional import unfold

from ppbench.attacks import _gradient_match
from ppbench.attacks._gradient_problem import Client, Problem
from ppbench.attacks._spans import DIRECTIONS, Span, _highest, _looked_at, spans_of
from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.codec import Tensors
from ppbench.metrics import ssim
from ppbench.model import Model
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.updates import client_update, prepare
from ppbench.view import Algorithm, Sealed, View

WEIGHTS = REAL / "weights/cifar10_resnet/resnet20-12fca82f.th"


def drawn(channels: int, out: int, **kwargs: Any) -> nn.Conv2d:
    with seeded(0):
        return nn.Conv2d(channels, out, **kwargs).double()


def gradients(net: nn.Module, images: Tensor, live: int | None = None) -> Tensors:
    """Return the gradients of each image on its own; only the first `live` channels of the first output matter."""
    rows: list[Tensors] = []
    for image in images.split(1):
        net.zero_grad()
        found = net(image)[:, :live]
        (found * torch.randn(found.shape, generator=generator(1)).to(found)).sum().backward()
        rows.append({name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def first(net: nn.Module, images: Tensor, live: int | None = None) -> Span:
    (span,) = spans_of(net, gradients(net, images, live), images[:1])
    return span


@pytest.mark.parametrize(("kwargs", "side"), [
    ({"kernel_size": 3, "padding": 1}, 6), ({"kernel_size": 3, "padding": 1, "stride": 2}, 9),
    ({"kernel_size": 5}, 8)], ids=str)
def test_the_highest_direction_is_the_input_itself(kwargs: dict[str, Any], side: int) -> None:
    images = torch.rand(2, 9, side, side, generator=generator(0)).double()
    net = nn.Sequential(drawn(9, 40, **kwargs))
    span = first(net, images)
    assert span.layer == "0"
    for image, directions in zip(images, span.directions, strict=True):
        best = directions[:, directions.square().sum(0).argmax()] / span.covered
        alike = torch.cosine_similarity(best, image.flatten(), 0).abs()
        assert alike > 1 - 1e-6
    assert (span.inside(images) > 0.9999).all()
    assert (span.inside(images.flip(0)) < 0.9).all()  # the other one's


@pytest.mark.parametrize(("kwargs", "step"), [({"stride": 2}, 2), ({"dilation": 2, "padding": 2}, 0)], ids=str)
def test_an_input_may_be_shifted_away_from_where_zeros_lie_beside_it(kwargs: dict[str, Any], step: int) -> None:
    images = torch.rand(1, 9, 6, 6, generator=generator(0)).double()
    span = first(nn.Sequential(drawn(9, 40, **{"kernel_size": 3, "padding": 1, **kwargs})), images)
    down = torch.zeros_like(images)
    down[:, :, step:] = images[:, :, : 6 - step]
    assert float(span.inside(images)) > 0.9999
    assert float(span.inside(down)) > 0.9999
    assert float(span.inside(down.flip(2))) < 0.9


def test_the_weight_of_a_direction_is_what_of_its_patches_lies_in_the_span() -> None:
    """By torch's own unfolding: an input's patches, projected."""
    images = torch.rand(1, 9, 6, 6, generator=generator(0)).double()
    net = nn.Sequential(drawn(9, 40, kernel_size=3, padding=1))
    span, rows = first(net, images), gradients(net, images)["0.weight"][0].flatten(1)
    basis = torch.linalg.svd(rows, full_matrices=False)[2][:36]
    assert span.directions.shape == (1, 9 * 36, DIRECTIONS)
    for direction in span.directions[0].T[-5:]:
        patches = unfold((direction / span.covered).view(1, 9, 6, 6), 3, padding=1)[0].T
        outside = (patches - patches @ basis.T @ basis).square().sum() / patches.square().sum()
        assert float(direction.square().sum()) == pytest.approx(float(2e-3 / (outside + 2e-3)), rel=1e-3)


def test_a_few_dead_channels_blur_it_and_many_end_it() -> None:
    images = torch.rand(1, 9, 6, 6, generator=generator(0)).double()
    net = nn.Sequential(drawn(9, 36, kernel_size=3, padding=1))
    whole, fewer = (float(first(net, images, live).inside(images)) for live in (None, 35))
    assert 0.3 < fewer < whole
    assert spans_of(net, gradients(net, images, 30), images) == ()


@pytest.mark.parametrize("net", [
    nn.Sequential(drawn(9, 30, kernel_size=3, padding=1)),  # fewer channels than places
    nn.Sequential(drawn(3, 40, kernel_size=3, padding=1)),  # patches of 27 values: 36 of them span everything
    nn.Sequential(drawn(9, 72, kernel_size=3, padding=1, groups=3)),
    nn.Sequential(drawn(9, 40, kernel_size=3, padding=1, padding_mode="reflect")),
    nn.Sequential(drawn(9, 40, kernel_size=(3, 5), padding=1)),
    nn.Sequential(drawn(9, 40, kernel_size=2, stride=2)),  # patches lie side by side
    nn.Sequential(nn.Flatten(2), nn.Linear(36, 40).double()),
], ids=["narrow", "small", "groups", "reflect", "oblong", "apart", "linear"])
def test_layers_that_tell_nothing_are_left_out(net: nn.Sequential) -> None:
    channels = 3 if isinstance(net[0], nn.Conv2d) and net[0].in_channels == 3 else 9
    images = torch.rand(1, channels, 6, 6, generator=generator(0)).double()
    assert spans_of(net, gradients(net, images), images) == ()


def test_a_layer_that_is_used_twice_is_left_out() -> None:
    layer = drawn(9, 9, kernel_size=3, padding=1)
    images = torch.rand(1, 9, 3, 3, generator=generator(0)).double()
    assert list(_looked_at(nn.Sequential(layer), images)) == ["0"]
    assert _looked_at(nn.Sequential(layer, layer), images) == {}


def test_an_image_without_a_gradient_is_told_nothing_and_spoils_no_other() -> None:
    images = torch.rand(2, 9, 6, 6, generator=generator(0)).double()
    net = nn.Sequential(drawn(9, 40, kernel_size=3, padding=1))
    given = gradients(net, images)
    given["0.weight"][1] = 0
    (span,) = spans_of(net, given, images[:1])
    inside = span.inside(images)
    assert inside[0] > 0.9999
    assert inside[1] == 0


def test_noise_is_not_taken_for_patches() -> None:
    images = torch.rand(1, 9, 6, 6, generator=generator(0)).double()
    net = nn.Sequential(drawn(9, 40, kernel_size=3, padding=1))
    given = gradients(net, images)
    rows = given["0.weight"]
    given["0.weight"] = rows + 1e-3 * rows.std() * torch.randn(rows.shape, generator=generator(2)).double()
    assert spans_of(net, given, images) == ()


def test_the_highest_eigenvectors_are_those_of_torch() -> None:
    turned = torch.linalg.qr(torch.randn(60, 60, generator=generator(0)).double())[0]
    true = torch.cat([torch.linspace(0, 0.9, 50), torch.tensor([1 - 10.0**-power for power in range(2, 12)])]).double()
    values, vectors = _highest(turned @ torch.diag(true) @ turned.T, 8)
    assert values == pytest.approx(true[-8:], abs=1e-6)
    assert torch.allclose((turned[:, -8:].T @ vectors).square().sum(0), torch.ones(8).double(), atol=1e-6)


# --- the attack

RESNET = Recipe("ppbench.nets:cifar_resnet", {"depth": 8})  # 64 channels on 4 x 4 places
BRIEF = GradientMatching(steps=1, rehearsals=0, closed_form=False, spectrum="always", spans=100)


def test_a_search_that_begins_within_the_spans_begins_nearer() -> None:
    view, truth = attacked(RESNET, batch=1)
    found, other = run(BRIEF, view), run(replace(BRIEF, spans=0), view)
    assert "from the spans of activations" in found.note
    assert "spans" not in other.note
    assert decibels(found.images, truth).mean() > decibels(other.images, truth).mean() + 2
    assert (decibels(found.images, truth) > decibels(other.images, truth)).all()


def test_several_starts_are_not_drawn_where_spans_tell_one() -> None:
    view, _ = attacked(RESNET, batch=1, targets=1)
    assert "1 start(s)" in run(BRIEF, view).note
    assert "3 start(s)" in run(replace(BRIEF, restarts=3), view).note


def test_parts_of_the_targets_are_looked_for_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    view, _ = attacked(RESNET, batch=1, targets=3)
    few = replace(BRIEF, spans=8)  # more, and roundings would part
    whole = run(few, view).images
    monkeypatch.setattr(_gradient_match, "SPANS_AT_ONCE", 2)
    assert torch.allclose(run(few, view).images, whole, atol=0.01)


def test_labels_may_be_optimised_afterwards() -> None:
    view, _ = attacked(RESNET, batch=1, targets=1)
    assert "from the spans" in run(replace(BRIEF, labels="optimised", steps=2), view).note


@pytest.mark.parametrize("how", [{"batch": 2}, {"local_steps": 2}, {"bn_train": True}, {"defense": "gradient-pruning"},
                                 {"defense": "gradient-noise"}], ids=str)
def test_of_sums_and_of_what_a_defense_changed_nothing_is_read(how: dict[str, Any]) -> None:
    view, _ = attacked(RESNET, **{"batch": 1, **how})
    assert "spans" not in run(BRIEF, view).note


@pytest.mark.parametrize("spoilt", [0.0, 1.0])
def test_much_noise_on_as_many_channels_as_places_is_known_by_the_last_layer(spoilt: float) -> None:
    """Nothing is left over of such a gradient in which noise would show; with little of it, spans are believed less."""
    view, _ = attacked(Recipe("ppbench.nets:convnet", {"width": 4}), batch=1, targets=1, spoilt=spoilt)
    assert ("spans" in run(BRIEF, view).note) is (spoilt == 0)


def test_the_distance_is_the_share_beside_the_spans_and_the_features_are_the_last_layers() -> None:
    view, truth = attacked(RESNET, batch=1, targets=2)
    net = view.model.build()
    prepare(net, False)
    given = view.update.values
    spans = spans_of(net, given, truth[:1])
    assert [span.layer for span in spans] == ["net.layer3.0.conv1", "net.layer3.0.conv2"]
    problem = Problem(net, given, torch.zeros(2, 1, dtype=torch.int64), Client(1), spans=spans)
    found = problem.explainer()(truth[:, None], problem.labels)
    seen: list[Tensor] = []
    hooks = [dict(net.named_modules())[name].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
             for name in (*(span.layer for span in spans), "net.linear")]
    net(truth)
    for hook in hooks:
        hook.remove()
    inside = torch.stack([span.inside(x) for span, x in zip(spans, seen, strict=False)]).mean(0)
    torch.testing.assert_close(found.cosine(), 1 - inside, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.features, seen[-1][:, None])
    second = problem[torch.tensor([1])].explainer()(truth[1:, None], problem.labels[1:])
    torch.testing.assert_close(second.cosine(), 1 - inside[1:], atol=1e-5, rtol=0)
    swapped = problem.explainer()(truth.flip(0)[:, None], problem.labels)
    assert (swapped.cosine() > found.cosine()).all()


@pytest.mark.real
@pytest.mark.slow
def test_a_trained_resnet_gives_its_images_away() -> None:
    """Which a search from the public mean hardly does in many times the steps."""
    if not WEIGHTS.is_file():
        pytest.skip("no PPBENCH_DATA with weights/cifar10_resnet")
    state = torch.load(WEIGHTS, "cpu", weights_only=True)["state_dict"]
    model = Model(RESNET.model, {"depth": 20},
                  {name.replace("module.", "net.", 1): value for name, value in state.items()})
    private, public = cifar(2, 400)
    labels = model.build().eval()(private.pixels).argmax(1)  # as it is right of nine images out of ten
    update = client_update(model, private.pixels, labels, batch=1, local_steps=1, learning_rate=0.1,
                           bn_train=False)
    shape, granted = (3, 32, 32), frozenset({"model", "gradients", "public", "algorithm"})
    view = View(Sealed(granted, shape, shape, 2, 10, public=public, model=model, update=update,
                       algorithm=Algorithm(Ref("defenses", "none", {}), None, 0)))
    found = run(GradientMatching(steps=10, spans=80, rehearsals=0), view)
    assert float(ssim(found.images, private.pixels).mean()) > 0.4

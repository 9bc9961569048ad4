from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gradient_views import CONV, MLP, QUICK, SHAPE, VIT, attacked, decibels, run, smooth
from torch import nn

from ppbench.attacks import _rehearsal
from ppbench.attacks._gradient_match import Matched, Scene
from ppbench.attacks._gradient_settings import PRESETS, Settings
from ppbench.attacks._rehearsal import GAIN, _believed, _staged, fitted, likeness, rehearse, ways
from ppbench.attacks._released import like_released
from ppbench.attacks._spectrum import spectrum_of
from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.blocks import cut, join
from ppbench.data import Images
from ppbench.defense import PerImageDefense
from ppbench.model import Update
from ppbench.recipe import Recipe
from ppbench.seeding import generator
from ppbench.updates import client_update, prepare
from ppbench.view import View

LENET = Recipe("ppbench.nets:lenet")
RELU = Recipe("ppbench.nets:deep_convnet", {"width": 4})


def scene(view: View) -> Scene:
    net = view.model.build()
    prepare(net, view.update.bn_train)
    return Scene(view, net, like_released(view, generator(1)), generator(2))


def settings(**params: object) -> Settings:
    return replace(PRESETS["ppbench"], steps=4, **params)  # type: ignore[arg-type]


def test_what_estimates_have_right_is_kept_and_noise_is_taken_out_as_a_wiener_filter_does() -> None:
    truth = smooth(200, 3).pixels
    spectrum = spectrum_of(truth)
    exact = fitted(spectrum, truth, truth)
    torch.testing.assert_close(exact.shares, torch.ones(SHAPE))
    torch.testing.assert_close(exact(truth), truth, atol=1e-4, rtol=0)
    noise = 0.2 * torch.randn(truth.shape, generator=generator(4))
    noisy = fitted(spectrum, truth + noise, truth)
    shown = spectrum.coefficients(truth - spectrum.mean).square().mean(0)
    assert noisy.shares[0, 0, 0] == pytest.approx(float(shown[0, 0, 0] / (shown[0, 0, 0] + 0.04)), abs=0.1)
    assert noisy.shares[:, -4:, -4:].max() < 0.1
    assert (noisy(truth + noise) - truth).square().mean() < noise.square().mean() / 3


def test_of_what_tells_nothing_the_public_mean_is_left() -> None:
    truth = smooth(100, 3).pixels
    spectrum = spectrum_of(truth)
    found = fitted(spectrum, truth.flip(0), truth)(truth.flip(0))
    assert decibels(found, truth).mean() > decibels(spectrum.mean.expand_as(truth), truth).mean() - 0.2


def test_of_pieces_in_the_wrong_places_no_more_is_believed_than_looks_like_the_originals() -> None:
    """Their colours bring estimates closer to the originals, and make them look less like them."""
    truth = smooth(64, 3).pixels
    spectrum = spectrum_of(truth)
    order = torch.randperm(16, generator=generator(5))
    moved = join(cut(truth, 4)[:, order], SHAPE)
    mean = likeness(spectrum.mean.expand_as(truth), truth).mean()
    belief, value = _believed(spectrum, moved, truth)
    assert belief is not None
    assert value == pytest.approx(float(likeness(belief(moved).clamp(0, 1), truth).mean()))
    assert likeness(moved, truth).mean() < mean
    assert value > mean - GAIN
    assert _believed(spectrum, truth, truth) == (None, 1.0)


def test_searches_that_a_network_leaves_open_are_tried() -> None:
    untrained = [("adam", "never"), ("adam", "always")]
    for recipe, expected in ((RELU, untrained), (LENET, [*untrained, ("l-bfgs", "never")])):
        view, _ = attacked(recipe, batch=2)
        if recipe is LENET:
            assert any(isinstance(one, nn.Sigmoid) for one in scene(view).net.modules())
        assert [(one.optimiser, one.spectrum) for one in ways(settings(), scene(view))] == expected
        assert [one.optimiser for one in ways(settings(optimiser="adam"), scene(view))] == ["adam", "adam"]
        assert [one.optimiser for one in ways(settings(optimiser="l-bfgs"), scene(view))] == ["l-bfgs"]
        assert [one.spectrum for one in ways(settings(optimiser="adam", spectrum="trained"), scene(view))] == ["never"]


def test_of_a_smooth_network_the_better_search_is_chosen() -> None:
    view, true = attacked(LENET, batch=1, targets=4)
    found = run(GradientMatching(steps=60), view)
    plain = run(GradientMatching(steps=60, rehearsals=0), view)
    assert "best of 3 on 8 public images" in found.note
    assert decibels(found.images, true).mean() > decibels(plain.images, true).mean() + 1


def test_an_estimate_of_noise_does_not_fall_below_the_mean() -> None:
    view, true = attacked(CONV, "gradient-noise", batch=2, targets=8, clip=0.01, noise=3.0)
    mean = view.public.pixels.mean(0).expand_as(true)
    found = {count: decibels(run(replace(QUICK, steps=60, rehearsals=count), view).images, true).mean()
             for count in (0, 16)}
    assert found[16] > found[0] + 0.3
    assert found[16] > decibels(mean, true).mean() - 0.3


@pytest.mark.parametrize("given", [{"rehearsals": 0}, {"rehearsals": 1000}])
def test_without_images_to_rehearse_on_the_first_way_is_taken(given: dict[str, int]) -> None:
    view, _ = attacked(CONV)
    way = rehearse(settings(**given), scene(view))
    assert (way.shrinkage, way.note, way.settings.optimiser) == (None, "", "adam")
    assert "best of" not in run(replace(QUICK, **given), view).note


@pytest.mark.parametrize(("recipe", "spoilt"), [(VIT, 0.0), (MLP, 0.0), (VIT, 0.01)])
def test_what_algebra_explains_is_not_rehearsed(recipe: Recipe, spoilt: float) -> None:
    view, _ = attacked(recipe, batch=1, spoilt=spoilt)
    assert "best of" not in run(replace(QUICK, rehearsals=2), view).note


@pytest.mark.parametrize(("defense", "params"), [("none", {}), ("mixup", {}), ("gradient-pruning", {"share": 0.5}),
                                                  ("block-scrambling", {}), ("secure-aggregation", {"cohort": 2})])
def test_the_clients_protocol_is_run_on_the_servers_own_images(defense: str, params: dict[str, float]) -> None:
    view, _ = attacked(CONV, defense, batch=2, targets=4, **params)
    here = scene(view)
    assert isinstance(view.algorithm.defense, PerImageDefense) or defense == "mixup"
    sent, released, labels = _staged(view.public[:4], here)
    assert released.shape == (4, *view.released_shape)
    assert {name: value.shape for name, value in sent.values.items()} == \
        {name: value.shape for name, value in view.update.values.items()}
    assert (sent.batch, sent.clients, sent.bn_train) == (2, view.update.clients, view.update.bn_train)
    again = client_update(view.model, released, labels, batch=2, local_steps=1, learning_rate=0.02, bn_train=False)
    expected = view.algorithm.defense.protect_update(again, generator(0))
    if defense != "mixup":  # which learns shares of classes
        torch.testing.assert_close(sent.values, expected.values)


def staged_and_found(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], None]) -> list[Settings]:
    """Let searches find what a rehearsal staged, spoilt; return which were made."""
    staged: list[torch.Tensor] = []
    made: list[Settings] = []

    def stage(images: Images, here: Scene) -> tuple[Update, torch.Tensor, torch.Tensor]:
        sent = _staged(images, here)
        staged.append(sent[1])
        return sent

    def recovered(problem: object, how: Settings, *_: object) -> Matched:
        made.append(how)
        found = staged[-1].clone()
        spoil(found)
        return Matched(found[:, None], torch.zeros(2, len(found)), "")

    monkeypatch.setattr(_rehearsal, "_staged", stage)
    monkeypatch.setattr(_rehearsal, "recovered", recovered)
    return made


def test_a_search_that_finds_everything_is_the_last_to_be_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    view, _ = attacked(LENET, batch=1)
    noise = iter((0.02, 0.0))
    made = staged_and_found(monkeypatch, lambda found: found.add_(
        next(noise) * torch.randn(found.shape, generator=generator(1))))
    way = rehearse(settings(), scene(view))
    assert [(one.optimiser, one.spectrum) for one in made] == [("l-bfgs", "never"), ("adam", "always")]
    assert way.settings == made[1]
    assert way.note == "adam in the spectrum: finds 8 public images"


@pytest.mark.parametrize(("wrong", "shrunk"), [(2, False), (8, True)])
def test_a_few_failures_do_not_shrink_what_is_right(monkeypatch: pytest.MonkeyPatch, wrong: int, shrunk: bool) -> None:
    """In a batch, two images of a class may come back mixed, and the others exactly."""
    view, _ = attacked(CONV, batch=1)
    staged_and_found(monkeypatch, lambda found: found[:wrong].add_(
        0.5 * torch.randn(found[:wrong].shape, generator=generator(1))))
    assert (rehearse(settings(), scene(view)).shrinkage is not None) == shrunk

"""Lessons: first estimates of images that no map has learnt from, under keys of one's own."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from release_views import attacked, cifar, natural, view_of
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ppbench.attacks import _lessons, _ridge
from ppbench.attacks._lessons import FORGOTTEN, Lesson, fixed, lesson, protected_anew, rehearsal, rehearsed
from ppbench.attacks._linear_map import LinearMap, from_pairs
from ppbench.attacks._pairs import ENOUGH, halves, held_out, learnt, telling_pairs
from ppbench.attacks._simulate import ANYONE, Simulated, simulate
from ppbench.attacks.linear import Linear
from ppbench.attacks.unet_inverter import UnetInverter
from ppbench.attacks.vit_inverter import VitInverter
from ppbench.data import Images
from ppbench.metrics import ssim
from ppbench.seeding import generator
from ppbench.view import View

SHAPE = (3, 16, 16)
PRIVATE, PUBLIC = natural(16, SHAPE, 0), natural(160, SHAPE, 1)


def keyed(pairs: int) -> View:
    return view_of(PRIVATE, PUBLIC, "block-scrambling", {"block": 4}, "global", pairs=pairs)


def known(view: View) -> tuple[Simulated, Simulated]:
    pairs = telling_pairs(view, ANYONE)
    assert pairs is not None
    return halves(pairs)


def lessons(pairs: int, steps: int = 12, batch: int = 8) -> tuple[LinearMap, list[Lesson]]:
    view = keyed(pairs)
    base = from_pairs(None, *known(view))
    found: Iterator[Lesson] = rehearsed(view, base, pairs, batch, steps, generator(3))
    return base, list(found)


@pytest.mark.parametrize("pairs", [4, 5, 40, 160])
def test_as_many_minibatches_as_asked_for(pairs: int) -> None:
    _, found = lessons(pairs)
    assert len(found) == 12
    assert all(len(some) == 8 and some.first.shape == some.pairs.plain.shape for some in found)


def test_images_that_decide_are_never_shown() -> None:
    shown = {image.numpy().tobytes() for some in lessons(40)[1] for image in _both(some.pairs.plain)}
    assert shown.isdisjoint({image.numpy().tobytes() for image in _both(PUBLIC.pixels[held_out(160)])})


def test_estimates_are_of_images_that_were_not_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[set[bytes]] = []
    again = LinearMap.again

    def watched(self: LinearMap, some: Simulated, held: Simulated) -> LinearMap:
        learnt.append({image.numpy().tobytes() for image in some.plain})
        return again(self, some, held)

    monkeypatch.setattr(LinearMap, "again", watched)
    view = keyed(40)
    base = from_pairs(None, *known(view))
    for some in rehearsed(view, base, 40, 8, 12, generator(3)):
        assert learnt[-1].isdisjoint({image.numpy().tobytes() for image in some.pairs.plain})
    assert len(learnt) == rehearsal(base, 40, 120, 8, 12, SHAPE).keys > 0


def test_errors_are_as_large_as_those_under_the_key_that_is_attacked() -> None:
    base, found = lessons(40, steps=40)
    error = float(torch.cat([some.first - some.pairs.plain for some in found]).square().mean())
    some, held = known(keyed(40))
    assert error == pytest.approx(base.error(held), rel=0.35)
    assert base.error(some) < 0.5 * error  # its own pairs would tell another tale


def test_one_key_a_rehearsal_where_every_client_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(view: View, *rest: Any) -> Simulated:
        seen.append((view.algorithm.key_scope, view.algorithm.clients))
        return simulate(view, *rest)

    monkeypatch.setattr(_lessons, "simulate", watched)
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {"block": 4}, "client", pairs=80, clients=2)
    pairs = telling_pairs(view, 0)
    assert pairs is not None
    list(rehearsed(view, from_pairs(None, *halves(pairs)), len(pairs), 8, 6, generator(3)))
    assert set(seen) == {("global", 1)}


def test_labels_are_withheld_now_and_then() -> None:
    view = keyed(160)
    some = known(view)[0]
    told = Simulated(some.plain, some.released, torch.ones(len(some), dtype=torch.int64))
    found = list(fixed(lesson(from_pairs(None, *known(view)), told), 40, 30, generator(0)))
    labels = torch.cat([one.pairs.labels for one in found])
    assert set(labels.unique().tolist()) == {-1, 1}
    assert abs(float((labels == -1).float().mean()) - FORGOTTEN) < 0.05


def test_a_plan_fits_what_is_there() -> None:
    base = from_pairs(None, *known(keyed(40)))
    few = rehearsal(base, 4, 3, 8, 100, SHAPE)
    assert (few.some, few.held, few.aside) == (2, 1, 0)
    half = rehearsal(base, 40, 1000, 32, 400, SHAPE)
    assert (half.some, half.held, half.aside) == (30, 10, _lessons.ASIDE)
    whole = rehearsal(base, 4000, 3000, 32, 400, SHAPE)
    assert whole.some + whole.held + whole.aside <= 3000
    assert whole.some < 3000
    keys = [rehearsal(base, 40, 1000, 32, steps, SHAPE).keys for steps in (1, 10, 100, 1000)]
    assert keys[0] == 1
    assert all(fewer < more for fewer, more in pairwise(keys[1:]))


def test_costly_maps_are_learnt_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    base = from_pairs(None, *known(keyed(40)))
    before = rehearsal(base, 40, 1000, 32, 1000, SHAPE).keys
    monkeypatch.setattr(_lessons, "EFFORT", 1)
    assert rehearsal(base, 40, 1000, 32, 1000, SHAPE).keys == 1 < before


@pytest.mark.real
@pytest.mark.slow
def test_a_network_adds_to_the_linear_map_of_few_pairs() -> None:
    """40 pairs tell little of a permutation of 768 values: the linear map leaves noise, and a network takes some."""
    private, public = (replace(images, pixels=avg_pool2d(images.pixels, 2)) for images in cifar(16, 300))
    view = view_of(private, public, "block-scrambling", {"block": 4}, "global", pairs=40)
    attacks = (Linear(), UnetInverter(steps=10, width=16), VitInverter(steps=40, width=32, depth=1))
    linear, unet, vit = (float(ssim(attacked(one, view).images, private.pixels).mean()) for one in attacks)
    assert min(unet, vit) > linear + 0.015


def _both(images: Tensor) -> Tensor:
    return torch.cat([images, images.flip(3)])


@pytest.mark.parametrize(("count", "held"), [(1, 1), (2, 1), (5, 2), (4 * ENOUGH, ENOUGH), (10_000, 1112),
                                             (50_000, 1042)])
def test_every_image_is_learnt_from_or_held_out_and_no_more_are_than_decide(count: int, held: int) -> None:
    one, other = learnt(count).tolist(), held_out(count).tolist()
    assert len(other) == held
    assert sorted({*one, *other}) == list(range(count))
    assert not set(one) & set(other) or count == 1


@pytest.mark.parametrize(("name", "params", "scope", "turned"), [
    ("mixup", {"patch": 4}, None, True), ("block-scrambling", {"block": 4}, "image", False)])
def test_images_are_turned_upside_down_where_the_defense_turns_with_them(name: str, params: dict[str, Any],
                                                                         scope: Any, turned: bool) -> None:
    """Brightness falls from above to below in every image, unless it was turned."""
    slope = torch.linspace(0.9, 0.1, 16).view(1, 1, 16, 1).expand(32, 3, 16, 16).contiguous()
    view = view_of(PRIVATE, Images(slope, PUBLIC.labels[:32], PUBLIC.ids[:32]), name, params, scope)
    pairs = simulate(view, PUBLIC[torch.arange(8)], generator(0))
    base = LinearMap(_ridge.fit(pairs.released, pairs.plain, pairs.released, pairs.plain), None)
    found = next(protected_anew(view, base, view.public, 32, 1, generator(0)))
    rising = (found.pairs.plain[:, :, 12:].mean((1, 2, 3)) > found.pairs.plain[:, :, :4].mean((1, 2, 3))).sum()
    assert 6 < rising < 26 if turned else rising == 0

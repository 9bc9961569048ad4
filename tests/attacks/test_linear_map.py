"""Linear maps of every regime: their form, what they read, and that they are found again under another key."""

from functools import cache

import pytest
import torch
from release_views import natural, view_of
from torch import Tensor

from ppbench.attacks._linear_map import LinearMap, from_own_keys, from_pairs, with_own_keys
from ppbench.attacks._pairs import halves, telling_pairs, with_one_key
from ppbench.attacks._simulate import ANYONE, Simulated, simulate
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.seeding import generator
from ppbench.view import View

SHAPE = (3, 16, 16)
PRIVATE, PUBLIC = natural(6, SHAPE, 0), natural(80, SHAPE, 1)


def keyed(pairs: int = 40) -> View:
    return view_of(PRIVATE, PUBLIC, "block-scrambling", {"block": 4}, "global", pairs=pairs)


def known(view: View) -> tuple[Simulated, Simulated]:
    pairs = telling_pairs(view, ANYONE)
    assert pairs is not None
    return halves(pairs)


def own(view: View) -> LinearMap:
    return from_own_keys(view, *with_own_keys(view, 2, generator(0)))


@cache
def forms() -> dict[str, LinearMap]:
    """A map of own keys, one of pairs, and both."""
    view = keyed()
    first, alone = own(view), from_pairs(None, *known(view))
    return {"own": first, "known": alone, "both": LinearMap(first.own, alone.known, first.block)}


@pytest.mark.parametrize("form", ["own", "known", "both"])
def test_a_map_is_rebuilt_from_its_tensors(form: str) -> None:
    found = forms()[form]
    again = LinearMap.from_tensors(found.as_tensors())
    released = keyed().images
    assert torch.equal(again.apply(released, SHAPE), found.apply(released, SHAPE))
    assert [again.own is None, again.known is None] == [found.own is None, found.known is None]
    assert again.block == found.block
    assert again.note == found.note
    assert torch.equal(again.mean, found.mean)


def test_what_own_keys_teach_reads_no_order_where_it_is_random() -> None:
    found, images = forms()["own"], PUBLIC.pixels[:5]
    shuffled = join(permute_rows(cut(images, 4), permutations(5, 16, generator(0))), SHAPE)
    assert found.block == 4
    assert torch.allclose(found.apply(images, SHAPE), found.apply(shuffled, SHAPE), atol=1e-5)


def test_what_pairs_teach_reads_the_order() -> None:
    found, images = forms()["known"], PUBLIC.pixels[:5]
    shuffled = join(permute_rows(cut(images, 4), permutations(5, 16, generator(0))), SHAPE)
    assert not torch.allclose(found.apply(images, SHAPE), found.apply(shuffled, SHAPE), atol=1e-2)


def test_pairs_correct_what_own_keys_teach() -> None:
    """The second part sees what the first leaves over: together they are the sum, clamped."""
    some, held = known(keyed())
    first = forms()["own"]
    best = from_pairs(first, some, held)
    assert best.error(held) <= min(first.error(held), from_pairs(None, some, held).error(held))
    assert first.own is not None
    both = forms()["both"].again(some, held)
    assert both.own is not None
    assert torch.equal(both.own["mean"], first.own["mean"])
    assert both.error(held) < first.error(held)


def test_the_same_form_is_found_again_under_another_key() -> None:
    found = forms()["known"]
    view = with_one_key(keyed())
    rehearsed = simulate(view, PUBLIC, generator(9))
    some, held, others = (rehearsed[rows] for rows in torch.arange(80).split([30, 10, 40]))
    again = found.again(some, held)
    assert again.as_tensors().keys() == found.as_tensors().keys()
    mean = float((others.plain - some.plain.mean(0)).square().mean())
    assert again.error(others) < 0.6 * mean
    assert found.error(others) > again.error(others)  # its key is another one


def test_one_key_serves_all_images_of_a_call_and_no_other() -> None:
    view = with_one_key(view_of(PRIVATE, PUBLIC, "patch-shuffle", {"patch": 4}, "client", clients=2))
    assert view.algorithm.key_scope == "global"
    first, second = (simulate(view, PUBLIC, generator(seed)) for seed in (1, 2))
    assert len(orders(first)) == len(orders(second)) == 1
    assert orders(first) != orders(second)


def orders(pairs: Simulated) -> set[tuple[int, ...]]:
    """Where each released block comes from, image by image."""
    distance = torch.cdist(_blocks(pairs.released), _blocks(pairs.plain))
    return {tuple(row) for row in distance.argmin(2).tolist()}


def _blocks(images: Tensor) -> Tensor:
    return cut(images, 4).flatten(2)

"""Signatures: what a release tells of an image, whatever the key."""

from typing import Any

import pytest
import torch
from gan_views import CIPHERS, NONE, smooth
from torch import Tensor

from ppbench.attacks._latent_signature import AsReleased, Blocks, Signature, Simulated, choose, distances, invariant
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.data import Images
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm


def released(ref: Ref, images: Images, seed: int = 7) -> Tensor:
    defense = build(ref)
    scope = defense.key_scopes[0] if defense.key_scopes else None
    return Algorithm(ref, scope, 8).protect(images, generator(seed)).images


@pytest.mark.parametrize(("ref", "expected"), [
    (NONE, Simulated), (Ref("defenses", "mixup"), Simulated), (Ref("defenses", "constant"), Simulated),
    (CIPHERS[0], Blocks(4, True, "kept", "none")), (CIPHERS[1], Blocks(4, True, "all", "none"))])
def test_the_signature_chosen_holds_under_any_key(ref: Ref, expected: Any) -> None:
    images = smooth(5, (3, 16, 16))
    scope = next(iter(build(ref).key_scopes), None)
    seen = released(ref, images)
    signature = choose(Algorithm(ref, scope, 8), smooth(8, (3, 16, 16), 2), tuple(seen.shape[1:]), generator(3))
    assert signature == expected or (isinstance(expected, type) and isinstance(signature, expected))
    for seed in (7, 8):
        own = distances(signature.of_plain(images.pixels), signature.of_released(released(ref, images, seed)))
        assert own.max() < 1e-5
    if ref.name != "constant":
        other = distances(signature.of_plain(images.pixels), signature.of_released(seen.roll(1, 0)))
        assert other.min() > 1e-4


def scrambled(images: Tensor, moved: bool, pixels: str, negated: str, rng: torch.Generator) -> Tensor:
    """A cipher written out on its own: blocks of 4 px moved, pixels shuffled, values negated."""
    blocks = cut(images, 4)
    n, count, c, s, _ = blocks.shape
    if moved:
        blocks = permute_rows(blocks, permutations(n, count, rng))
    flat = blocks.flatten(3)
    if pixels == "in channels":
        order = permutations(n * count, s * s, rng).reshape(n, count, 1, s * s).expand_as(flat)
        flat = flat.gather(3, order)
    elif pixels == "all":
        order = permutations(n * count, c * s * s, rng).reshape(n, count, -1)
        flat = flat.flatten(2).gather(2, order).reshape(flat.shape)
    if negated == "block":
        flat = torch.where(torch.rand(n, count, 1, 1, generator=rng) < 0.5, flat, 1 - flat)
    elif negated == "value":
        flat = torch.where(torch.rand(flat.shape, generator=rng) < 0.5, flat, 1 - flat)
    return join(flat.reshape(blocks.shape), (c, images.shape[2], images.shape[3]))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("pixels", "order"), [("kept", "kept"), ("in channels", "by channel"), ("all", "all")])
@pytest.mark.parametrize(("negated", "fold"), [("never", "none"), ("block", "block"), ("value", "value")])
def test_signatures_undo_what_they_say_and_nothing_less(moved: bool, pixels: str, order: Any, negated: str,
                                                        fold: Any) -> None:
    images = torch.rand(4, 3, 16, 16, generator=generator(0))
    seen = scrambled(images, moved, pixels, negated, generator(1))
    assert invariant(Blocks(4, moved, order, fold), images, seen)
    if moved:
        assert not invariant(Blocks(4, False, order, fold), images, seen)
    if order != "kept":
        assert not invariant(Blocks(4, moved, "kept", fold), images, seen)
    if fold != "none":
        assert not invariant(Blocks(4, moved, order, "none"), images, seen)


@pytest.mark.parametrize("signature", [
    AsReleased((3, 8, 8)), Simulated(build(Ref("defenses", "mixup")), 8), Blocks(4, True, "kept", "none"),
    Blocks(4, True, "all", "block"), Blocks(0, False, "by channel", "value"), Blocks(1, True, "kept", "none")])
def test_signatures_have_derivatives(signature: Signature) -> None:
    images = torch.rand(2, 3, 16, 16, generator=generator(0), requires_grad=True)
    signature.of_plain(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_a_set_of_blocks_tells_different_sets_apart_by_how_far_they_lie() -> None:
    images = torch.rand(1, 3, 16, 16, generator=generator(0))
    signature = Blocks(4, True, "kept", "none")
    steps = [distances(signature.of_plain(images), signature.of_plain(images * (1 - d))) for d in (0.0, 0.1, 0.2, 0.4)]
    assert steps[0] == 0
    assert steps[1] < steps[2] < steps[3]


def test_a_defense_without_derivative_is_searched_straight_through() -> None:
    images = torch.rand(2, 3, 16, 16, generator=generator(0), requires_grad=True)
    signature = Simulated(build(Ref("defenses", "constant")), 8)
    wanted = signature.of_released(torch.full((2, 3, 16, 16), 128 / 255))
    distance = distances(signature.of_plain(images), wanted)
    assert torch.equal(distance, torch.zeros(2))  # also the 8-bit rounding is foreseen: nothing to be gained
    distance.sum().backward()
    assert images.grad is not None
    assert not images.grad.any()

"""The inverters' networks: moved blocks, patches, and released images of any shape."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from inverter_views import QUICK, both, network, smooth

from ppbench.attacks._inverter import InverterAttack, Problem
from ppbench.attacks._inverter_vit import MAX_TOKENS, VitCodec, patch_side
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.data import Shape
from ppbench.defense import Pieces
from ppbench.seeding import generator


@pytest.mark.parametrize("pixels", ["kept", "shared"])
def test_the_order_of_moved_blocks_does_not_matter(pixels: Any) -> None:
    images = smooth(5, (3, 16, 16)).pixels
    shuffled = join(permute_rows(cut(images, 4), permutations(5, 16, generator(0))), (3, 16, 16))
    base, labels = torch.rand(5, 3, 16, 16, generator=generator(1)), torch.zeros(5, dtype=torch.int64)
    free = Problem((3, 16, 16), (3, 16, 16), 2, Pieces(4, moved=True, pixels=pixels), free=True)
    net = network(QUICK[0], free)
    assert torch.allclose(net(images, base, labels), net(shuffled, base, labels), atol=1e-5)
    told = network(QUICK[0], replace(free, free=False))
    assert not torch.allclose(told(images, base, labels), told(shuffled, base, labels), atol=1e-3)


def test_only_whole_blocks_of_the_same_place_and_shape_are_copied() -> None:
    def copies(pieces: Pieces | None, released: Shape = (3, 16, 16)) -> bool:
        return VitCodec(Problem((3, 16, 16), released, 2, pieces, free=False), 16, 1).copies

    assert copies(Pieces(4, moved=True))
    assert not copies(Pieces(4, moved=True, pixels="own"))
    assert not copies(Pieces(4, moved=False))
    assert not copies(None)
    assert not copies(Pieces(4, moved=True), (3, 8, 8))


@pytest.mark.parametrize(("image", "size", "side"), [((3, 32, 32), 4, 4), ((3, 32, 32), 1, 2), ((3, 224, 224), 16, 16),
                                                     ((3, 224, 224), 8, 16), ((1, 112, 64), None, 8)])
def test_patches_are_blocks_or_groups_of_them(image: Shape, size: int | None, side: int) -> None:
    problem = Problem(image, image, 2, None if size is None else Pieces(size, moved=True), free=True)
    assert patch_side(problem) == side
    assert (image[1] // side) * (image[2] // side) <= MAX_TOKENS


@both
@pytest.mark.parametrize("released", [(3, 8, 8), (1, 16, 16), (4, 5, 7), (3, 40, 20), (3, 1, 1)], ids=str)
def test_released_images_of_any_shape_are_read(attack: InverterAttack, released: Shape) -> None:
    problem = Problem((3, 16, 12), released, 2, None, free=False)
    net = network(attack, problem)
    base, labels = torch.rand(2, 3, 16, 12, generator=generator(1)), torch.tensor([-1, 1])
    first, second = (net(torch.rand(2, *released, generator=generator(k)), base, labels) for k in (2, 3))
    assert first.shape == (2, 3, 16, 12)
    assert not torch.allclose(first, second, atol=1e-5)

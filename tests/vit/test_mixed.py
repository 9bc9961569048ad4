import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_helpers import images8, logits, vit

from ppbench.data import Shape
from ppbench.defenses.mixup import Mixup
from ppbench.model import Model
from ppbench.seeding import generator
from ppbench.vit.mixed import for_mixtures, mixed_kernel
from ppbench.vit.shape import vit_shape


@settings(deadline=None)
@given(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.sampled_from([2, 4, 6]),
       st.integers(0, 2**32))
def test_the_kernel_agrees_with_loops(channels: int, blocks: tuple[int, int], patch: int, seed: int) -> None:
    kernel = torch.randn(2, channels, blocks[0] * patch, blocks[1] * patch, generator=generator(seed),
                         dtype=torch.float64)
    expected, half = torch.zeros(2, channels, blocks[0] * patch // 2, blocks[1] * patch // 2).double(), patch // 2
    for y in range(kernel.shape[2]):
        for x in range(kernel.shape[3]):
            expected[..., y // patch * half + y % half, x // patch * half + x % half] += kernel[..., y, x]
    torch.testing.assert_close(mixed_kernel(kernel, patch), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("shape", "side", "patch"), [((3, 16, 16), 4, 4), ((1, 8, 24), 8, 4), ((3, 32, 32), 8, 8)])
def test_where_the_sub_patches_are_equal_nothing_is_lost(shape: Shape, side: int, patch: int) -> None:
    """Given weights then compute of the mixtures what they computed of the plain images."""
    plain = vit(shape, patch_size=side)
    seen = vit_shape(plain)
    assert seen is not None
    half, rows, columns = patch // 2, shape[1] // patch, shape[2] // patch
    quarters = images8(3, (shape[0], rows * half, columns * half)).double()
    tiles = quarters.reshape(3, shape[0], rows, 1, half, columns, 1, half).expand(-1, -1, -1, 2, -1, -1, 2, -1)
    images = tiles.reshape(3, *shape)
    mixed = Mixup(patch).encrypt(images, {}, generator(0))
    torch.testing.assert_close(mixed, quarters)
    model = for_mixtures(plain, seen, patch)
    torch.testing.assert_close(logits(model, mixed), logits(plain, images), atol=1e-6, rtol=0)  # float32 sums


def test_the_kernel_gives_the_expected_token_of_sub_patches_in_any_order() -> None:
    kernel = torch.randn(5, 3, 4, 4, generator=generator(0), dtype=torch.float64)
    patch = torch.rand(3, 4, 4, generator=generator(1), dtype=torch.float64)
    quarters = [patch[:, y:y + 2, x:x + 2] for y in (0, 2) for x in (0, 2)]
    tokens = []
    for k in range(4):  # the four cyclic orders: every sub-patch at every place once
        a, b, c, d = quarters[k:] + quarters[:k]
        tokens.append((kernel * torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)).sum((1, 2, 3)))
    mixture = torch.stack(quarters).mean(0)
    torch.testing.assert_close((mixed_kernel(kernel, 4) * mixture).sum((1, 2, 3)), torch.stack(tokens).mean(0))


def test_without_weights_only_the_architecture_changes() -> None:
    plain = Model(vit().factory, vit().kwargs)
    seen = vit_shape(plain)
    assert seen is not None
    halved = for_mixtures(plain, seen, 4)
    assert halved.state is None
    assert vit_shape(halved) == type(seen)((3, 8, 8), (2, 2), 32)
    oblong = Model(plain.factory, {**plain.kwargs, "patch_size": [4, 8]})
    shape = vit_shape(oblong)
    assert shape is not None
    assert vit_shape(for_mixtures(oblong, shape, 4)) == type(seen)((3, 8, 8), (2, 4), 32)

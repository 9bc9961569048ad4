import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.defenses.block_scrambling import BlockScrambling
from ppbench.seeding import generator

FEW = st.integers(1, 3)
SEEDS = st.integers(0, 2**32)


def scrambled(images: Tensor, block: int, seed: int) -> tuple[Tensor, Tensors]:
    defense, rng = BlockScrambling(block=block), generator(seed)
    n, c, h, w = images.shape
    key = defense.keys(n, (c, h, w), rng)
    return defense.encrypt(images, key, rng), key


def by_loops(image: Tensor, blocks: list[int], pixels: list[int], size: int) -> Tensor:
    """The cipher pixel by pixel: place i gets block blocks[i]; entry j of each block gets its entry pixels[j]."""
    out = torch.zeros_like(image)
    columns = image.shape[2] // size
    for place, origin in enumerate(blocks):
        (y, x), (v, u) = divmod(place, columns), divmod(origin, columns)
        for entry, source in enumerate(pixels):
            channel, rest = divmod(entry, size * size)  # entries count channels first, as a patch embedding does
            dy, dx = divmod(rest, size)
            from_channel, from_rest = divmod(source, size * size)
            sy, sx = divmod(from_rest, size)
            out[channel, y * size + dy, x * size + dx] = image[from_channel, v * size + sy, u * size + sx]
    return out


@settings(deadline=None)
@given(FEW, st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_it_agrees_with_a_slow_reference(n: int, c: int, rows: int, cols: int, size: int, seed: int) -> None:
    images = torch.rand(n, c, rows * size, cols * size, generator=generator(seed))
    out, key = scrambled(images, size, seed)
    for i in range(n):
        assert torch.equal(out[i], by_loops(images[i], key["blocks"][i].tolist(), key["pixels"][i].tolist(), size))


@settings(deadline=None)
@given(st.sampled_from([1, 3]), FEW, FEW, st.integers(1, 4), SEEDS)
def test_equal_blocks_stay_equal(c: int, rows: int, cols: int, size: int, seed: int) -> None:
    """One pixel order serves all blocks, so an image of one repeated block is released as one."""
    tile = torch.rand(1, c, size, size, generator=generator(seed))
    out, _ = scrambled(tile.repeat(1, 1, rows, cols), size, seed)
    assert torch.equal(out, out[:, :, :size, :size].repeat(1, 1, rows, cols))
    assert torch.equal(out[0, :, :size, :size].flatten().sort().values, tile.flatten().sort().values)


def test_channels_are_mixed_too() -> None:
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1
    out, _ = scrambled(red, 4, seed=0)
    assert (out.sum((2, 3)) > 0).all()


@settings(deadline=None)
@given(st.integers(1, 5), SEEDS)
def test_keys_have_the_published_sizes(count: int, seed: int) -> None:
    key = BlockScrambling(block=16).keys(count, (3, 224, 224), generator(seed))
    assert {name: tuple(value.shape) for name, value in key.items()} == {"blocks": (count, 196),
                                                                         "pixels": (count, 768)}


def test_every_place_is_equally_likely_to_get_every_block_and_every_entry() -> None:
    key = BlockScrambling(block=2).keys(4000, (1, 2, 6), generator(0))
    for order in key.values():
        length = order.shape[1]
        for place in range(length):
            assert chisquare(order[:, place].bincount(minlength=length).numpy()).pvalue > 1e-3


def test_the_two_keys_are_drawn_apart() -> None:
    key = BlockScrambling(block=2).keys(2000, (1, 4, 4), generator(0))
    assert (key["blocks"] == key["pixels"]).float().mean().item() < 0.3  # 1/4 by chance

"""The steps of block scrambling: each draws its key, acts on blocks, and can be undone.

Blocks are `[N, blocks, channels, size, size]` in [0, 1]; the leading axis of a key counts images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ppbench.blocks import permutations, permute_rows, turn, turn_back
from ppbench.defenses._negative import negate


@dataclass(frozen=True)
class Layout:
    """What keys are drawn for.

    Attributes:
        blocks: how many an image has.
        colours: channels of the image, 1 or 3.
        parts: channels that each colour is split into (2: nibbles).
        size: side of a block in pixels.
    """

    blocks: int
    colours: int
    parts: int
    size: int

    @property
    def block(self) -> tuple[int, int, int]:
        """Return (channels, size, size) of one block."""
        return self.colours * self.parts, self.size, self.size

    @property
    def values(self) -> int:
        """Count the values in one block."""
        return self.colours * self.parts * self.size**2


@dataclass(frozen=True)
class Step:
    """One step of a cipher.

    Attributes:
        key: its name among the keys.
        draw: (count, layout, rng) -> `count` keys.
        apply: (blocks, key) -> blocks.
        undo: its inverse under the same key.
    """

    key: str
    draw: Callable[[int, Layout, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    undo: Callable[[Tensor, Tensor], Tensor]


def draw_places(count: int, layout: Layout, rng: torch.Generator) -> Tensor:
    """Draw one order of the blocks a key, `[count, blocks]`."""
    return permutations(count, layout.blocks, rng)


def unpermute_rows(blocks: Tensor, order: Tensor) -> Tensor:
    """Undo `permute_rows`."""
    return permute_rows(blocks, order.argsort(1))


def draw_turns(count: int, layout: Layout, rng: torch.Generator) -> Tensor:
    """Draw one of 8 states for every block, `[count, blocks]`."""
    return torch.randint(8, (count, layout.blocks), generator=rng)


def draw_colours(count: int, layout: Layout, rng: torch.Generator, *, every: Literal["block", "pixel"]) -> Tensor:
    """Draw one order of the colours for every block `[count, blocks, C, 1, 1]` or pixel `[..., C, size, size]`."""
    side = layout.size if every == "pixel" else 1
    orders = permutations(count * layout.blocks * side**2, layout.colours, rng)
    return orders.reshape(count, layout.blocks, side, side, -1).movedim(4, 2).contiguous()


def permute_colours(blocks: Tensor, order: Tensor) -> Tensor:
    """Take colour `order[c]` as colour c; the parts of a colour stay together."""
    colours = blocks.reshape(*blocks.shape[:2], -1, order.shape[2], *blocks.shape[3:])
    return colours.gather(3, order[:, :, None].expand_as(colours)).flatten(2, 3)


def unpermute_colours(blocks: Tensor, order: Tensor) -> Tensor:
    """Undo `permute_colours`."""
    return permute_colours(blocks, order.argsort(2))


def draw_negatives(count: int, layout: Layout, rng: torch.Generator, *,
                   every: Literal["block", "shared", "own"]) -> Tensor:
    """Throw a fair coin for every block, for every value alike in all blocks, or for every value of every block."""
    shape = {"block": (layout.blocks, 1, 1, 1), "shared": (1, *layout.block),
             "own": (layout.blocks, *layout.block)}[every]
    return torch.randint(2, (count, *shape), generator=rng).bool()


def draw_pixels(count: int, layout: Layout, rng: torch.Generator, *, every: Literal["shared", "own"]) -> Tensor:
    """Draw one order of a block's values: for all blocks `[count, values]`, or for each `[count, blocks, values]`."""
    if every == "shared":
        return permutations(count, layout.values, rng)
    return permutations(count * layout.blocks, layout.values, rng).reshape(count, layout.blocks, -1)


def permute_pixels(blocks: Tensor, order: Tensor) -> Tensor:
    """Put value `order[j]` of every block (channel, row, column) at place j."""
    values = blocks.flatten(2)
    index = order if order.ndim == 3 else order[:, None]
    return values.gather(2, index.expand_as(values)).reshape(blocks.shape)


def unpermute_pixels(blocks: Tensor, order: Tensor) -> Tensor:
    """Undo `permute_pixels`."""
    return permute_pixels(blocks, order.argsort(-1))


def split_nibbles(images: Tensor) -> Tensor:
    """Split 8-bit images `[N, C, H, W]` into their high and low 4 bits: `[N, 2 C, H, W]`, high first, in [0, 1].

    Values between two of the 256 levels are rounded.
    """
    levels = (images * 255).round()
    high = (levels / 16).floor()
    return torch.cat([high, levels - 16 * high], 1) / 15


def join_nibbles(halves: Tensor) -> Tensor:
    """Join high and low 4 bits to 8-bit values: the inverse of `split_nibbles`."""
    high, low = (halves * 15).round().chunk(2, 1)
    return (16 * high + low) / 255


MOVE = Step("blocks", draw_places, permute_rows, unpermute_rows)
TURN = Step("turns", draw_turns, turn, turn_back)


def colour_step(every: Literal["block", "pixel"]) -> Step:
    """Permute the colour channels, of every block or of every pixel its own way."""
    return Step("colours", partial(draw_colours, every=every), permute_colours, unpermute_colours)


def negative_step(every: Literal["block", "shared", "own"]) -> Step:
    """Turn blocks, or values (alike in all blocks, or in each its own way), to their negatives."""
    return Step("negative", partial(draw_negatives, every=every), negate, negate)


def pixel_step(every: Literal["shared", "own"]) -> Step:
    """Shuffle the values inside a block, in all blocks alike or in each its own way."""
    return Step("pixels", partial(draw_pixels, every=every), permute_pixels, unpermute_pixels)

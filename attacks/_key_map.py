"""What a block cipher does under one key, as data: where every value goes, and which are negated."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppbench.blocks import cut, join
from ppbench.data import Shape

Inside = Literal["states", "shared", "own"]


@dataclass(frozen=True)
class Structure:
    """What is public of a cipher that moves whole values about (Kerckhoffs).

    Attributes:
        image: (C, H, W).
        size: side of a block in pixels; None = the image is one block.
        moved: blocks change places.
        inside: what happens inside a block: one of few `states` (turned, negated, recoloured), a signed permutation of
            its values that all blocks share, or one of its own for every block.
        nibbles: all this happens to the high and low 4 bits of every value.
        states: `[S, values]` of the value that each place takes, where there are states; state 0 changes nothing.
        negated: whether a state, or a shared permutation, may be combined with negatives.
    """

    image: Shape
    size: int | None
    moved: bool
    inside: Inside
    nibbles: bool = False
    states: Tensor | None = None
    negated: bool = False

    @property
    def top(self) -> int:
        """Return the largest level of a value."""
        return 15 if self.nibbles else 255

    @property
    def parts(self) -> Shape:
        """Return (channels, H, W) of the levels."""
        channels, height, width = self.image
        return channels * (2 if self.nibbles else 1), height, width

    @property
    def blocks(self) -> int:
        """Count the blocks of an image."""
        _, height, width = self.image
        return 1 if self.size is None else (height // self.size) * (width // self.size)

    @property
    def values(self) -> int:
        """Count the values of a block."""
        channels, height, width = self.parts
        return channels * height * width // self.blocks

    def levels(self, images: Tensor) -> Tensor:
        """Return the levels `[N, blocks, values]` int64 in 0 to `top` of images `[N, C, H, W]` in [0, 1]."""
        levels = (images.double() * 255).round().long()
        return self.blocks_of(torch.cat([levels // 16, levels % 16], 1) if self.nibbles else levels)

    def image_of(self, levels: Tensor) -> Tensor:
        """Return the images `[N, C, H, W]` in [0, 1] of levels: the inverse of `levels`."""
        parts = self.parts_of(levels)
        if self.nibbles:
            high, low = parts.chunk(2, 1)
            parts = 16 * high + low
        return parts.float() / 255

    def blocks_of(self, parts: Tensor) -> Tensor:
        """Cut `[N, *parts]` into `[N, blocks, values]`."""
        return (parts[:, None] if self.size is None else cut(parts, self.size)).flatten(2)

    def parts_of(self, blocks: Tensor) -> Tensor:
        """Join `[N, blocks, values]` to `[N, *parts]`: the inverse of `blocks_of`."""
        if self.size is None:
            return blocks.reshape(len(blocks), *self.parts)
        return join(blocks.reshape(len(blocks), self.blocks, self.parts[0], self.size, self.size), self.parts)


@dataclass(frozen=True)
class KeyMap:
    """A key, recovered: value j of the released block b is value `order[b, j]` of the plain block `source[b]`.

    Attributes:
        source: `[blocks]` int64.
        order: `[blocks, values]` int64.
        negative: `[blocks, values]` bool: whether the level is `top` minus the plain one.
    """

    source: Tensor
    order: Tensor
    negative: Tensor

    def encrypt(self, levels: Tensor, top: int) -> Tensor:
        """Return released levels `[N, blocks, values]` of plain ones."""
        moved = levels[:, self.source].gather(2, self.order.expand(len(levels), -1, -1))
        return torch.where(self.negative, top - moved, moved)

    def explains(self, structure: Structure, plain: Tensor, made: Tensor) -> bool:
        """Say whether it makes released images `[N, C, H, W]` of plain ones, to the last value."""
        return torch.equal(self.encrypt(structure.levels(plain), structure.top), structure.levels(made))

    def decrypt(self, levels: Tensor, top: int) -> Tensor:
        """Return plain levels `[N, blocks, values]` of released ones."""
        positive = torch.where(self.negative, top - levels, levels)
        back = positive.gather(2, self.order.argsort(1).expand(len(levels), -1, -1))
        return back[:, self.source.argsort()]

"""Images to ask an oracle for, in which no value can be taken for another."""

import torch
from torch import Tensor

from ppbench.attacks._key_map import Structure
from ppbench.attacks._key_pairs import recover
from ppbench.seeding import generator

MOST = 16  # images
TRIES = 8  # draws of as many images


def chosen(structure: Structure, most: int = MOST) -> Tensor:
    """Return a few images `[q, C, H, W]` from which any key of a structure can be read without doubt.

    They are drawn at random, but so that the values of one block have signatures of their own, negatives taken for the
    same, as far as so many images have room for them. Where `most` images are too few, as many tell what they can.
    """
    for count in range(1, most + 1):
        for seed in range(TRIES):
            levels = drawn(structure, count, generator(seed))
            if recover(structure, levels, levels).sure == 1:
                return structure.image_of(levels)
    return structure.image_of(levels)


def drawn(structure: Structure, count: int, rng: torch.Generator) -> Tensor:
    """Draw levels `[count, blocks, values]`; in each block the signatures differ where there are enough of them.

    A signature is the number whose digits are a value's levels in all images: the negative's is the largest number
    less it, so that the numbers below half of that are all different even where values are negated.
    """
    base, shape = structure.top + 1, (structure.blocks, structure.values)
    room = base**count // 2
    if room < structure.values or room > _FEW:  # no room, or so much that two draws hardly ever agree
        return torch.randint(base, (count, *shape), generator=rng)
    if structure.blocks > room:  # blocks differ by what they choose
        codes = torch.rand(structure.blocks, room, generator=rng).argsort(1)[:, :structure.values]
    else:  # by the stretch of one order that they take, each from a start of its own
        every, starts = (torch.randperm(room, generator=rng) for _ in range(2))
        codes = every[(starts[:structure.blocks, None] + torch.arange(structure.values)) % room]
    return torch.stack([codes // base**digit % base for digit in range(count)])


_FEW = 1 << 15

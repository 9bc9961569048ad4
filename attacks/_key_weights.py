"""A key from the weights of a key-adapted ViT whose plain starting weights are published.

The key has rearranged the columns of the patch projection and the rows of the position embedding. Training moves all of
them by little, so that each is still nearest to the one it came from.
"""

import math
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.model import Model
from ppbench.vit.positionwise import split_kernel
from ppbench.vit.shape import KERNEL, POSITIONS, vit_shape

LEAST = 0.5  # mean cosine of what is taken for the same, in wide ViTs


@dataclass(frozen=True)
class Absorbed:
    """A key that a ViT absorbed.

    Attributes:
        structure: the ViT's patches as blocks.
        key: the map.
        fit: mean cosine between the columns that are taken for the same.
    """

    structure: Structure
    key: KeyMap
    fit: float

    def explains(self, plain: Tensor, made: Tensor) -> bool:
        """Say whether the key makes released images `[N, C, H, W]` of plain ones, to the last value."""
        return self.key.explains(self.structure, plain, made)


def from_weights(structure: Structure, model: Model, start: Model) -> Absorbed | None:
    """Find the key that a ViT absorbed.

    Args:
        structure: of the key.
        model: the ViT as the adversary sees it.
        start: the plain one that it was made from.

    Returns:
        The key; None where this is no such ViT, it absorbed no key, its patches divide blocks that move, or too little
        is alike: of vectors of D numbers, chance makes the best of m alike to some sqrt(2 ln(m) / D).
    """
    patch = _patch(structure, start)
    before, after = start.state or {}, model.state or {}
    if patch is None or KERNEL not in before or KERNEL not in after:
        return None
    blocks = replace(structure, size=patch, inside="own", states=None)
    plain = split_kernel(before[KERNEL]) if structure.nibbles else before[KERNEL]
    kernel = after[KERNEL]
    if kernel.numel() not in (plain.numel(), blocks.blocks * plain.numel()) or not kernel.isfinite().all():
        return None
    kernels = kernel.reshape(-1, len(plain), blocks.values).transpose(1, 2)  # one, or one a place
    source = torch.arange(blocks.blocks)
    if structure.moved:
        if POSITIONS not in before or POSITIONS not in after or not after[POSITIONS].isfinite().all():
            return None
        source, _, _ = _nearest(after[POSITIONS][0, -blocks.blocks:], before[POSITIONS][0, -blocks.blocks:])
    found = [_nearest(kernel, plain.flatten(1).T, signed=True) for kernel in kernels]
    order, negative, cosine = (torch.stack(part) for part in zip(*found, strict=True))
    shape, fit = (blocks.blocks, blocks.values), float(cosine.mean())
    chance = (2 * math.log(blocks.values) / len(plain)) ** 0.5
    rearranged = bool((order != torch.arange(blocks.values)).any() or negative.any() or source.diff().ne(1).any())
    if fit < max(LEAST, chance) or not rearranged:
        return None
    return Absorbed(blocks, KeyMap(source, order.expand(shape), negative.expand(shape)), fit)


def _patch(structure: Structure, start: Model) -> int | None:
    """Return the side of the ViT's patches, where these hold whole blocks that stay or are the blocks."""
    vit = vit_shape(start)
    if vit is None or vit.image != structure.image or structure.size is None or vit.patch[0] != vit.patch[1]:
        return None
    side = vit.patch[0]
    if structure.image[1] % side or structure.image[2] % side:
        return None
    fits = side == structure.size or (side % structure.size == 0 and not structure.moved)
    return side if fits else None


def _nearest(theirs: Tensor, ours: Tensor, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of `theirs` `[n, D]` the one of `ours` that it is, whether negated, and the cosines."""
    product = theirs.double() @ ours.double().T
    likeness = product.abs() if signed else product
    distance = ours.double().square().sum(1) - 2 * likeness
    _, columns = linear_sum_assignment(distance.numpy())
    chosen = torch.from_numpy(columns)
    matched = product.gather(1, chosen[:, None])[:, 0]
    scale = theirs.double().norm(dim=1) * ours[chosen].double().norm(dim=1)
    return chosen, matched < 0, matched.abs() / scale.clamp(min=1e-12)

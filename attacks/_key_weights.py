"""A key from the weights of a key-adapted ViT whose plain starting weights are published.

The key has rearranged the columns of the patch projection and the rows of the position embedding. Training moves all of
them by little, so that each is still nearest to the one it came from.
"""

from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.model import Model
from ppbench.vit.positionwise import split_kernel
from ppbench.vit.shape import KERNEL, POSITIONS, vit_shape

LEAST = 0.5  # mean cosine of what is taken for the same; columns of another start match at random, to some 0.2


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


def from_weights(structure: Structure, model: Model, start: Model) -> Absorbed | None:
    """Find the key that a ViT absorbed.

    Args:
        structure: of the key.
        model: the ViT as the adversary sees it.
        start: the plain one that it was made from.

    Returns:
        The key; None where this is no such ViT, its patches divide blocks that move, or too little is alike.
    """
    patch = _patch(structure, start)
    before, after = start.state or {}, model.state or {}
    if patch is None or KERNEL not in before or KERNEL not in after:
        return None
    blocks = replace(structure, size=patch, inside="own", states=None)
    plain = split_kernel(before[KERNEL]) if structure.nibbles else before[KERNEL]
    kernels = after[KERNEL].reshape(-1, len(plain), blocks.values).transpose(1, 2)  # one, or one a place
    if len(kernels) not in (1, blocks.blocks):
        return None
    source = torch.arange(blocks.blocks)
    if structure.moved and POSITIONS in before and POSITIONS in after:
        source, _, _ = _nearest(after[POSITIONS][0, -blocks.blocks:], before[POSITIONS][0, -blocks.blocks:])
    found = [_nearest(kernel, plain.flatten(1).T, signed=True) for kernel in kernels]
    order, negative, cosine = (torch.stack(part) for part in zip(*found, strict=True))
    shape, fit = (blocks.blocks, blocks.values), float(cosine.mean())
    return Absorbed(blocks, KeyMap(source, order.expand(shape), negative.expand(shape)), fit) if fit >= LEAST else None


def _patch(structure: Structure, start: Model) -> int | None:
    """Return the side of the ViT's patches, where these hold whole blocks that stay or are the blocks."""
    vit = vit_shape(start)
    if vit is None or vit.image != structure.image or structure.size is None or vit.patch[0] != vit.patch[1]:
        return None
    side = vit.patch[0]
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

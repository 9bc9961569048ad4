"""Spaces in which images are near to each other: pixels, LPIPS, features of a trained network."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ppbench.perceptual import Lpips

_CHUNK_VALUES = 2**26  # of vectors held at once: 256 MiB


@dataclass(frozen=True)
class Nearest:
    """For each of m images, its nearest of a set.

    Attributes:
        distance: `[m]` float64.
        index: `[m]` int64, which it is.
    """

    distance: Tensor
    index: Tensor


Search = Callable[[Tensor, Tensor], Nearest]
"""From images `[m, C, H, W]` and a set `[r, C, H, W]` to the nearest of the set."""


def by_pixels(images: Tensor, among: Tensor, shift: int) -> Nearest:
    """Find the nearest by pixels, of the set as it is, mirrored, and shifted by up to `shift` pixels either way.

    Returns:
        Root mean squared differences of what is not cut off by a shift.
    """
    height, width = images.shape[2:]
    inner = images[:, :, shift:height - shift, shift:width - shift].flatten(1)
    best: Nearest | None = None
    for mirrored in (among, among.flip(3)):
        for y, x in product(range(2 * shift + 1), repeat=2):
            moved = mirrored[:, :, y:y + height - 2 * shift, x:x + width - 2 * shift].flatten(1)
            best = _nearer(best, _by_vectors(inner, moved))
    assert best is not None
    return Nearest(best.distance / inner.shape[1]**0.5, best.index)


def by_lpips(images: Tensor, among: Tensor, lpips: Lpips) -> Nearest:
    """Find the nearest by LPIPS, of the set as it is and mirrored.

    Returns:
        Roots of LPIPS, which is a squared distance.
    """
    return by_features(images, among, lpips.vectors)


def by_features(images: Tensor, among: Tensor, features: Callable[[Tensor], Tensor]) -> Nearest:
    """Find the nearest by features `[N, D]`, of the set as it is and mirrored."""
    best: list[Nearest] = []
    rows = max(1, _CHUNK_VALUES // features(images[:1]).shape[1])
    for part in images.split(rows):
        own, found = features(part), None
        for start in range(0, len(among), rows):
            some = among[start:start + rows]
            for each in (some, some.flip(3)):
                near = _by_vectors(own, features(each))
                found = _nearer(found, Nearest(near.distance, near.index + start))
        assert found is not None
        best.append(found)
    return Nearest(torch.cat([near.distance for near in best]), torch.cat([near.index for near in best]))


def _by_vectors(one: Tensor, others: Tensor) -> Nearest:
    """Find the nearest of vectors; the distance is then taken exactly, as products lose small ones."""
    lengths = others.square().sum(1)
    index = (lengths - 2 * one @ others.T).argmin(1)
    return Nearest((one - others[index]).double().square().sum(1).sqrt(), index)


def _nearer(one: Nearest | None, other: Nearest) -> Nearest:
    if one is None:
        return other
    better = other.distance < one.distance
    return Nearest(torch.where(better, other.distance, one.distance), torch.where(better, other.index, one.index))

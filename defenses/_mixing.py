"""Weighted sums of several whole images: who is mixed with whom, and in which shares."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TRIES = 32  # two images capped at 0.65: one draw in three passes, all tries fail once in 3 million


@dataclass(frozen=True)
class Mixture:
    """Which images make up each mixture.

    Attributes:
        members: `[N, k]` int64, distinct in a row; the first is image i itself.
        shares: `[N, k]` float32 that sum to 1, the first the largest.
    """

    members: Tensor
    shares: Tensor

    def mix(self, images: Tensor) -> Tensor:
        """Return the mixtures `[N, C, H, W]` of images `[N, C, H, W]` in [0, 1]."""
        mixed = torch.zeros_like(images)
        for member, share in zip(self.members.T, self.shares.T, strict=True):
            mixed = mixed + share[:, None, None, None] * images[member]
        return mixed.clamp(0, 1)

    def soft_labels(self, labels: Tensor) -> Tensor:
        """Return the shares of the classes `[N, classes]` in every mixture of images with labels `[N]`."""
        classes = int(labels.max()) + 1
        return self.shares.new_zeros(len(labels), classes).scatter_add_(1, labels[self.members], self.shares)


def members(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Draw for each of `count` images `size` - 1 distinct others, `[count, size]`; the image itself comes first."""
    found = torch.arange(count)[:, None]
    for taken in range(1, size):
        other = torch.randint(count - taken, (count,), generator=rng)
        for lower in found.sort(1).values.T:
            other = other + (other >= lower)  # counts the images that are not yet in the row
        found = torch.cat([found, other[:, None]], 1)
    return found


def dirichlet_shares(count: int, size: int, alpha: float, rng: torch.Generator) -> Tensor:
    """Draw shares from Dirichlet(alpha, ..., alpha), `[count, size]`, the largest first."""
    seed = int(torch.randint(2**62, (), generator=rng))
    drawn = torch.from_numpy(np.random.default_rng(seed).dirichlet([alpha] * size, count))
    return drawn.sort(1, descending=True).values.float()


def capped_shares(count: int, size: int, cap: float, rng: torch.Generator) -> Tensor:
    """Draw normalised half-normal shares, again while one exceeds `cap`, `[count, size]`, the largest first.

    Where no try stays below the cap, the last is drawn towards equal shares until it does.
    """
    tries = torch.randn(count, _TRIES, size, generator=rng, dtype=torch.float64).abs()
    tries = tries / tries.sum(2, keepdim=True)
    good = tries.amax(2) <= cap
    good[:, -1] = True
    drawn = tries[torch.arange(count), good.int().argmax(1)]
    largest = drawn.amax(1, keepdim=True)
    surplus = ((largest - cap) / (largest - 1 / size)).nan_to_num(0).clamp(0, 1)
    return (drawn + surplus * (1 / size - drawn)).sort(1, descending=True).values.float()

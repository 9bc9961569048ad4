"""Minibatches for a counted number of steps."""

import math

import torch
from torch import Tensor


def shuffled_passes(count: int, batch: int, steps: int, rng: torch.Generator) -> Tensor:
    """Return `[steps, min(batch, count)]` rows in [0, count): pass after pass over all, each in a new order."""
    size = min(batch, count)
    passes = math.ceil(steps * size / count)
    rows = torch.cat([torch.randperm(count, generator=rng) for _ in range(passes)])
    return rows[: steps * size].reshape(steps, size)

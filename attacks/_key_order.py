"""Which values are which, by what depends on what: the tools of the attacks on keys by statistics."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import quadratic_assignment
from torch import Tensor

LARGEST = 2048  # values among which an order is looked for
RESTARTS = {256: 16, 1024: 4}  # of a search, by the most values it may have


def correlations(values: Tensor) -> Tensor:
    """Return the correlations `[n, n]` float64 of `[samples, n]`; 0 where a value never changes."""
    centred = values - values.mean(0)
    together = (centred.T @ centred).double()
    scale = together.diagonal().clamp(min=1e-9).rsqrt()
    return together * scale[:, None] * scale


def matched_by(theirs: Tensor, ours: Tensor, rng: torch.Generator) -> tuple[Tensor, float] | None:
    """Return for each row of one symmetric matrix the row of the other by which they agree best, and how well.

    None where they are larger than `LARGEST`, or nothing in one of them varies.
    """
    off = ~torch.eye(len(theirs), dtype=torch.bool)
    if len(theirs) > LARGEST or any(part[off].unique().numel() < 2 for part in (theirs, ours)):
        return None
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
    pair = theirs.numpy(), ours.numpy()
    restarts = next((count for most, count in RESTARTS.items() if len(ours) <= most), 0)
    options: list[Any] = [{"maximize": True, "rng": draws, "P0": start}
                          for start in ["barycenter"] + ["randomized"] * restarts]
    found = [quadratic_assignment(*pair, options=each) for each in options]
    best = torch.from_numpy(max(found, key=lambda one: one.fun).col_ind)
    both = torch.stack([theirs[off], ours[best][:, best][off]])
    return best, float(torch.corrcoef(both)[0, 1])

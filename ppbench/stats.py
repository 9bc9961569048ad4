"""Intervals over targets: 95 % bootstrap of a mean, a ratio of sums, and a paired difference."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppbench.errors import UserError

LEVEL = 0.95
RESAMPLES = 5000
_BATCH_VALUES = 2**21  # resampled values held at once: 16 MiB


class Interval(NamedTuple):
    """The two ends of a 95 % interval; NaN where there is none."""

    low: float
    high: float


def mean_interval(values: Tensor, rng: torch.Generator) -> Interval:
    """Return the 95 % bootstrap interval of the mean over targets (BCa, Efron 1987; 5,000 resamples).

    Where BCa is undefined (equal values, say) the percentile interval takes its place.

    Args:
        values: `[N]`, one score a target.
        rng: decides the resamples: equal generators give equal intervals.

    Returns:
        The interval; (NaN, NaN) for fewer than two values or where one is not finite.
    """
    seed = int(torch.randint(2**62, (), generator=rng))
    sample = values.detach().cpu().double().numpy()
    if len(sample) < 2 or not np.isfinite(sample).all():
        return Interval(math.nan, math.nan)
    interval = _interval((sample,), np.mean, seed, "BCa")
    return interval if math.isfinite(interval.low) and math.isfinite(interval.high) else \
        _interval((sample,), np.mean, seed, "percentile")


def ratio_interval(gained: Tensor, possible: Tensor, rng: torch.Generator) -> Interval:
    """Return the 95 % bootstrap interval of sum(gained) / sum(possible), resampling targets (percentile; 5,000).

    Args:
        gained: `[N]`, score minus floor of each target.
        possible: `[N]`, the perfect score minus the floor of the same targets.
        rng: decides the resamples.

    Returns:
        The interval; (NaN, NaN) for fewer than two targets, or where a resample leaves nothing to gain.
    """
    seed = int(torch.randint(2**62, (), generator=rng))
    if len(gained) < 2:
        return Interval(math.nan, math.nan)
    return _interval((gained.double().numpy(), possible.double().numpy()), _ratio, seed, "percentile")


def paired_difference_interval(a: Tensor, b: Tensor, rng: torch.Generator) -> Interval:
    """Return the 95 % bootstrap interval of the mean of `a - b`, both `[N]` scores of the same targets in one order.

    Raises:
        UserError: the two differ in length.
    """
    if a.shape != b.shape:
        raise UserError(f"paired scores need the same targets, but there are {len(a)} and {len(b)}: "
                        "compare cells of one run")
    return mean_interval(a.double() - b.double(), rng)


def _ratio(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = top.mean(axis) / bottom.mean(axis)
    return found


def _interval(samples: tuple[np.ndarray, ...], statistic: Callable[..., Any], seed: int,
              method: Literal["BCa", "percentile"]) -> Interval:
    from scipy.stats import DegenerateDataWarning, bootstrap  # a second, which a dry run need not wait

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = bootstrap(samples, statistic, paired=len(samples) > 1, n_resamples=RESAMPLES, vectorized=True,
                          confidence_level=LEVEL, method=method, batch=max(1, _BATCH_VALUES // len(samples[0])),
                          rng=np.random.default_rng(seed))
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))

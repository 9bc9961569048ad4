"""Membership by likelihoods: LiRA (Carlini et al. 2022, arXiv 2112.03570), RMIA (Zarifzadeh et al. 2024, 2312.03262).

Both ask how sure a network is of a candidate's label, and how sure others, the shadows, are that were trained like it,
with the candidate or without.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 64  # shadows, half of them with a candidate, from which its own variance is believed (as in the paper)
_LEAST = 1e-3  # a standard deviation in logits


@dataclass(frozen=True)
class Shadows:
    """What shadows say of candidates.

    Attributes:
        sure: `[shadows, candidates, views]`: scaled confidences (`sureness`) in so many views of a candidate.
        inside: `[shadows, candidates]` bool: which candidates each was trained with.
    """

    sure: Tensor
    inside: Tensor


def sureness(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the probability p of the label: nearly normal, unlike p itself.

    Args:
        logits: `[N, ..., classes]`.
        labels: `[N]` int64.

    Returns:
        `[N, ...]` float64.
    """
    logits = logits.double()
    at = labels.reshape(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
    own = logits.gather(-1, at)[..., 0]
    return own - logits.scatter(-1, at, -torch.inf).logsumexp(-1)


def lira(target: Tensor, shadows: Shadows, online: bool = True) -> Tensor:
    """Score candidates by how much likelier the target's sureness is of networks trained with them than without.

    Args:
        target: `[candidates, views]`: the target's sureness.
        shadows: others'.
        online: use shadows that were trained with the candidate, too; otherwise only how unlikely so high a value is
            without it.

    Returns:
        `[candidates]` float64: log likelihood ratios (online), or logs of one over the tail probability.
    """
    without = _normal(shadows, ~shadows.inside)
    if not online:
        z = (target - without.loc) / without.scale
        unlikely: Tensor = -torch.special.log_ndtr(-z).sum(1)
        return unlikely
    ratio: Tensor = (_normal(shadows, shadows.inside).log_prob(target) - without.log_prob(target)).sum(1)
    return ratio


def rmia(target: Tensor, shadows: Shadows, population: Tensor, usual: Tensor, gamma: float = 1.0,
         offline: float | None = None) -> Tensor:
    """Score candidates by the share of other images over which the target favours them more than shadows do.

    Args:
        target: `[candidates]`: the target's probability of each candidate's label.
        shadows: others' probabilities, of one view each.
        population: `[z]`: the target's probability of the label of images that are no candidates.
        usual: `[z]`: their mean probability in shadows that were not trained with them.
        gamma: how much more.
        offline: the paper's a in [0, 1]: the mean over all networks is taken to be ((1 + a) p + 1 - a) / 2, where p is
            that of shadows trained without the candidate; None = shadows with and without it, to equal parts.

    Returns:
        `[candidates]` float64 in [0, 1].
    """
    sure, inside = shadows.sure[..., 0], shadows.inside
    without = _mean(sure, ~inside)
    mean = (_mean(sure, inside) + without) / 2 if offline is None else ((1 + offline) * without + 1 - offline) / 2
    if offline is not None:
        usual = ((1 + offline) * usual + 1 - offline) / 2
    ratio = target / mean.clamp(min=1e-300)
    others = (population / usual.clamp(min=1e-300)).sort().values
    return torch.searchsorted(others, ratio / gamma, right=True).double() / len(others)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Return means over shadows `[candidates]` of those in `where`."""
    return (values * where).sum(0) / where.sum(0).clamp(min=1)


def _normal(shadows: Shadows, where: Tensor) -> torch.distributions.Normal:
    """Fit a normal distribution `[candidates, views]` to what some shadows say; few share one variance a view."""
    count = where.sum(0)[:, None].clamp(min=1)
    mean = (shadows.sure * where[..., None]).sum(0) / count
    squares = ((shadows.sure - mean).square() * where[..., None]).sum(0)
    if len(shadows.sure) < ENOUGH:
        variance = (squares.sum(0) / (count - 1).sum().clamp(min=1)).expand_as(mean)
    else:
        variance = squares / (count - 1).clamp(min=1)
    return torch.distributions.Normal(mean, variance.sqrt().clamp(min=_LEAST))

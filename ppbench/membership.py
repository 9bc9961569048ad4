"""How well scores tell members from others: the ROC curve where false alarms are rare, and the area below it.

Averages hide what matters: an attack that is sure of a few members has an area near one half (Carlini et al. 2022,
"Membership inference attacks from first principles", arXiv 2112.03570).
"""

from typing import NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from ppbench.errors import UserError

LEVEL = 0.95
RATES = (0.001, 0.01)
"""False-alarm rates at which true positives are counted."""


class Rate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """An ROC curve: shares of others, and of members, that score at least as high as each threshold, from none to all.

    Both `[points]` float64, beginning at 0 and ending at 1.
    """

    false: Tensor
    true: Tensor


def curve(scores: Tensor, members: Tensor) -> Curve:
    """Return the ROC curve, one point a threshold; equal scores are taken together.

    Args:
        scores: `[N]`, higher for whoever is taken for a member.
        members: `[N]` bool.

    Raises:
        UserError: a score is not finite, or there are no members, or no others.
    """
    _check(scores, members)
    order = scores.double().argsort(descending=True, stable=True)
    ordered, true = scores.double()[order], members[order].double()
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])  # of those that are equal
    zero = torch.zeros(1, dtype=torch.float64)
    return Curve(torch.cat([zero, (1 - true).cumsum(0)[last] / (1 - true).sum()]),
                 torch.cat([zero, true.cumsum(0)[last] / true.sum()]))


def true_positives(scores: Tensor, members: Tensor, rate: float) -> Rate:
    """Return the share of members found with at most `rate` of the others accused, and its exact interval.

    The interval (Clopper & Pearson 1934) is of the members at this threshold; with fewer than 1 / rate others none may
    be accused at all.

    Args:
        scores: `[N]`, higher for whoever is taken for a member.
        members: `[N]` bool.
        rate: of false alarms.
    """
    from scipy.stats import binomtest  # a second, which planning need not wait

    points = curve(scores, members)
    count = int(members.sum())
    found = round(float(points.true[points.false <= rate + 1e-12].max()) * count)
    interval = binomtest(found, count).proportion_ci(LEVEL, method="exact")
    return Rate(found / count, float(interval.low), float(interval.high))


def area(scores: Tensor, members: Tensor) -> Rate:
    """Return the area under the curve: how often a member scores higher than another (ties count half).

    Its interval is that of DeLong et al. 1988 (Biometrics 44(3):837), on the logit scale; where all scores fall apart,
    or all are equal, it has no width.
    """
    _check(scores, members)
    own, others = scores[members].double(), scores[~members].double()
    above = _share_below(own, others)  # of each member: others below it
    below = 1 - _share_below(others, own)
    value = float(above.mean())
    spread = sum(float(part.var()) / len(part) for part in (above, below) if len(part) > 1) ** 0.5
    if not 0 < value < 1 or spread == 0:
        return Rate(value, value, value)
    logit = torch.tensor(value).double().logit()
    reach = float(ndtri((1 + LEVEL) / 2)) * spread / (value * (1 - value))
    return Rate(value, float((logit - reach).sigmoid()), float((logit + reach).sigmoid()))


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Return for each value the share of others below it, equal ones counted half."""
    ordered = others.sort().values
    low, high = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (low + high).double() / (2 * len(others))


def _check(scores: Tensor, members: Tensor) -> None:
    if not scores.isfinite().all():
        raise UserError("a membership score is not finite: an attack must score every candidate")
    if members.all() or not members.any():
        raise UserError("membership needs members and others among the candidates: there is but one kind")

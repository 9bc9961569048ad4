"""ROC curves: by hand, against scikit-free references, and with intervals that hold what they promise."""

import math

import pytest
import torch
from scipy.stats import mannwhitneyu, norm
from torch import Tensor

from ppbench.errors import UserError
from ppbench.membership import area, curve, true_positives
from ppbench.seeding import generator


def two(count: int, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of members, `apart` standard deviations above others, in random order."""
    rng = generator(seed)
    members = torch.rand(count, generator=rng) < 0.5
    return torch.randn(count, generator=rng) + apart * members, members


def test_the_curve_by_hand() -> None:
    """Members score 4, 3, 3; others 3, 1: the three of 3 are one threshold."""
    found = curve(torch.tensor([3.0, 4.0, 3.0, 1.0, 3.0]), torch.tensor([True, True, False, False, True]))
    assert found.false.tolist() == [0, 0, 0.5, 1]
    assert found.true.tolist() == pytest.approx([0, 1 / 3, 1, 1])


def test_no_others_are_accused_where_one_would_be_too_many() -> None:
    scores = torch.cat([torch.tensor([9.0, 8.0, 5.0]), torch.arange(7.0)])
    members = torch.arange(10) < 3
    assert true_positives(scores, members, 0.1).value == pytest.approx(2 / 3)  # one of 7 is more than a tenth
    assert true_positives(scores, members, 0.15).value == pytest.approx(2 / 3)  # the first other scores 6
    assert true_positives(scores, members, 2 / 7).value == 1
    tied = torch.where(members, 5.0, scores)
    assert true_positives(tied, members, 0.1).value == 0  # one of the others scores 6


def test_the_interval_of_a_rate_is_exact() -> None:
    found = true_positives(torch.tensor([1.0] * 20 + [0.0] * 20), torch.arange(40) < 20, 0.01)
    assert found == (1, pytest.approx(0.025 ** (1 / 20)), 1)


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_the_area_is_the_u_statistic_and_that_below_the_curve(apart: float) -> None:
    scores, members = two(300, apart, 0)
    scores = (scores * 4).round()  # many are equal
    u = mannwhitneyu(scores[members], scores[~members]).statistic / (int(members.sum()) * int((~members).sum()))
    assert area(scores, members).value == pytest.approx(u)
    points = curve(scores, members)
    assert float(torch.trapezoid(points.true, points.false)) == pytest.approx(u)


@pytest.mark.parametrize("apart", [0.0, 0.5, 2.0])
def test_the_interval_of_the_area_covers_the_true_one(apart: float) -> None:
    truth = float(norm.cdf(apart / math.sqrt(2)))
    found = [area(*two(120, apart, seed)) for seed in range(300)]
    covered = sum(each.low <= truth <= each.high for each in found) / 300
    assert 0.91 <= covered <= 0.985


def test_perfect_and_constant_scores_have_no_spread() -> None:
    members = torch.arange(10) < 4
    assert area(members.float(), members) == (1, 1, 1)
    assert area(torch.zeros(10), members) == (0.5, 0.5, 0.5)
    assert true_positives(torch.zeros(10), members, 0.01).value == 0


def test_what_is_no_score_is_named() -> None:
    with pytest.raises(UserError, match="not finite"):
        area(torch.tensor([0.0, torch.nan]), torch.tensor([True, False]))
    with pytest.raises(UserError, match="but one kind"):
        curve(torch.zeros(3), torch.ones(3, dtype=torch.bool))

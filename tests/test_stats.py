import math

import pytest
import torch

from ppbench.errors import UserError
from ppbench.seeding import generator
from ppbench.stats import mean_interval, paired_difference_interval, ratio_interval


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = generator(0)
    hits = 0
    for _ in range(200):
        low, high = mean_interval(torch.randn(40, generator=rng) + 3, rng)
        hits += low <= 3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_interval_approaches_that_of_the_normal_distribution() -> None:
    values = torch.randn(2000, generator=generator(1))
    low, high = mean_interval(values, generator(0))
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)


def test_equal_generators_give_equal_intervals_and_global_state_is_untouched() -> None:
    values = torch.rand(20)
    before = torch.get_rng_state()
    assert mean_interval(values, generator(7)) == mean_interval(values, generator(7))
    assert mean_interval(values, generator(7)) != mean_interval(values, generator(8))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_values_have_an_interval_of_no_width(value: float) -> None:
    low, high = mean_interval(torch.full((10,), value, dtype=torch.float64), generator(0))
    assert (low, high) == pytest.approx((value, value))


@pytest.mark.parametrize("values", [[], [0.5], [0.1, float("nan"), 0.2]])
def test_too_few_or_undefined_values_have_no_interval(values: list[float]) -> None:
    assert all(math.isnan(end) for end in mean_interval(torch.tensor(values), generator(0)))


def test_a_rate_of_few_hits_stays_in_its_range() -> None:
    low, high = mean_interval(torch.tensor([1.0] + [0.0] * 19), generator(0))
    assert 0 <= low < 0.05 < high <= 1


def test_pairing_removes_what_two_scores_share() -> None:
    shared = torch.rand(50, generator=generator(2)) * 100
    noise = torch.rand(50, generator=generator(3))
    low, high = paired_difference_interval(shared + noise, shared, generator(0))
    assert low == pytest.approx(0.5, abs=0.2)
    assert high == pytest.approx(0.5, abs=0.2)
    assert high - low < 0.25
    with pytest.raises(UserError, match="same targets"):
        paired_difference_interval(shared, noise[:3], generator(0))


def test_the_interval_of_a_perfect_recovery_is_that_alone() -> None:
    possible = torch.rand(30, generator=generator(1)) + 0.1
    assert ratio_interval(possible, possible, generator(0)) == pytest.approx((1, 1))
    assert ratio_interval(0 * possible, possible, generator(0)) == pytest.approx((0, 0))


def test_the_interval_of_a_ratio_covers_it_about_as_often_as_it_says() -> None:
    rng = generator(0)
    hits = 0
    for _ in range(200):
        possible = torch.rand(40, generator=rng) + 0.5
        low, high = ratio_interval(possible * 0.3 + torch.randn(40, generator=rng) * 0.1, possible, rng)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_there_is_no_interval_of_a_ratio_where_there_is_no_ratio() -> None:
    assert all(math.isnan(end) for end in ratio_interval(torch.ones(1), torch.ones(1), generator(0)))
    assert all(math.isnan(end) for end in ratio_interval(torch.zeros(5), torch.zeros(5), generator(0)))

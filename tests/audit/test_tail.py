"""The tail of a sample: ranks above its threshold, a generalised Pareto distribution below, never too sure."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import genpareto
from torch import Tensor

from ppbench.audit.tail import FEWEST, fit_tail
from ppbench.errors import UserError
from ppbench.seeding import generator

NORMAL = torch.randn(200, generator=generator(0))


def test_above_the_threshold_p_values_are_ranks() -> None:
    tail = fit_tail(NORMAL)
    values = torch.tensor([tail.threshold, 0.0, 10.0])
    expected = [(1 + int((NORMAL.double() <= value).sum())) / 201 for value in values.double()]
    assert tail.p_values(values).tolist() == pytest.approx(expected)
    assert tail.size == 20


def test_below_it_they_are_those_of_the_distribution_and_go_on_beyond_the_sample() -> None:
    tail = fit_tail(NORMAL)
    values = tail.threshold - torch.tensor([0.1, 1.0, 5.0, 50.0]).double()
    expected = 21 / 201 * genpareto.sf((tail.threshold - values).numpy(), tail.shape, scale=tail.scale)
    assert tail.p_values(values).tolist() == pytest.approx(expected.tolist())
    assert (tail.p_values(values).diff() < 0).all()
    assert [tail.quantile(float(p)) for p in tail.p_values(values)] == pytest.approx(values.tolist())


def test_the_shape_of_a_heavy_tail_is_found_and_its_scale_is_widened_by_an_error() -> None:
    uniform = torch.rand(20_000, generator=generator(1)).double().numpy()
    tail = fit_tail(-torch.from_numpy(genpareto.ppf(uniform, 0.3, scale=2.0)))
    above = float(-tail.threshold)
    assert tail.shape == pytest.approx(0.3, abs=0.06)
    # What lies beyond a threshold t is distributed alike, of the scale s + shape t.
    assert tail.scale / (1 + tail.size**-0.5) == pytest.approx(2.0 + 0.3 * above, rel=0.1)


def test_light_tails_are_not_believed_and_equal_values_are_no_error() -> None:
    assert fit_tail(torch.rand(100, generator=generator(0))).shape == 0.1
    assert fit_tail(torch.ones(40)).p_values(torch.tensor([1.0, 0.5])).tolist() == pytest.approx([1, 0], abs=1e-9)


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng)


def heavy(*shape: int, rng: torch.Generator) -> Tensor:
    """Student's t with 5 degrees of freedom."""
    return normal(*shape, rng=rng) / (normal(5, *shape, rng=rng).square().mean(0)).sqrt()


def skewed(*shape: int, rng: torch.Generator) -> Tensor:
    return -(0.5 * normal(*shape, rng=rng)).exp()


@pytest.mark.parametrize("draw", [normal, heavy, skewed])
@pytest.mark.parametrize(("sample", "many"), [(60, 60), (144, 320), (1000, 1000)])
def test_the_least_of_many_p_values_rarely_accuses(draw: Callable[..., Tensor], sample: int, many: int) -> None:
    rng = generator(3)
    least = torch.stack([fit_tail(draw(sample, rng=rng)).p_values(draw(many, rng=rng)).min() for _ in range(400)])
    accused = int((least * many <= 0.05).sum())
    assert accused <= 33  # 5 % of 400 are 20, plus three standard errors


@pytest.mark.parametrize("sample", [60, 1000])
def test_what_lies_far_out_is_seen(sample: int) -> None:
    tails = [fit_tail(torch.randn(sample, generator=generator(seed))) for seed in range(40)]
    least = torch.stack([tail.p_values(torch.tensor([-12.0]))[0] for tail in tails])
    assert (least * sample <= 0.05).double().mean() > 0.9


def test_too_few_values_are_refused() -> None:
    with pytest.raises(UserError, match=f"at least {FEWEST} held-out images, but there are 19"):
        fit_tail(NORMAL[:19])

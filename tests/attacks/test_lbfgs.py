"""L-BFGS on many problems at once, against scipy on each alone."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der
from torch import Tensor

from ppbench.attacks._lbfgs import minimise
from ppbench.seeding import generator


def test_quadratic_problems_of_every_scale_are_solved_together() -> None:
    scales = torch.logspace(-3, 3, 10, dtype=torch.float64).repeat(4, 1) * torch.tensor([[1e-4], [1], [1e4], [1]])
    aims = torch.randn(4, 10, generator=generator(0), dtype=torch.float64)

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        return (scales * (point - aims).square()).sum(1) / 2, scales * (point - aims)

    found, values = minimise(evaluate, torch.zeros_like(aims), 300)
    assert values.max() < 1e-12
    torch.testing.assert_close(found[1:], aims[1:], atol=1e-4, rtol=0)


def rosenbrock(point: Tensor) -> tuple[Tensor, Tensor]:
    rows = point.numpy()
    return (torch.from_numpy(np.array([rosen(row) for row in rows])),
            torch.from_numpy(np.array([rosen_der(row) for row in rows])))


def test_the_valley_of_rosenbrock_takes_no_longer_than_scipy_s() -> None:
    starts = torch.randn(5, 6, generator=generator(1), dtype=torch.float64)
    theirs = [minimize(rosen, row, jac=rosen_der, method="L-BFGS-B", options={"gtol": 1e-8}) for row in starts.numpy()]
    _, values = minimise(rosenbrock, starts, 2 * max(one.nfev for one in theirs))
    good = torch.tensor([one.fun < 1e-8 for one in theirs])  # there is another minimum, far from the global one
    assert good.any()
    assert values[good].max() < 1e-8


def test_problems_do_not_touch_each_other() -> None:
    starts = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    together = minimise(rosenbrock, starts, 60)
    for number in range(3):
        alone = minimise(rosenbrock, starts[number : number + 1], 60)
        torch.testing.assert_close((together[0][number], together[1][number]), (alone[0][0], alone[1][0]),
                                   rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("outside", [torch.nan, torch.inf])
def test_steps_into_nowhere_are_taken_back(outside: float) -> None:
    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        root = (1 - point).sqrt()
        value = torch.where(point < 1, -root - point, torch.full_like(point, outside))
        return value.sum(1), torch.where(point < 1, 0.5 / root - 1, torch.full_like(point, torch.nan))

    found, _ = minimise(evaluate, torch.full((1, 1), -5.0, dtype=torch.float64), 100)
    assert found.item() == pytest.approx(0.75)


def test_enough_is_enough() -> None:
    calls = []

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return point.square().sum(1), 2 * point

    minimise(evaluate, torch.ones(2, 1, dtype=torch.float64), 50, enough=2.0)
    assert len(calls) == 1


def test_values_never_rise() -> None:
    starts = torch.randn(2, 6, generator=generator(5), dtype=torch.float64)
    values = torch.stack([minimise(rosenbrock, starts, steps)[1] for steps in range(1, 40)])
    assert (values.diff(dim=0) <= 0).all()

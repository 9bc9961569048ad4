"""Descent: the best iterate is kept, and what diverges does no harm."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppbench.attacks import _descent
from ppbench.attacks._descent import EVALUATIONS, Course, Descent, descend
from ppbench.partial import kept_in
from ppbench.seeding import generator


def point(value: float) -> nn.Module:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


def descended(net: nn.Module, judge: Callable[[], float], how: Descent, aim: float = 0.0) -> Course:
    """Minimise the square distance of a weight to `aim`."""
    batches: Iterator[Tensor] = iter(torch.full((how.steps, 1), aim))
    return descend(net, batches, lambda some: (net.weight - some).square().sum(), judge, how)


def test_what_is_minimised_is_found_and_told() -> None:
    net = point(1.0)
    course = descended(net, lambda: float(net.weight.detach().abs()), Descent(100, 0.05))
    assert float(net.weight.detach().abs()) < 0.05
    assert len(course.losses) == 1 + EVALUATIONS
    assert course.losses[0] == 1
    assert min(course.losses) == pytest.approx(float(net.weight.detach().abs()))


def test_the_iterate_that_is_best_on_what_is_held_out_stays() -> None:
    net = point(1.0)
    told, seen = iter([0.9, 0.5, 0.7, 0.8, 0.6, 0.55]), []

    def judge() -> float:
        seen.append(float(net.weight.detach()))
        return next(told)

    course = descended(net, judge, Descent(50, 0.05))
    assert (course.best, course.losses) == (10, [0.9, 0.5, 0.7, 0.8, 0.6, 0.55])
    assert float(net.weight.detach()) == seen[1] != seen[-1]


def test_no_iterate_better_than_the_start_leaves_the_start() -> None:
    net = point(1.0)
    course = descended(net, lambda: -float(net.weight.detach()), Descent(20, 0.05))
    assert (course.best, float(net.weight.detach())) == (0, 1.0)


@pytest.mark.parametrize(("losses", "best"), [([0.4], 0), ([0.9, 0.7, 0.4], 20)])
def test_where_nothing_is_left_to_learn_it_ends(losses: list[float], best: int) -> None:
    net, told = point(1.0), iter(losses)
    course = descended(net, lambda: next(told), Descent(50, 0.05, enough=0.5))
    assert (course.best, course.losses) == (best, losses)
    assert (float(net.weight.detach()) == 1.0) == (best == 0)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it(lost: float) -> None:
    net = point(1.0)
    batches = iter([0.0] * 10 + [lost] * 10)
    course = descend(net, batches, lambda some: (net.weight - some).square().sum(),
                     lambda: float(net.weight.detach().abs()), Descent(20, 0.05))
    assert course.best == 8
    assert 0 < float(net.weight.detach()) < 1
    assert len(course.losses) == 3


def test_a_held_out_loss_that_is_not_finite_ends_it() -> None:
    net = point(1.0)
    told = iter([0.9, 0.5, math.nan, 0.1])
    course = descended(net, lambda: next(told), Descent(50, 0.05))
    assert (course.best, course.losses) == (10, [0.9, 0.5])


def test_fewer_steps_than_evaluations() -> None:
    net = point(1.0)
    course = descended(net, lambda: float(net.weight.detach().abs()), Descent(2, 0.05))
    assert len(course.losses) == 3
    assert course.best == 2


class Killed(Exception):
    """What ends a descent from outside."""


@pytest.mark.parametrize("best", ["the last", "the first"])
def test_a_killed_descent_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: str) -> None:
    monkeypatch.setattr(_descent, "KEEP_EVERY", -1.0)
    taken: list[int] = []

    def train(until: int, aim: float = 0.5) -> tuple[nn.Module, Course]:
        """Fit a line to noise that is drawn batch by batch; be killed after so many steps."""
        net, rng, start = point(1.0), generator(3), len(taken)

        def batches() -> Iterator[Tensor]:
            for _ in range(40):
                yield aim + torch.randn(4, 1, generator=rng)

        def loss(some: Tensor) -> Tensor:
            if len(taken) - start == until:
                raise Killed
            taken.append(1)
            return (net.weight - some).square().sum()

        def judge() -> float:
            distance = float((net.weight.detach() - aim).abs())
            return distance if best == "the last" else -distance
        return net, descend(net, batches(), loss, judge, Descent(40, 0.05))

    undisturbed, course = train(99)
    assert (course.best == 0) == (best == "the first")
    with kept_in(tmp_path):
        for more in (13, 17):
            with pytest.raises(Killed):
                train(more)
        taken.clear()
        resumed, found = train(99)
        assert len(taken) == 40 - 13 - 17
        assert found == course
        assert torch.equal(resumed.weight, undisturbed.weight)  # type: ignore[arg-type]
        train(99, aim=0.7)  # other data: nothing of the above is its own
        assert len(taken) == 10 + 40


def test_one_descent_goes_on_from_another() -> None:
    first = Course([0.9, 0.5, 0.6], best=5, steps=10)
    assert first.then(Course([0.5, 0.7, 0.4], best=8, steps=8)) == Course([0.9, 0.5, 0.6, 0.7, 0.4], best=18, steps=18)
    assert first.then(Course([0.5, 0.7], best=0, steps=8)).best == 5

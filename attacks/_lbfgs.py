"""Limited-memory BFGS on many independent problems at once, each with a step length of its own.

Source: Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization", with backtracking until
the Armijo condition holds. One evaluation of all problems together is one step of each: of some it is accepted, others
shorten their step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 20
DECREASE = 1e-4  # of the Armijo condition
SHORTER = 0.5
SHORTEST = 1e-12  # step below which a problem begins again at steepest descent
CURVATURE = 1e-12  # relative, that a pair must show to be remembered

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]  # `[problems, n]` -> values `[problems]`, slopes `[problems, n]`


@dataclass
class _Memory:
    """Pairs of moves and changes of slope, `[memory, problems, n]`, the newest first; weight 0 = none."""

    moves: Tensor
    changes: Tensor
    weights: Tensor

    def push(self, move: Tensor, change: Tensor, accepted: Tensor) -> None:
        """Remember a pair of those problems whose step was accepted and showed curvature."""
        product = (move * change).sum(1)
        good = accepted & (product > CURVATURE * change.square().sum(1))
        for store, new in ((self.moves, move), (self.changes, change)):
            store[:, good] = torch.cat([new[None, good], store[:-1, good]])
        weight = 1 / product.where(good, torch.ones_like(product))
        self.weights[:, good] = torch.cat([weight[None, good], self.weights[:-1, good]])

    def forget(self, which: Tensor) -> None:
        """Drop the pairs of some problems."""
        self.weights[:, which] = 0

    def direction(self, slopes: Tensor) -> Tensor:
        """Return the quasi-Newton direction of descent, by the two-loop recursion."""
        found, factors = slopes.clone(), []
        for move, change, weight in zip(self.moves, self.changes, self.weights, strict=True):
            factor = weight * (move * found).sum(1)
            found -= factor[:, None] * change
            factors.append(factor)
        scale = self.changes[0].square().sum(1) * self.weights[0]
        found /= scale.where(scale > 0, torch.ones_like(scale))[:, None]
        pairs = list(zip(self.moves, self.changes, self.weights, factors, strict=True))
        for move, change, weight, factor in reversed(pairs):
            found += (factor - weight * (change * found).sum(1))[:, None] * move
        return -found


def minimise(evaluate: Evaluate, start: Tensor, steps: int, enough: float = -math.inf) -> tuple[Tensor, Tensor]:
    """Minimise all problems.

    Args:
        evaluate: values and slopes of all problems; values may be infinite or NaN.
        start: `[problems, n]`, where all values are finite.
        steps: evaluations, the first included.
        enough: value at which a problem needs no further steps; all done ends the search.

    Returns:
        The best points `[problems, n]` and their values `[problems]`.
    """
    point = start.clone()
    value, slope = evaluate(point)
    shape = (MEMORY, *point.shape)
    memory = _Memory(point.new_zeros(shape), point.new_zeros(shape), point.new_zeros(shape[:2]))
    direction = -slope
    length = (1 / slope.abs().sum(1).clamp(min=1e-30)).clamp(max=1)
    for _ in range(steps - 1):
        if (value <= enough).all():
            break
        trial = point + length[:, None] * direction
        found, steep = evaluate(trial)
        falls = (direction * slope).sum(1)
        accepted = found.isfinite() & (found <= value + DECREASE * length * falls) & steep.isfinite().all(1)
        memory.push(trial - point, steep - slope, accepted)
        point = torch.where(accepted[:, None], trial, point)
        slope = torch.where(accepted[:, None], steep, slope)
        value = torch.where(accepted, found, value)
        stuck = ~accepted & (length * SHORTER < SHORTEST)
        memory.forget(stuck)
        direction = memory.direction(slope)
        uphill = (direction * slope).sum(1) >= 0
        memory.forget(uphill)
        direction = torch.where((uphill | stuck)[:, None], -slope, direction)
        first = (1 / slope.abs().sum(1).clamp(min=1e-30)).clamp(max=1)
        fresh = torch.where(memory.weights[0] > 0, torch.ones_like(first), first)
        length = torch.where(accepted | stuck | uphill, fresh, length * SHORTER)
    return point, value

"""The search for images that explain gradients: many starts and problems as one batch, the worse starts culled."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attacks import _gradient_terms as terms
from ppbench.attacks._features import Features
from ppbench.attacks._gradient_problem import Explained, Explainer, Problem
from ppbench.attacks._gradient_settings import Settings
from ppbench.attacks._lbfgs import minimise
from ppbench.attacks._spectrum import Spectrum
from ppbench.device import computes_bfloat16
from ppbench.partial import partial

IMAGES_AT_ONCE = 64  # in a pass: bounds the memory
WEIGHTS_AT_ONCE = 2**24  # given gradients' values that are compared in a pass, beside one problem
EXACT = 0.2  # share of the steps, the last ones, that are never taken in bfloat16
FALLS, MILESTONES = 0.1, (3 / 8, 5 / 8, 7 / 8)
REACH = 8  # a restart's image may be shifted by one part in so many of its side
MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's Adam calls them
ENOUGH = 1e-14  # value of the objective below which L-BFGS stops


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        images: `[problems, size, c, h, w]`.
        values: `[problems]`, what was minimised.
    """

    images: Tensor
    values: Tensor


@dataclass(frozen=True)
class Aim:
    """What is minimised, of images `[problems, size, c, h, w]`.

    Attributes:
        settings: weights.
        known: inputs of the last layer as its gradients tell them; None = unknown.
        patch: side of a vision transformer's patches; None = there are none.
        lossy: a defense took part of the gradients away.
        spectrum: of images like those that are sought: steps are taken in its coefficients, by how these vary at the
            start, all alike at the end; None = in pixels.
        rng: draws noise.
    """

    settings: Settings
    rng: torch.Generator
    known: Features | None = None
    patch: int | None = None
    lossy: bool = False
    spectrum: Spectrum | None = None

    def __getitem__(self, rows: Tensor) -> "Aim":
        return replace(self, known=self.known[rows]) if self.known is not None else self

    def value(self, explained: Explained, images: Tensor, rate: float = 1.0) -> Tensor:
        """Return the values `[problems]` at a share of the highest learning rate."""
        how = self.settings
        found = explained.cosine() if how.objective == "cosine" else explained.euclidean()
        if how.tv:
            variation = terms.opponent_variation if how.opponents else terms.total_variation
            weighed = how.tv * (how.tv_end + (1 - how.tv_end) * rate) * variation(images)
            found = found * (1 + weighed) if how.relative else found + weighed
        if how.lossy_tv and self.lossy:
            found = found + how.lossy_tv * terms.total_variation(images)
        if how.norm:
            found = found + how.norm * terms.from_grey(images)
        if how.seams and self.patch is not None:
            found = found + how.seams * terms.seams(images, self.patch)
        if how.statistics and explained.strays is not None:
            found = found + how.statistics * explained.strays()
        if how.features and explained.features is not None and self.known is not None:
            found = found + how.features * rate * self.known.apart(explained.features)
        if how.positions and explained.positions is not None:
            found = found + how.positions * explained.positions
        return found


@dataclass
class State:
    """Where a search is.

    Attributes:
        images: `[problems, size, c, h, w]`.
        logits: `[problems, size, classes]` of the labels, where these are optimised.
        moments: Adam's, of images and of logits, mean and mean square each, by problem; empty before its first step.
    """

    images: Tensor
    logits: Tensor | None = None
    moments: tuple[Tensor, ...] = ()

    def __getitem__(self, rows: Tensor) -> "State":
        return State(self.images[rows], None if self.logits is None else self.logits[rows],
                     tuple(one[rows] for one in self.moments))

    def goals(self, problem: Problem) -> Tensor:
        """Return labels, or shares of classes."""
        return problem.labels if self.logits is None else self.logits.softmax(-1)


def search(problem: Problem, starts: list[State], aim: Aim) -> Found:
    """Search from one or several starts for each problem; of several, the better halves go on, or the best is returned.
    """
    how, first = aim.settings, 0
    if len(starts) > 1:
        marks = culls(len(starts), how)
        rows = torch.arange(len(problem)).split(1)
        found = [_best_start(problem[one], [start[one] for start in starts], aim[one], marks) for one in rows]
        first = marks[-1]
        if first == how.steps:
            return joined([one[1] for one in found])
        starts = [_stacked([one[0] for one in found])]
    parts = torch.arange(len(problem)).split(at_once(problem))
    return joined([descend(problem[some], starts[0][some], aim[some], first, how.steps)[1] for some in parts])


def descend(problem: Problem, state: State, aim: Aim, first: int, last: int) -> tuple[State, Found]:
    """Take steps `first` to `last`; return where they end, and the best that was met on the way."""
    if aim.settings.optimiser == "l-bfgs":
        return _by_lbfgs(problem, state, aim)
    return _by_adam(problem, state, aim, first, last)


def culls(starts: int, how: Settings) -> list[int]:
    """Return the steps after which the worse half of so many starts is dropped, evenly up to the share `cull`."""
    if how.group or how.optimiser == "l-bfgs" or how.cull >= 1:
        return [how.steps]  # all go on to the end
    rounds = math.ceil(math.log2(starts))
    return [math.ceil(how.cull * how.steps * (1 + done) / rounds) for done in range(rounds)]


def _best_start(problem: Problem, starts: list[State], aim: Aim, marks: list[int]) -> tuple[State, Found]:
    """Try all starts of one problem, fewer after each mark; return the best one's state, and what it found."""
    states, first = _stacked(starts), 0
    count = len(starts) if aim.settings.group else max(1, IMAGES_AT_ONCE // problem.labels.shape[1])
    for mark in marks:
        found = [descend(problem.again(len(rows)), states[rows], aim, first, mark)
                 for rows in torch.arange(len(states.images)).split(count)]
        met, first = joined([one[1] for one in found]), mark
        kept = met.values.argsort()[: 1 if mark == marks[-1] else math.ceil(len(met.values) / 2)]
        states = _stacked([one[0] for one in found])[kept]
    return states, Found(met.images[kept], met.values[kept])


def _by_adam(problem: Problem, state: State, aim: Aim, first: int, last: int) -> tuple[State, Found]:
    how = aim.settings
    exact = problem.explainer()
    fast = exact
    if how.fast and problem.taped and computes_bfloat16(state.images.device.type):
        fast = problem.explainer(torch.bfloat16)
    before, state = state, State(state.images.clone(), None if state.logits is None else state.logits.clone())
    spectrum, moves = aim.spectrum, torch.zeros_like(state.images)
    variables = [state.images if spectrum is None else moves, *([] if state.logits is None else [state.logits])]
    optimiser = torch.optim.Adam([{"params": [one]} for one in variables])
    for one, mean, square in zip(variables, before.moments[::2], before.moments[1::2], strict=bool(before.moments)):
        optimiser.state[one] = {"step": torch.tensor(float(first)),
                                **dict(zip(MOMENTS, (mean.clone(), square.clone()), strict=True))}
    best = Found(state.images.clone(), torch.full((len(problem),), math.inf))
    for step in range(first, last + 1):
        explainer = fast if step < min(last, (1 - EXACT) * how.steps) else exact
        rate = rate_at(step, how)
        values, slopes = _evaluated(explainer, state, aim, rate)
        if explainer is exact:
            best = better(best, Found(state.images, values))
        if step == last:
            break
        rate *= how.learning_rate
        if spectrum is not None:
            sizes = spectrum.scales(1 - step / how.steps)
            slopes[0] = spectrum.coefficients(slopes[0]) * sizes
        slopes[0] = signed(slopes[0] + how.noise * rate * torch.randn(slopes[0].shape, generator=aim.rng)
                            if how.noise else slopes[0], step, how)
        for group, one, slope in zip(optimiser.param_groups, variables, slopes, strict=True):
            group["lr"], one.grad = rate, slope
        optimiser.step()
        if spectrum is not None:
            state.images += spectrum.images(moves * sizes)
            moves.zero_()
        if how.boxed:
            state.images.clamp_(0, 1)
        partial().report(step + 1, how.steps, "steps")
    kept = [optimiser.state[one] for one in variables]
    return replace(state, moments=tuple(one[name] for one in kept for name in MOMENTS if one)), best


def _by_lbfgs(problem: Problem, state: State, aim: Aim) -> tuple[State, Found]:
    explainer, shape = problem.explainer(torch.float64), state.images.shape
    size = state.images[0].numel()

    def unpacked(flat: Tensor) -> State:
        logits = flat[:, size:].reshape(state.logits.shape) if state.logits is not None else None
        return State(flat[:, :size].reshape(shape), logits)

    def evaluate(flat: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = _evaluated(explainer, unpacked(flat), aim)
        return values, torch.cat([slope.flatten(1) for slope in slopes], 1)

    parts = [state.images] if state.logits is None else [state.images, state.logits]
    found, values = minimise(evaluate, torch.cat([part.flatten(1) for part in parts], 1).double(),
                             aim.settings.steps, ENOUGH)
    end = unpacked(found)
    return end, Found(end.images.float(), values.float())


def _evaluated(explainer: Explainer, state: State, aim: Aim, rate: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Return the values `[problems]` and their slopes; a slope that is not finite is none."""
    parts = [part.detach().requires_grad_() for part in (state.images, state.logits) if part is not None]
    now = State(parts[0], parts[1] if len(parts) > 1 else None)
    with torch.enable_grad():
        values = aim.value(explainer(now.images, now.goals(explainer.problem)), now.images, rate)
        if aim.settings.group:
            side = min(now.images.shape[3:])
            consensus = terms.registered(now.images.detach(), max(1, side // REACH))
            values = values + aim.settings.group * (now.images - consensus).square().flatten(1).mean(1)
        slopes = torch.autograd.grad(values.sum(), parts)
    return values.detach(), [slope.nan_to_num(0, 0, 0) for slope in slopes]


def signed(slopes: Tensor, step: int, how: Settings) -> Tensor:
    """Return what Adam is given in place of slopes: these, their signs, or signs that soften to the end."""
    if how.sign == "none":
        return slopes
    if how.sign == "hard":
        return slopes.sign()
    left = 1 - step / how.steps
    return (slopes * left).tanh() / left


def rate_at(step: int, how: Settings) -> float:
    """Return the share of the highest learning rate."""
    if step < how.warm_up:
        return (step + 1) / how.warm_up
    if how.schedule == "steps":
        return FALLS ** sum(step >= part * how.steps for part in MILESTONES)
    return 0.5 + 0.5 * math.cos(math.pi * step / how.steps) if how.schedule == "cosine" else 1.0


def better(first: Found, second: Found) -> Found:
    """Return whichever is less, problem by problem; the later where they are equal."""
    wins = second.values <= first.values
    return Found(torch.where(wins[:, None, None, None, None], second.images, first.images),
                 torch.where(wins, second.values, first.values))


def at_once(problem: Problem) -> int:
    """Return how many problems fit into a pass."""
    return max(1, min(IMAGES_AT_ONCE // problem.labels.shape[1], WEIGHTS_AT_ONCE // problem.weights()))


def _stacked(states: list[State]) -> State:
    logits = [state.logits for state in states if state.logits is not None]
    moments = tuple(torch.cat(parts) for parts in zip(*(state.moments for state in states), strict=True))
    return State(torch.cat([state.images for state in states]), torch.cat(logits) if logits else None, moments)


def joined(found: list[Found]) -> Found:
    """Put what was found of several problems together."""
    return Found(torch.cat([one.images for one in found]), torch.cat([one.values for one in found]))

"""Learned inverters: what a network learns from pairs on top of the linear estimate, and how it is used.

An estimate is `clamp(base + residual)`: `base` is the linear MMSE estimate from the same pairs, the residual comes from
a network whose last layer starts at zero. Of all iterates the best on pairs held out is kept, the first one included,
so that on them an inverter is never worse than its base.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks import _ridge
from ppbench.attacks._affine import mirrors
from ppbench.attacks._descent import Course, Descent, copied, descend
from ppbench.attacks._pairs import (
    fixed,
    halves,
    held_out,
    learnt,
    mirrored,
    moved,
    protected_anew,
    telling_pairs,
    with_a_key_each,
)
from ppbench.attacks._simulate import ANYONE, Simulated, joined, named, simulate, targets_by_key
from ppbench.blocks import cut
from ppbench.bounds import above_zero, at_least
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Pieces
from ppbench.metrics import SSIM_WINDOW, ssim
from ppbench.seeding import seeded, spawn
from ppbench.view import View

MAX_HELD = 2**20  # plain values on which iterates are compared
PASSES = 200  # at most, over fixed pairs
GAIN = 0.1  # of a network's output: Adam's first steps, of equal size whatever the gradient, would spoil the base
_AT_ONCE = 2**18  # plain values in a forward pass without gradients


@dataclass(frozen=True)
class Problem:
    """What a network is built for.

    Attributes:
        image: (C, H, W) of the plain images.
        released: (c, h, w) of the released ones.
        classes: number of classes; the label -1 = unknown.
        pieces: what the defense does to blocks.
        free: the order of the released blocks carries nothing; the network must not read it.
    """

    image: Shape
    released: Shape
    classes: int
    pieces: Pieces | None
    free: bool


@dataclass(frozen=True)
class Inverter:
    """A network on top of a linear estimate."""

    net: nn.Module
    base: Tensors
    problem: Problem

    def raw(self, released: Tensor, labels: Tensor) -> Tensor:
        """Estimate plain images `[n, C, H, W]`, not yet clamped to [0, 1]."""
        with torch.no_grad(), torch.autocast(released.device.type, enabled=False):
            base = _ridge.apply(self.base, order_free(released, self.problem), self.problem.image)
        residual: Tensor = self.net(released, base, labels)
        return base + GAIN * residual

    @torch.no_grad()
    def estimate(self, released: Tensor, labels: Tensor) -> Tensor:
        """Estimate plain images `[n, C, H, W]` in [0, 1] from released ones `[n, c, h, w]` and labels `[n]`."""
        self.net.eval()
        rows = max(1, _AT_ONCE // math.prod(self.problem.image))
        return torch.cat([self.raw(some, theirs).clamp(0, 1)
                          for some, theirs in zip(released.split(rows), labels.split(rows), strict=True)])


@dataclass(frozen=True)
class InverterPrior(Prior):
    """Train a network on plain and released images: with keys of one's own, on known pairs, or both.

    Known pairs count where their key serves many images. Where all public images are such pairs, only these are used.
    Where a few are, what was learnt with own keys and then from them competes with what was learnt from them alone, on
    pairs held out.

    Attributes:
        steps: optimiser steps.
        batch: pairs in a step.
        width: channels or token width of the network.
        depth: blocks of the network.
        rate: highest learning rate (of `descend`).
        amp: learn in bfloat16.
        client: whose pairs are learnt from, where clients have keys of their own; -1 = everyone's.
    """

    needs = frozenset({"public", "algorithm", "pairs"})
    steps: int
    batch: int
    width: int
    depth: int
    rate: float
    amp: bool = False
    client: int = ANYONE

    @abstractmethod
    def network(self, problem: Problem) -> nn.Module:
        """Build the network (released, base, labels) -> residual, zero at the start; draws from global state."""

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Train under the regime that the view allows; return weights (`net.*`, `base.*`), `objective` and facts."""
        # library initialisers draw from global state: fenced off, and seeded from rng
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            pairs = telling_pairs(view, self.client)
            found = []
            if pairs is None or len(pairs) < len(view.public):
                found.append(self._from_own_keys(view, pairs, own))
            if pairs is not None:
                found.append(self._from_pairs(view, pairs, own))
        return min(found, key=lambda one: float(one["objective"][1:].min()))

    def load(self, found: Tensors, view: View) -> Inverter:
        """Rebuild what `train` found."""
        problem = problem_of(view, free=bool(found["free"]))
        with seeded(0):
            net = self.network(problem)
        net.load_state_dict(_under(found, "net."))
        return Inverter(net.to(found["objective"].device).eval(), _under(found, "base."), problem)

    def _from_own_keys(self, view: View, pairs: Simulated | None, rng: torch.Generator) -> Tensors:
        """Learn from public images protected with one's own keys, then from the few known pairs, if any."""
        view = with_a_key_each(view)
        if view.algorithm.defense.partnered:
            training, others = view.public[learnt(len(view.public))], view.public[held_out(len(view.public))]
            held = simulate(view, others, spawn(rng))
            some = joined([simulate(view, images, spawn(rng)) for images in (training, mirrored(training))])
            steps = self.steps
            batches = protected_anew(view, training, self.batch, steps, rng)
        else:
            some, held = halves(simulate(view, view.public, spawn(rng)))
            steps = self._fewer(some)
            batches = fixed(some, self.batch, steps, rng)
        inverter = self._start(problem_of(view, free=moved(view)), some, held)
        course = self._descend(inverter, batches, steps, held)
        if pairs is None:
            return _stored(inverter, held, course, "own keys")
        some, held = halves(pairs)
        steps = self._fewer(some)
        tuning = self._descend(inverter, fixed(some, self.batch, steps, rng), steps, held)
        return _stored(inverter, held, tuning, f"own keys ({course.best} steps), then {len(pairs)} pairs")

    def _from_pairs(self, view: View, pairs: Simulated, rng: torch.Generator) -> Tensors:
        """Learn from known pairs alone: where a key serves many images, even the order of moved blocks tells."""
        some, held = halves(pairs)
        inverter = self._start(problem_of(view, free=False), some, held)
        steps = self._fewer(some)
        course = self._descend(inverter, fixed(some, self.batch, steps, rng), steps, held)
        return _stored(inverter, held, course, f"{len(pairs)} pairs")

    def _fewer(self, some: Simulated) -> int:
        """Return the steps worth taking on so many fixed pairs."""
        return min(self.steps, math.ceil(PASSES * len(some) / min(self.batch, len(some))))

    def _start(self, problem: Problem, some: Simulated, held: Simulated) -> Inverter:
        base = _ridge.fit(order_free(some.released, problem), some.plain,
                          order_free(held.released, problem), held.plain)
        return Inverter(self.network(problem).to(some.plain.device), base, problem)

    def _descend(self, inverter: Inverter, batches: Iterator[Simulated], steps: int, held: Simulated) -> Course:
        """Minimise the loss in place, and leave the iterate that was best on the held pairs in the network."""
        held = _judging(held)

        def loss(some: Simulated) -> Tensor:
            estimates = inverter.raw(some.released, some.labels).float()
            with torch.autocast(estimates.device.type, enabled=False):  # bfloat16 would cancel in SSIM
                return loss_of(estimates, some.plain).mean()

        def judge() -> float:
            return float(loss_of(inverter.estimate(held.released, held.labels), held.plain).mean())

        return descend(inverter.net, batches, loss, judge, Descent(steps, self.rate, self.amp))


@dataclass(frozen=True)
class InverterAttack(Attack):
    """Apply an inverter that was trained as a prior; the fields are those of its training."""

    steps: int
    batch: int
    width: int
    depth: int
    rate: float
    amp: bool

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "width", "depth")
        above_zero(self, "rate")

    @abstractmethod
    def prior(self) -> InverterPrior:
        """Name the inverter to train."""

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the inverter, which learns from public images and known pairs; one for each key that these tell of."""
        return {named("inverter", client): replace(self.prior(), client=client) for client in targets_by_key(view)}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the inverter's estimate from each target's released image (and its label, where known)."""
        labels = known_labels(view)
        images = torch.empty(view.n_targets, *view.image_shape)
        notes, courses = [], []
        for client, mine in targets_by_key(view).items():
            found = priors[named("inverter", client)]
            images[mine] = estimated(self.prior().load(found, view), view, view.images[mine], labels[mine])
            notes.append(described(found))
            courses.append(found["objective"].cummin(0).values[[0, -1]])  # the best iterate is kept
        return Reconstruction(images, aligned=view.has_partner, note=" | ".join(dict.fromkeys(notes)),
                              objective=torch.stack(courses, 1))


def known_labels(view: View) -> Tensor:
    """Return the targets' labels `[n]` int64, -1 where they are not granted."""
    return view.labels if "labels" in view.granted else torch.full((view.n_targets,), -1)


def estimated(inverter: Inverter, view: View, released: Tensor, labels: Tensor) -> Tensor:
    """Return estimates `[n, C, H, W]` in [0, 1]: of two, the mean, where mirrored images are released mirrored."""
    found = inverter.estimate(released, labels)
    if not mirrors(view):
        return found
    return (found + inverter.estimate(released.flip(3), labels).flip(3)) / 2


def problem_of(view: View, free: bool) -> Problem:
    """Say what a network has to take and give."""
    return Problem(view.image_shape, view.released_shape, view.classes,
                   view.algorithm.defense.pieces(view.image_shape), free)


def order_free(released: Tensor, problem: Problem) -> Tensor:
    """Return the part of released images that a linear estimate can use: the mean block where their order is random.

    Under uniformly random orders the best linear estimate depends on no more than the mean over the blocks.
    """
    if not problem.free or problem.pieces is None or problem.released != problem.image:
        return released
    return cut(released, problem.pieces.size).mean(1)


def loss_of(estimates: Tensor, plain: Tensor) -> Tensor:
    """Return mean absolute error plus 1 - SSIM for each pair, `[n]`; below the side of its window no SSIM."""
    error = (estimates - plain).abs().flatten(1).mean(1)
    if min(plain.shape[2:]) < SSIM_WINDOW:
        return error
    return error + 1 - ssim(estimates, plain, torch.float32)


def _under(found: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def _judging(held: Simulated) -> Simulated:
    return held[torch.arange(min(len(held), max(1, MAX_HELD // held.plain[0].numel())))]


def _stored(inverter: Inverter, held: Simulated, course: Course, regime: str) -> Tensors:
    plain = _judging(held).plain
    flat = float(loss_of(inverter.base["mean"].expand_as(plain), plain).mean())
    facts = {"objective": torch.tensor([flat, *course.losses]), "free": torch.tensor(inverter.problem.free),
             "best": torch.tensor([course.best, course.steps]),
             "regime": torch.tensor(list(regime.encode()), dtype=torch.uint8)}
    net = {f"net.{name}": value for name, value in copied(inverter.net).items()}
    return facts | net | {f"base.{name}": value for name, value in inverter.base.items()}


def described(found: Tensors) -> str:
    """Say how an inverter was trained, and what it is worth on held-out pairs."""
    best, steps = found["best"].tolist()
    flat, base, *_ = losses = found["objective"].tolist()
    estimator = _ridge.describe(_under(found, "base."))
    return (f"{bytes(found['regime'].tolist()).decode()}; step {best} of {steps}; held-out loss {flat:.3f} mean image, "
            f"{base:.3f} {estimator}, {min(losses[1:]):.3f} learned")

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
from ppbench.attacks._affine import mirrors
from ppbench.attacks._descent import MOST_STEPS, Course, Descent, copied, descend
from ppbench.attacks._lessons import Lesson, fixed, lesson, protected_anew, rehearsed
from ppbench.attacks._linear_map import DRAWS, LinearMap, from_own_keys, from_pairs, with_own_keys
from ppbench.attacks._pairs import (
    as_far_as_pairs_tell,
    halves,
    held_out,
    learnt,
    moved,
    targets_by_key,
    telling_pairs,
    with_a_key_each,
)
from ppbench.attacks._simulate import ANYONE, Simulated, named, simulate
from ppbench.bounds import above_zero, at_least, between
from ppbench.codec import Tensors, under
from ppbench.data import Images, Shape
from ppbench.defense import Pieces
from ppbench.metrics import SSIM_WINDOW, ssim
from ppbench.seeding import generator, seeded, spawn
from ppbench.view import View

MAX_HELD = 2**20  # plain values on which iterates are compared
PASSES = 200  # at most, over fixed pairs
ENOUGH = 1e-3  # held-out loss below which nothing is left to learn: a quarter of a grey level
GAIN = 0.1  # of a network's output: Adam's first steps, of equal size whatever the gradient, would spoil the base
COMPARED, COMPARED_VALUES = 32, 2**19  # public images, and values of them, at most on which estimates are compared
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
    base: LinearMap
    problem: Problem

    def raw(self, released: Tensor, first: Tensor, labels: Tensor) -> Tensor:
        """Correct first estimates `[n, C, H, W]`; not yet clamped to [0, 1]."""
        residual: Tensor = self.net(released, first, labels)
        return first + GAIN * residual

    @torch.no_grad()
    def estimate(self, released: Tensor, labels: Tensor) -> Tensor:
        """Estimate plain images `[n, C, H, W]` in [0, 1] from released ones `[n, c, h, w]` and labels `[n]`."""
        return self.refined(released, self.base.apply(released, self.problem.image), labels)

    @torch.no_grad()
    def refined(self, released: Tensor, first: Tensor, labels: Tensor) -> Tensor:
        """Correct first estimates `[n, C, H, W]` to values in [0, 1], without gradients, a few at a time."""
        self.net.eval()
        rows = max(1, _AT_ONCE // math.prod(self.problem.image))
        parts = zip(released.split(rows), first.split(rows), labels.split(rows), strict=True)
        return torch.cat([self.raw(*part).clamp(0, 1) for part in parts])


@dataclass(frozen=True)
class InverterPrior(Prior):
    """Train a network on plain and released images: with keys of one's own, on known pairs, or both.

    Known pairs count where their key serves many images. What they teach a linear map is rehearsed under keys of one's
    own, on which a network learns what such a map errs by, and then on the pairs themselves. Where they are few, this
    competes on pairs held out with a network that learnt with a key for every image, and then from the pairs.

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

    def seen(self, view: View) -> View:
        """Cut a view down to what the network learns from: pairs only where they tell something."""
        return as_far_as_pairs_tell(super().seen(view), self.client)

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Train under the regime that the view allows; return weights (`net.*`, `base.*`), `objective` and facts."""
        # library initialisers draw from global state: fenced off, and seeded from rng
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            pairs = telling_pairs(view, self.client)
            if pairs is None:
                return _stored(self._from_own_keys(view, own), "own keys")
            some, held = halves(pairs)
            if len(pairs) >= len(view.public):
                return self._from_pairs(view, from_pairs(None, some, held), some, held, own)
            first = self._from_own_keys(view, own)
            base = from_pairs(first.inverter.base, some, held)
            found = [self._tuned(first, some, held, own)]
            if base.known is not None:
                found.append(self._from_pairs(view, base, some, held, own))
        return min(found, key=lambda one: float(one["objective"][1:].min()))

    def load(self, found: Tensors, view: View) -> Inverter:
        """Rebuild what `train` found."""
        problem = problem_of(view, free=bool(found["free"]))
        with seeded(0):
            net = self.network(problem)
        net.load_state_dict(under(found, "net."))
        base = LinearMap.from_tensors(under(found, "base."))
        return Inverter(net.to(found["objective"].device).eval(), base, problem)

    def _from_own_keys(self, view: View, rng: torch.Generator) -> "_Trained":
        """Learn from public images protected with one's own keys."""
        if view.algorithm.defense.partnered:
            some, held = with_own_keys(view, DRAWS, rng)
        else:
            some, held = halves(simulate(view, view.public, spawn(rng)))
        base = from_own_keys(view, some, held)
        inverter = self._start(problem_of(view, free=moved(view)), base, held)
        if not view.algorithm.defense.partnered:
            return self._from_given(inverter, some, held, rng)
        training = view.public[learnt(len(view.public))]
        lessons = protected_anew(with_a_key_each(view), base, training, self.batch, self.steps, rng)
        return self._descend(inverter, lessons, self.steps, lesson(base, held))

    def _tuned(self, first: "_Trained", some: Simulated, held: Simulated, rng: torch.Generator) -> Tensors:
        """Go on from known pairs with what was learnt with one's own keys."""
        tuned = self._from_given(first.inverter, some, held, rng)
        return _stored(tuned, f"own keys ({first.course.best} steps), then {len(some) + len(held)} pairs")

    def _from_pairs(self, view: View, base: LinearMap, some: Simulated, held: Simulated,
                    rng: torch.Generator) -> Tensors:
        """Learn what a map of known pairs errs by, under one's own keys, and then from the pairs.

        Where a key serves many images, even the order of moved blocks tells.
        """
        count = len(some) + len(held)
        inverter = self._start(problem_of(view, free=False), base, held)
        lessons = rehearsed(view, base, count, self.batch, self.steps, rng)
        first = self._descend(inverter, lessons, self.steps, lesson(base, held))
        tuned = self._from_given(inverter, some, held, rng)
        return _stored(replace(tuned, course=first.course.then(tuned.course)),
                       f"{count} pairs, rehearsed under own keys")

    def _from_given(self, inverter: Inverter, some: Simulated, held: Simulated, rng: torch.Generator) -> "_Trained":
        """Learn from given pairs, as many steps as they are worth."""
        steps = self._fewer(some)
        lessons = fixed(lesson(inverter.base, some), self.batch, steps, rng)
        return self._descend(inverter, lessons, steps, lesson(inverter.base, held))

    def _fewer(self, some: Simulated) -> int:
        """Return the steps worth taking on so many fixed pairs."""
        return min(self.steps, math.ceil(PASSES * len(some) / min(self.batch, len(some))))

    def _start(self, problem: Problem, base: LinearMap, held: Simulated) -> Inverter:
        return Inverter(self.network(problem).to(held.plain.device), base, problem)

    def _descend(self, inverter: Inverter, lessons: Iterator[Lesson], steps: int, held: Lesson) -> "_Trained":
        """Minimise the loss in place, and leave the iterate that was best on the held pairs in the network."""
        held = held[torch.arange(min(len(held), max(1, MAX_HELD // held.first[0].numel())))]

        def loss(some: Lesson) -> Tensor:
            estimates = inverter.raw(some.pairs.released, some.first, some.pairs.labels).float()
            with torch.autocast(estimates.device.type, enabled=False):  # bfloat16 would cancel in SSIM
                return loss_of(estimates, some.pairs.plain).mean()

        def judge() -> float:
            found = inverter.refined(held.pairs.released, held.first, held.pairs.labels)
            return float(loss_of(found, held.pairs.plain).mean())

        course = descend(inverter.net, lessons, loss, judge, Descent(steps, self.rate, self.amp, ENOUGH))
        flat = loss_of(inverter.base.mean.expand_as(held.pairs.plain), held.pairs.plain).mean()
        return _Trained(inverter, course, float(flat))


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
        between(self, 1, MOST_STEPS, "steps")
        at_least(self, 1, "batch", "width", "depth")
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
    """Return estimates `[n, C, H, W]` in [0, 1]: the mean over the ways in which releases of mirrored images mirror.

    As many of these are taken as serve public images that nothing was learnt from: to be turned upside down suits
    textures, and not faces.
    """
    axes = mirrors(view)
    if axes:
        tests = to_compare_on(view)
        seen = view.algorithm.protect(tests, generator(0)).images
        losses = [float(loss_of(_mirrored(inverter, seen, tests.labels, axes[:count]), tests.pixels).mean())
                  for count in range(len(axes) + 1)]
        axes = axes[: losses.index(min(losses))]
    return _mirrored(inverter, released, labels, axes)


def to_compare_on(view: View) -> Images:
    """Return public images that nothing is learnt from, as many as are needed to tell estimates apart."""
    count = min(COMPARED, COMPARED_VALUES // math.prod(view.image_shape))
    return view.public[held_out(len(view.public))][:max(1, count)]


def _mirrored(inverter: Inverter, released: Tensor, labels: Tensor, axes: list[int]) -> Tensor:
    """Return the mean of the estimates for all ways to mirror along the axes."""
    ways: list[list[int]] = [[]]
    for axis in axes:
        ways += [[*way, axis] for way in ways]
    return torch.stack([inverter.estimate(released.flip(way), labels).flip(way) for way in ways]).mean(0)


def problem_of(view: View, free: bool) -> Problem:
    """Say what a network has to take and give."""
    return Problem(view.image_shape, view.released_shape, view.classes,
                   view.algorithm.defense.pieces(view.image_shape), free)


def loss_of(estimates: Tensor, plain: Tensor) -> Tensor:
    """Return mean absolute error plus 1 - SSIM for each pair, `[n]`; below the side of its window no SSIM."""
    error = (estimates - plain).abs().flatten(1).mean(1)
    if min(plain.shape[2:]) < SSIM_WINDOW:
        return error
    return error + 1 - ssim(estimates, plain, torch.float32)


@dataclass(frozen=True)
class _Trained:
    """An inverter, how its network was trained, and the held-out loss of the mean image."""

    inverter: Inverter
    course: Course
    flat: float


def _stored(trained: _Trained, regime: str) -> Tensors:
    inverter, course = trained.inverter, trained.course
    facts = {"objective": torch.tensor([trained.flat, *course.losses]), "free": torch.tensor(inverter.problem.free),
             "best": torch.tensor([course.best, course.steps]),
             "regime": torch.tensor(list(regime.encode()), dtype=torch.uint8)}
    net = {f"net.{name}": value for name, value in copied(inverter.net).items()}
    return facts | net | {f"base.{name}": value for name, value in inverter.base.as_tensors().items()}


def described(found: Tensors) -> str:
    """Say how an inverter was trained, and what it is worth on held-out pairs."""
    best, steps = found["best"].tolist()
    flat, base, *_ = losses = found["objective"].tolist()
    linear = LinearMap.from_tensors(under(found, "base.")).note
    return (f"{bytes(found['regime'].tolist()).decode()}; step {best} of {steps}; held-out loss {flat:.3f} mean image, "
            f"{base:.3f} {linear}, {min(losses[1:]):.3f} learned")

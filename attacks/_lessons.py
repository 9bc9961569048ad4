"""What an inverter's network learns from: first estimates, and what should have been estimated."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attacks import _ridge
from ppbench.attacks._affine import mirrors
from ppbench.attacks._linear_map import LinearMap, shape_of
from ppbench.attacks._pairs import augmented, held_out, learnt, with_one_key
from ppbench.attacks._simulate import Simulated, joined, simulate
from ppbench.data import Images, Shape
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import spawn
from ppbench.view import View

TOGETHER = 8  # minibatches whose images are protected in one call
FORGOTTEN = 0.25  # share of the images whose label is withheld: labels help, but are not needed
ASIDE = 256  # images that are estimated under a key, beside those held out, if there are so many
EFFORT = 6 * 10**11  # multiplications for the estimates under keys of one's own: a minute


@dataclass(frozen=True)
class Lesson:
    """Pairs with what a linear map makes of them.

    Attributes:
        pairs: of n plain and released images.
        first: `[n, C, H, W]` in [0, 1], estimates of the plain images.
    """

    pairs: Simulated
    first: Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: Tensor) -> "Lesson":
        return Lesson(self.pairs[rows], self.first[rows])


def lesson(base: LinearMap, pairs: Simulated) -> Lesson:
    """Estimate the plain images of pairs."""
    return Lesson(pairs, base.apply(pairs.released, shape_of(pairs)))


def fixed(some: Lesson, batch: int, steps: int, rng: torch.Generator) -> Iterator[Lesson]:
    """Yield minibatches of one lesson."""
    for rows in shuffled_passes(len(some), batch, steps, rng):
        yield _forgetting(some[rows], rng)


def protected_anew(view: View, base: LinearMap, images: Images, batch: int, steps: int,
                   rng: torch.Generator) -> Iterator[Lesson]:
    """Yield minibatches of images moved, mirrored and protected with fresh keys.

    Where it makes no difference to the defense, half of them are turned upside down: estimates are fine structure then.
    """
    turned = 2 in mirrors(view)
    for rows in shuffled_passes(len(images), batch, steps, rng).split(TOGETHER):
        some = images[rows.flatten()]
        made = simulate(view, replace(some, pixels=augmented(some.pixels, rng, turned)), spawn(rng))
        for k in torch.randperm(len(made), generator=rng).chunk(len(rows)):
            yield _forgetting(lesson(base, made[k]), rng)


@dataclass(frozen=True)
class Rehearsal:
    """How an attack on a key that few pairs are known of is rehearsed under a key of one's own.

    Attributes:
        some: images whose pairs a linear map learns from.
        held: images whose pairs decide how much it is shrunk.
        aside: images that are estimated beside those held.
        keys: how many keys it is rehearsed under.
    """

    some: int
    held: int
    aside: int
    keys: int


def rehearsal(base: LinearMap, known: int, images: int, batch: int, steps: int, shape: Shape) -> Rehearsal:
    """Plan a rehearsal.

    Args:
        base: what is learnt from the known pairs.
        known: number of pairs, some of them held out.
        images: at hand, two or more.
        batch: estimates in a step.
        steps: to be taken.
        shape: (C, H, W) of the images.
    """
    held = len(held_out(known))
    some = max(1, min(known - held, images * 7 // 8))
    held = min(held, images - some)
    aside = min(ASIDE, images - some - held)
    most = EFFORT // max(1, _ridge.effort(base.known or {}, some, shape))
    return Rehearsal(some, held, aside, max(1, min(most, steps, steps * batch // (held + aside))))


def rehearsed(view: View, base: LinearMap, known: int, batch: int, steps: int,
              rng: torch.Generator) -> Iterator[Lesson]:
    """Yield minibatches of what maps like `base`, from as many pairs under keys of one's own, make of other images.

    What a map errs by on its own pairs is not what it errs by on others; a network must see the latter. No image that
    decides between iterates is shown.

    Args:
        view: tells the defense and the public images.
        base: what was learnt from the known pairs.
        known: how many these are.
        batch: estimates in a step.
        steps: minibatches to yield.
        rng: draws keys, images and their order.
    """
    view = with_one_key(view)
    images = view.public[learnt(len(view.public))]
    plan = rehearsal(base, known, len(images), batch, steps, view.image_shape)
    for done in range(plan.keys):
        chosen = images[torch.randperm(len(images), generator=rng)[: plan.some + plan.held + plan.aside]]
        made = simulate(view, _some_mirrored(chosen, rng), spawn(rng))
        some, held, aside = (made[rows] for rows in torch.arange(len(made)).split([plan.some, plan.held, plan.aside]))
        tests = lesson(base.again(some, held), joined([held, aside]))
        todo = steps * (done + 1) // plan.keys - steps * done // plan.keys
        yield from fixed(tests, batch, todo, rng)


def _some_mirrored(images: Images, rng: torch.Generator) -> Images:
    turned = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
    return replace(images, pixels=torch.where(turned, images.pixels.flip(3), images.pixels))


def _forgetting(some: Lesson, rng: torch.Generator) -> Lesson:
    unknown = torch.rand(len(some), generator=rng) < FORGOTTEN
    labels = torch.where(unknown, -1, some.pairs.labels)
    return replace(some, pairs=replace(some.pairs, labels=labels))

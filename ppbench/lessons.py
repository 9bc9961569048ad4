"""What a victim learns from, epoch by epoch: a release as it is, or images that clients protect anew."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppbench.data import Images
from ppbench.defense import Defense, Keys, KeyScope, Release, keys_for_more
from ppbench.seeding import seeded
from ppbench.view import quantised

Augment = Literal["none", "flip", "crop-flip"]


@dataclass(frozen=True)
class Lesson:
    """Images and what is to be learnt of each.

    Attributes:
        images: `[M, c, h, w]` in [0, 1].
        goals: `[M]` labels or `[M, classes]` shares.
        temperature: at which the shares were taken.
    """

    images: Tensor
    goals: Tensor
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> "Lesson":
        return Lesson(self.images[rows], self.goals[rows], self.temperature)


def lesson_of(release: Release) -> Lesson:
    """Return what a victim learns of a release: its labels, or shares of classes where there are any."""
    goals = release.labels if release.soft_labels is None else release.soft_labels
    return Lesson(release.images, goals, release.temperature)


class Lessons(ABC):
    """Gives the lesson of every epoch."""

    @abstractmethod
    def of_epoch(self, rng: torch.Generator) -> Lesson:
        """Return the next epoch's images, in the same order and number every time."""


@dataclass(frozen=True)
class Same(Lessons):
    """The same release in every epoch; images that stand for nobody may be augmented by whoever has them."""

    lesson: Lesson
    augment: Augment = "none"

    def of_epoch(self, rng: torch.Generator) -> Lesson:
        """Return the lesson, augmented."""
        return replace(self.lesson, images=augmented(self.lesson.images, self.augment, rng))


@dataclass(frozen=True)
class Extended(Lessons):
    """Lessons to each of which a malicious trainer adds the same images, as they are."""

    lessons: Lessons
    more: Images

    def of_epoch(self, rng: torch.Generator) -> Lesson:
        """Return the next lesson with the images behind it; where shares are learnt, all of each is its label's."""
        given = self.lessons.of_epoch(rng)
        goals = self.more.labels
        if given.goals.is_floating_point():
            goals = one_hot(goals, given.goals.shape[1]).to(given.goals)
        return replace(given, images=torch.cat([given.images, self.more.pixels]), goals=torch.cat([given.goals, goals]))


@dataclass(frozen=True)
class Renewed(Lessons):
    """Private images that their owners augment and protect anew in every epoch.

    Attributes:
        private: what the clients hold.
        defense: how they protect it.
        keys: what they hold; keys of one image each are drawn anew, all others stay.
        scope: of the keys.
        quantise: bits of a released pixel, 0 = float.
        augment: what is done before protection.
    """

    private: Images
    defense: Defense
    keys: Keys | None
    scope: KeyScope | None
    quantise: int
    augment: Augment = "none"

    def of_epoch(self, rng: torch.Generator) -> Lesson:
        """Augment, protect and round the private images."""
        pixels = augmented(self.private.pixels, self.augment, rng)
        keys = self.keys
        if self.scope == "image":
            keys = keys_for_more(self.defense, keys, self.scope, len(pixels), self.private.shape, rng)
        with seeded(int(torch.randint(2**62, (), generator=rng))) as own:  # a plug-in's own draws stay its own
            release = self.defense.protect(replace(self.private, pixels=pixels), keys, own)
        return lesson_of(quantised(release, self.quantise))


def augmented(images: Tensor, how: Augment, rng: torch.Generator) -> Tensor:
    """Return images `[N, C, H, W]`, each shifted by up to an eighth of its side (`crop-flip`) and mirrored or not.

    The edge is repeated where a shifted image leaves a gap.
    """
    if how == "none" or not len(images):
        return images
    count, _, height, width = images.shape
    columns = torch.arange(width).expand(count, width)
    mirrored = torch.rand(count, 1, generator=rng) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    rows = torch.arange(height).expand(count, height)
    if how == "crop-flip":
        rows = _shifted(rows, height, rng)
        columns = _shifted(columns, width, rng)
    where = torch.arange(count)[:, None, None]
    return images.movedim(1, -1)[where, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def _shifted(places: Tensor, side: int, rng: torch.Generator) -> Tensor:
    by = torch.randint(-(side // 8), side // 8 + 1, (len(places), 1), generator=rng)
    return (places + by).clamp(0, side - 1)


def batch_rows(rows: Tensor, size: int) -> list[Tensor]:
    """Cut rows into batches; a last one of a single row joins its neighbour (batch normalisation refuses one)."""
    batches = list(rows.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches

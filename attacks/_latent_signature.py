"""What a release tells of an image, whatever the key: signatures that a latent search can compare.

A signature turns images into vectors so that a plain image and its release, under any key, have (nearly) the same.
Which one serves a defense is not looked up but measured: on public images protected with keys of one's own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppbench.attacks._straight import straight_through
from ppbench.blocks import cut
from ppbench.data import Images, Shape
from ppbench.defense import Defense, resize
from ppbench.seeding import generator, spawn
from ppbench.view import Algorithm

Order = Literal["kept", "by channel", "all"]
Fold = Literal["none", "block", "value"]

SLICES = 48  # directions onto which sets of 64 blocks are projected; of larger sets fewer, for speed
FEWEST_SLICES = 8
EDGES = 2.0  # weight of differences between neighbours beside that of the pixels themselves
EXACT = 0.02  # an invariant's distance under a key of one's own, over that between different images: rounding only


class Signature(ABC):
    """A view of images that the key does not change."""

    name: str

    @abstractmethod
    def of_plain(self, images: Tensor) -> Tensor:
        """Return `[N, D]` of plain images `[N, C, H, W]`; differentiable."""

    @abstractmethod
    def of_released(self, images: Tensor) -> Tensor:
        """Return `[N, D]` of released images `[N, c, h, w]`."""


@dataclass(frozen=True)
class Simulated(Signature):
    """The release itself: a defense without key or chance can be run on any guess."""

    defense: Defense
    quantise: int
    name = "the defense run on the guess"

    def of_plain(self, images: Tensor) -> Tensor:
        """Protect the images; where the defense has no derivative, that of a plain resize stands in."""
        rows = torch.arange(len(images))
        private = Images(images, torch.zeros_like(rows), rows)
        released = self.defense.protect(private, None, generator(0)).images
        return _picture(straight_through(released, images, self.quantise))

    def of_released(self, images: Tensor) -> Tensor:
        """Return pixels and edges of the release."""
        return _picture(images)


@dataclass(frozen=True)
class AsReleased(Signature):
    """The release taken for the image itself: what is left where no invariant is known (noise, synthesis)."""

    shape: Shape
    name = "the release as if it were plain"

    def of_plain(self, images: Tensor) -> Tensor:
        """Return pixels and edges of images shrunk to the released shape."""
        return _picture(resize(images, self.shape))

    def of_released(self, images: Tensor) -> Tensor:
        """Return pixels and edges of the release."""
        return _picture(images)


@dataclass(frozen=True)
class Blocks(Signature):
    """The values of square blocks, compared place by place or as a set (sliced Wasserstein, Rabin et al. 2011).

    Attributes:
        size: side of a block; 0 = the whole image is one.
        moved: compare the blocks as a set.
        order: take a block's values as they stand, sorted in every channel, or all sorted together.
        fold: take v and 1 - v for the same, per block (the darker polarity counts) or per value.
    """

    size: int
    moved: bool
    order: Order
    fold: Fold

    @property
    def name(self) -> str:  # type: ignore[override]
        """Say what is compared."""
        parts = ["the set of" if self.moved else "", f"{self.size} px blocks" if self.size else "the image",
                 "" if self.order == "kept" else f"sorted ({self.order})",
                 "" if self.fold == "none" else f"up to the {self.fold}'s negative"]
        return " ".join(part for part in parts if part)

    def of_plain(self, images: Tensor) -> Tensor:
        """Return the blocks' values, `[N, D]`."""
        blocks = cut(images, self.size).flatten(3) if self.size else images.flatten(2)[:, None]
        if self.fold == "value":
            blocks = (blocks - 0.5).abs()
        elif self.fold == "block":
            bright = blocks.mean((2, 3), keepdim=True) > 0.5
            blocks = torch.where(bright, 1 - blocks, blocks)
        if self.order == "by channel":
            blocks = blocks.sort(3).values
        blocks = blocks.flatten(2)
        if self.order == "all":
            blocks = blocks.sort(2).values
        if self.moved:
            blocks = (blocks @ _directions(blocks.shape[2], blocks.shape[1])).sort(1).values
        return blocks.flatten(1)

    def of_released(self, images: Tensor) -> Tensor:
        """Return the same of released images."""
        return self.of_plain(images)


def choose(algorithm: Algorithm, public: Images, released_shape: Shape, rng: torch.Generator) -> Signature:
    """Find the most telling signature that a defense, run with keys of one's own, leaves as it is.

    Args:
        algorithm: the defense.
        public: two images or more to try it on.
        released_shape: (c, h, w) of the release.
        rng: draws the keys.
    """
    fallback = AsReleased(released_shape)
    if not algorithm.defense.partnered:
        return fallback
    first, second = (algorithm.protect(public, spawn(rng)).images for _ in range(2))
    if algorithm.key_scope is None:
        return Simulated(algorithm.defense, algorithm.quantise) if torch.equal(first, second) else fallback
    if released_shape != public.shape:
        return fallback
    pieces = algorithm.defense.pieces(public.shape)
    found = (one for one in candidates(pieces.size if pieces else 1) if invariant(one, public.pixels, first))
    return next(found, fallback)


def candidates(size: int) -> Iterator[Blocks]:
    """List signatures from the most to the least telling, for a defense that works on blocks of a size."""
    folds: tuple[Fold, ...] = ("none", "block", "value")
    orders: tuple[Order, ...] = ("kept", "by channel", "all")
    for side, moved in ((1, False), (size, False), (size, True), (1, True), (0, False)):
        for fold in folds:
            for order in orders:
                yield Blocks(side, moved, order, fold)


def invariant(signature: Signature, plain: Tensor, released: Tensor) -> bool:
    """Say whether protected images keep their signature, measured by how far those of different images lie apart."""
    before, after = signature.of_plain(plain), signature.of_released(released)
    own = (before - after).square().mean()
    other = (before - after.roll(1, 0)).square().mean()
    return bool(own <= EXACT * other)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared differences `[N]` of signatures `[N, D]`."""
    return (first - second).square().mean(1)


def _picture(images: Tensor) -> Tensor:
    """Return pixels and weighted differences of neighbours `[N, D]`: edges are what structure is judged by."""
    parts = [images, EDGES * images.diff(dim=2), EDGES * images.diff(dim=3)]
    return torch.cat([part.flatten(1) for part in parts], 1)


def _directions(length: int, members: int) -> Tensor:
    """Return fixed directions `[length, slices]` for sets of so many vectors; the first is that of the mean."""
    slices = max(FEWEST_SLICES, min(SLICES, SLICES * 64 // members))
    drawn = torch.randn(length, slices, generator=generator(length))
    drawn[:, 0] = 1
    directions: Tensor = drawn / drawn.norm(dim=0) / math.sqrt(length)
    return directions

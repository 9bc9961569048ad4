"""The linear estimate under every regime: with keys of one's own, from known pairs, or the second upon the first."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attacks import _ridge
from ppbench.attacks._pairs import held_out, learnt, mirrored, moved, with_a_key_each
from ppbench.attacks._simulate import Simulated, joined, simulate
from ppbench.blocks import cut
from ppbench.codec import Tensors, under
from ppbench.data import Shape
from ppbench.seeding import spawn
from ppbench.view import View

DRAWS = 2  # times that training images are protected, every second time mirrored
_OWN, _KNOWN, _BLOCK = "own.", "known.", "block"


@dataclass(frozen=True)
class LinearMap:
    """A linear estimate of plain images from released ones; at least one of its two parts is there.

    Attributes:
        own: learnt with keys of one's own, a new one for every image.
        known: learnt from known pairs under one key; where there are both, it estimates what `own` leaves over.
        block: side of the blocks over whose mean `own` reads a release; 0 = it reads the release as it is.
    """

    own: Tensors | None
    known: Tensors | None
    block: int = 0

    def apply(self, released: Tensor, shape: Shape) -> Tensor:
        """Estimate plain images `[n, C, H, W]` of `shape`, in [0, 1], from released ones `[n, c, h, w]`."""
        if self.own is None:
            assert self.known is not None
            return _ridge.apply(self.known, released, shape)
        first = _ridge.apply(self.own, _read(released, self.block), shape)
        if self.known is None:
            return first
        return (first + 2 * _ridge.apply(self.known, released, shape) - 1).clamp(0, 1)

    def error(self, pairs: Simulated) -> float:
        """Return the mean squared error on pairs."""
        return float((self.apply(pairs.released, shape_of(pairs)) - pairs.plain).square().mean())

    def again(self, some: Simulated, held: Simulated) -> "LinearMap":
        """Return what this would be, had these pairs under another key been known; `known` has the same form."""
        assert self.known is not None
        some, held = self.left(some), self.left(held)
        return replace(self, known=_ridge.again(self.known, some.released, some.plain, held.released, held.plain))

    @property
    def mean(self) -> Tensor:
        """The mean image `[C, H, W]` of those learnt from."""
        return (self.own or self.known or {})["mean"]

    @property
    def note(self) -> str:
        """Which estimators were chosen."""
        return ", then ".join(_ridge.describe(part) for part in (self.own, self.known) if part)

    def as_tensors(self) -> Tensors:
        """Return what `from_tensors` reads."""
        parts = {_OWN: self.own or {}, _KNOWN: self.known or {}}
        return {_BLOCK: torch.tensor(self.block)} | {prefix + name: value for prefix, part in parts.items()
                                                     for name, value in part.items()}

    @staticmethod
    def from_tensors(found: Tensors) -> "LinearMap":
        """Rebuild what `as_tensors` wrote."""
        own, known = (under(found, prefix) for prefix in (_OWN, _KNOWN))
        return LinearMap(own or None, known or None, int(found[_BLOCK]))

    def left(self, pairs: Simulated) -> Simulated:
        """Put what `own` leaves over, which lies in [-1, 1], into [0, 1] in place of the plain images."""
        if self.own is None:
            return pairs
        left = pairs.plain - _ridge.apply(self.own, _read(pairs.released, self.block), shape_of(pairs))
        return replace(pairs, plain=(left + 1) / 2)


def from_own_keys(view: View, some: Simulated, held: Simulated) -> LinearMap:
    """Learn from pairs under keys of one's own, of which each serves one image.

    Under uniformly random orders of blocks the best linear estimate depends on no more than their mean.

    Args:
        view: tells whether the defense moves blocks.
        some: pairs to learn from.
        held: pairs that decide.
    """
    pieces = view.algorithm.defense.pieces(view.image_shape)
    whole = some.released.shape[1:] == some.plain.shape[1:]
    block = pieces.size if pieces is not None and whole and moved(view) else 0
    return LinearMap(_ridge.fit(_read(some.released, block), some.plain, _read(held.released, block), held.plain),
                     None, block)


def from_pairs(own: LinearMap | None, some: Simulated, held: Simulated) -> LinearMap:
    """Learn from known pairs under one key: alone, on top of what own keys taught, or not at all, as errs least.

    Args:
        own: what own keys taught; None = pairs alone.
        some: pairs to learn from.
        held: pairs that decide.
    """
    alone = LinearMap(None, _ridge.fit(some.released, some.plain, held.released, held.plain))
    if own is None:
        return alone
    rest, held_rest = own.left(some), own.left(held)
    upon = replace(own, known=_ridge.fit(rest.released, rest.plain, held_rest.released, held_rest.plain))
    return min((own, alone, upon), key=lambda one: one.error(held))


def with_own_keys(view: View, draws: int, rng: torch.Generator) -> tuple[Simulated, Simulated]:
    """Protect public images with a key each: those to learn from `draws` times, and those held out."""
    view = with_a_key_each(view)
    kept = view.public[learnt(len(view.public))]
    some = joined([simulate(view, mirrored(kept) if i % 2 else kept, spawn(rng)) for i in range(draws)])
    return some, simulate(view, view.public[held_out(len(view.public))], spawn(rng))


def shape_of(pairs: Simulated) -> Shape:
    """Return (C, H, W) of the plain images."""
    _, c, h, w = pairs.plain.shape
    return c, h, w


def _read(released: Tensor, block: int) -> Tensor:
    """Return the mean over the blocks of this side; 0 = the release as it is."""
    return cut(released, block).mean(1) if block else released

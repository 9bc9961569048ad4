"""The best linear estimate: the baseline that every learned inverter must beat."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks import _ridge
from ppbench.attacks._pairs import halves, held_out, learnt, mirrored, with_a_key_each
from ppbench.attacks._simulate import ANYONE, Simulated, joined, known_pairs, named, simulate, targets_by_key
from ppbench.bounds import at_least
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.seeding import spawn
from ppbench.view import View

FIRST, THEN = "first.", "then."
FEWEST = 4  # pairs below which none can be held out


@dataclass(frozen=True)
class LinearMap(Prior):
    """Learn the linear MMSE estimate of plain images from released ones.

    Learnt from public images that the adversary protects with keys of their own, every second time mirrored. Where
    known pairs under a key that serves many images are granted, the map learnt from these, and the one learnt from
    these on top of the former, compete with it on pairs held out. Every fourth image or pair is held out.

    Attributes:
        draws: how often the public images are protected.
        client: whose pairs are learnt from, where clients have keys of their own; -1 = everyone's.
    """

    needs = frozenset({"public", "algorithm", "pairs"})
    draws: int = 2
    client: int = ANYONE

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return one linear map (`first.*`), or two of which the second corrects the first (`then.*`)."""
        pairs = known_pairs(view, self.client) if view.algorithm.key_scope in ("client", "global") else None
        if pairs is None or len(pairs) < FEWEST:
            return _under(FIRST, self._from_own_keys(view, rng))
        some, held = halves(pairs)
        theirs = _under(FIRST, _fitted(some, held))
        if len(pairs) >= len(view.public):
            return theirs
        own = _under(FIRST, self._from_own_keys(view, rng))
        both = own | _under(THEN, _fitted(_beyond(own, some), _beyond(own, held)))
        return min((own, theirs, both), key=lambda found: _error(found, held))

    def _from_own_keys(self, view: View, rng: torch.Generator) -> Tensors:
        if not view.algorithm.defense.partnered:
            return _fitted(*halves(simulate(view, view.public, spawn(rng))))
        view = with_a_key_each(view)
        kept = view.public[learnt(len(view.public))]
        draws = [simulate(view, mirrored(kept) if i % 2 else kept, spawn(rng)) for i in range(self.draws)]
        return _fitted(joined(draws), simulate(view, view.public[held_out(len(view.public))], spawn(rng)))


@dataclass(frozen=True)
class Linear(Attack):
    """Estimate every pixel as a linear function of the released ones: linear MMSE, fitted by ridge regression.

    The estimator is local (shared by all places, from windows of released pixels), global (from all of them) or
    both, whichever errs least on held-out pairs; Wiener 1949 and Hoerl & Kennard 1970 stand behind the two.

    Attributes:
        draws: how often the public images are protected with the adversary's own keys to learn from.
    """

    requires = frozenset({"images", "public", "algorithm"})
    uses = frozenset({"pairs"})
    default_threat = "ciphertext-only"
    draws: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "draws")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the map, which depends on public images, algorithm and known pairs alone; one for each key."""
        return {named("map", client): LinearMap(self.draws, client) for client in targets_by_key(view)}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Apply the map to the targets' released images."""
        images = torch.empty(view.n_targets, *view.image_shape)
        notes = []
        for client, mine in targets_by_key(view).items():
            found = priors[named("map", client)]
            images[mine] = _apply(found, view.images[mine], view.image_shape)
            parts = [_of(FIRST, found), _of(THEN, found)]
            notes.append(", then ".join(_ridge.describe(part) for part in parts if part))
        return Reconstruction(images, aligned=view.has_partner, note="; ".join(dict.fromkeys(notes)))


def _fitted(some: Simulated, held: Simulated) -> Tensors:
    return _ridge.fit(some.released, some.plain, held.released, held.plain)


def _beyond(found: Tensors, pairs: Simulated) -> Simulated:
    """Put what a map leaves over, which lies in [-1, 1], into [0, 1] in place of the plain images."""
    left = pairs.plain - _apply(found, pairs.released, _shape(pairs))
    return replace(pairs, plain=(left + 1) / 2)


def _apply(found: Tensors, released: Tensor, shape: Shape) -> Tensor:
    estimate = _ridge.apply(_of(FIRST, found), released, shape)
    if then := _of(THEN, found):
        estimate = (estimate + 2 * _ridge.apply(then, released, shape) - 1).clamp(0, 1)
    return estimate


def _error(found: Tensors, pairs: Simulated) -> float:
    return float((_apply(found, pairs.released, _shape(pairs)) - pairs.plain).square().mean())


def _shape(pairs: Simulated) -> Shape:
    _, c, h, w = pairs.plain.shape
    return c, h, w


def _under(prefix: str, found: Tensors) -> Tensors:
    return {prefix + name: value for name, value in found.items()}


def _of(prefix: str, found: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

"""The best linear estimate: the baseline that every learned inverter must beat."""

from dataclasses import dataclass

import torch

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._linear_map import DRAWS, LinearMap, from_own_keys, from_pairs, with_own_keys
from ppbench.attacks._pairs import as_far_as_pairs_tell, halves, targets_by_key, telling_pairs
from ppbench.attacks._simulate import ANYONE, named, simulate
from ppbench.bounds import at_least
from ppbench.codec import Tensors
from ppbench.seeding import spawn
from ppbench.view import View


@dataclass(frozen=True)
class LinearPrior(Prior):
    """Learn the linear MMSE estimate of plain images from released ones.

    Learnt from public images that the adversary protects with keys of their own, every second time mirrored. Where
    known pairs under a key that serves many images are granted, the map learnt from these, and the one learnt from
    these on top of the former, compete with it on pairs held out. Every fourth image or pair is held out.

    Attributes:
        draws: how often the public images are protected.
        client: whose pairs are learnt from, where clients have keys of their own; -1 = everyone's.
    """

    needs = frozenset({"public", "algorithm", "pairs"})
    draws: int = DRAWS
    client: int = ANYONE

    def seen(self, view: View) -> View:
        """Cut a view down to what the map is learnt from: pairs only where they tell something."""
        return as_far_as_pairs_tell(super().seen(view), self.client)

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return the map's tensors."""
        pairs = telling_pairs(view, self.client)
        if pairs is None:
            return self._own(view, rng).as_tensors()
        own = self._own(view, rng) if len(pairs) < len(view.public) else None
        return from_pairs(own, *halves(pairs)).as_tensors()

    def _own(self, view: View, rng: torch.Generator) -> LinearMap:
        if view.algorithm.defense.partnered:
            return from_own_keys(view, *with_own_keys(view, self.draws, rng))
        return from_own_keys(view, *halves(simulate(view, view.public, spawn(rng))))


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
    draws: int = DRAWS

    def __post_init__(self) -> None:
        at_least(self, 1, "draws")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the map, which depends on public images, algorithm and known pairs alone; one for each key."""
        return {named("map", client): LinearPrior(self.draws, client) for client in targets_by_key(view)}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Apply the map to the targets' released images."""
        images = torch.empty(view.n_targets, *view.image_shape)
        notes = []
        for client, mine in targets_by_key(view).items():
            found = LinearMap.from_tensors(priors[named("map", client)])
            images[mine] = found.apply(view.images[mine], view.image_shape)
            notes.append(found.note)
        return Reconstruction(images, aligned=view.has_partner, note="; ".join(dict.fromkeys(notes)))

"""Whoever holds the key: the ceiling of every defense."""

from dataclasses import dataclass

import torch

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.view import View


@dataclass(frozen=True)
class KeyHolder(Attack):
    """Decrypt with the key: the most that the release still holds of the private images (the ceiling)."""

    requires = frozenset({"images", "algorithm", "key"})
    default_threat = "full-knowledge"
    role = "ceiling"

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the defense's own inverse of the targets' released images."""
        found = view.algorithm.defense.invert(view.release, view.keys, view.image_shape)
        return Reconstruction(found[view.target_rows], aligned=view.has_partner)

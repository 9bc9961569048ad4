"""The release itself as a reconstruction: what the literature calls visual privacy."""

from dataclasses import dataclass

import torch

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.defense import resize
from ppbench.view import View


@dataclass(frozen=True)
class AsReleased(Attack):
    """Return the released images, fitted to the private shape: the literature's "visual privacy"."""

    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    ceiling = 0.95

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the released images."""
        return Reconstruction(resize(view.images, view.image_shape), aligned=view.has_partner)

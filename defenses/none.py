"""No defense: the control that every attack must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.defense import PerImageDefense


@dataclass(frozen=True)
class NoDefense(PerImageDefense):
    """Release the private images as they are (the control on which every attack must reach its ceiling)."""

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Return the images unchanged."""
        return images

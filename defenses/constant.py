"""Everything destroyed: the control that no attack may beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.defense import PerImageDefense


@dataclass(frozen=True)
class Constant(PerImageDefense):
    """Replace every image with one grey value: nothing left to leak, nothing left to learn.

    Attributes:
        value: the grey, in [0, 1].
    """

    value: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"value is {self.value}; it must lie in [0, 1]")

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Return grey images of the same shape."""
        return torch.full_like(images, self.value)

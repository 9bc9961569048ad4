"""Gaussian noise on the pixels: the simplest perturbation, and what formal privacy starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.bounds import above_zero
from ppbench.codec import Tensors
from ppbench.defense import PerImageDefense


@dataclass(frozen=True)
class GaussianNoise(PerImageDefense):
    """Add independent Gaussian noise to every value, then clamp to [0, 1]; test images get noise of their own.

    Attributes:
        sigma: standard deviation of the noise, on values in [0, 1].
    """

    sigma: float = 0.2

    def __post_init__(self) -> None:
        above_zero(self, "sigma")

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Add fresh noise and clamp."""
        noise = torch.randn(images.shape, generator=rng, dtype=images.dtype)
        return (images + self.sigma * noise).clamp(0, 1)

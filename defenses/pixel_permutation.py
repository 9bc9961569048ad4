"""All pixels of an image permuted: what remains is its histogram."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppbench.blocks import permutations
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import PerImageDefense


@dataclass(frozen=True)
class PixelPermutation(PerImageDefense):
    """Permute all pixels of an image, afresh for every image unless the key scope says otherwise.

    Attributes:
        channels: the colours of a pixel stay `together`, or every value moves on its own (`apart`).
    """

    key_scopes = ("image", "client", "global")
    channels: Literal["together", "apart"] = "together"

    def __post_init__(self) -> None:
        if self.channels not in ("together", "apart"):
            raise ValueError(f"channels is {self.channels!r}; it must be one of together, apart")

    def keys(self, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        """Draw `order`: `[count, H * W]`, or `[count, C * H * W]` where the channels move apart."""
        c, h, w = shape
        return {"order": permutations(count, h * w * (c if self.channels == "apart" else 1), rng)}

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Put pixel `order[i]` at place i (places count row by row; apart: channel by channel)."""
        return self._permuted(images, key["order"])

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Put every pixel back."""
        return self._permuted(images, key["order"].argsort(1))

    def _permuted(self, images: Tensor, order: Tensor) -> Tensor:
        values = images.flatten(2) if self.channels == "together" else images.flatten(1)[:, None]
        return values.gather(2, order[:, None].expand_as(values)).reshape(images.shape)

"""Pixelation: every square block replaced by its mean, as practitioners hide faces."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ppbench.blocks import check_divides
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import PerImageDefense


@dataclass(frozen=True)
class Pixelate(PerImageDefense):
    """Replace every square block of pixels by its mean colour; the image keeps its size.

    Attributes:
        block: side of a block in pixels.
    """

    block: int = 4

    def check(self, shape: Shape) -> None:
        """Refuse blocks that do not tile the image."""
        check_divides("block", self.block, shape)

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Average every block, in every channel."""
        means = avg_pool2d(images, self.block)
        return means.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3)

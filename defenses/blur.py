"""Gaussian blur, as practitioners hide faces and number plates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.bounds import above_zero
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import PerImageDefense
from ppbench.errors import UserError

TRUNCATE = 4.0  # standard deviations at which the kernel ends


@dataclass(frozen=True)
class Blur(PerImageDefense):
    """Blur every image with a Gaussian; a fixed, linear map that an adversary can run and differentiate.

    Attributes:
        sigma: standard deviation of the Gaussian in pixels.
    """

    sigma: float = 2.0

    def __post_init__(self) -> None:
        above_zero(self, "sigma")

    def check(self, shape: Shape) -> None:
        """Refuse a Gaussian wider than the image, of which nothing but the mean colour would be left."""
        _, height, width = shape
        if self.sigma > max(height, width):
            raise UserError(f"sigma={self.sigma} is wider than images of {height} x {width} pixels: choose at most "
                            f"{max(height, width)}")

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Blur rows and columns in turn."""
        rows, columns = (gaussian_matrix(size, self.sigma).to(images) for size in images.shape[2:])
        return (rows @ images @ columns.T).clamp(0, 1)


def gaussian_matrix(size: int, sigma: float) -> Tensor:
    """Return the blur of a line of `size` pixels as a matrix, `[size, size]` float64, whose rows sum to 1.

    The line goes on beyond its ends as in a mirror, the last pixel seen twice (d c b a | a b c d | d c b a).
    """
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.softmax(-0.5 * (offsets.double() / sigma) ** 2, 0)
    places = (torch.arange(size)[:, None] + offsets) % (2 * size)
    places = torch.minimum(places, 2 * size - 1 - places)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, places, weights.expand(size, -1))

"""The spectrum of images: a basis in which what is large comes first, and every step is as large as images are there.

A trained network's gradient tells nothing of most directions of pixels; steps of one size for every pixel fill these
with noise. In coefficients (cosines over the plane, principal colours) that are scaled by how images vary, coarse
structure is found first, and what stays unknown looks like images do. After Olah et al. 2017, "Feature visualization",
who scale Fourier coefficients for the same reason.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

LEAST = 1e-3  # of the largest deviation, for coefficients that hardly vary


@dataclass(frozen=True)
class Spectrum:
    """Coefficients of images, and how they vary.

    Attributes:
        mean: `[c, h, w]`, of the images.
        colours: `[c, c]`, principal colours in its rows.
        down: `[h, h]`, cosines.
        across: `[w, w]`, cosines.
        deviations: `[c, h, w]`, of the coefficients.
    """

    mean: Tensor
    colours: Tensor
    down: Tensor
    across: Tensor
    deviations: Tensor

    def coefficients(self, images: Tensor) -> Tensor:
        """Return those of images, or of slopes, `[..., c, h, w]`."""
        return torch.einsum("ab,...bij->...aij", self.colours, self.down @ images @ self.across.mT)

    def images(self, coefficients: Tensor) -> Tensor:
        """Return what has the coefficients `[..., c, h, w]`."""
        return torch.einsum("ab,...aij->...bij", self.colours, self.down.mT @ coefficients @ self.across)

    def scales(self, power: float) -> Tensor:
        """Return the size of a step in every coefficient: a power of the deviations, with their mean square."""
        found = self.deviations**power
        return found * (self.deviations.square().mean() / found.square().mean()).sqrt()


def spectrum_of(images: Tensor) -> Spectrum:
    """Measure the spectrum of images `[M, c, h, w]`."""
    mean = images.mean(0)
    apart = images - mean
    flat = apart.transpose(0, 1).flatten(1).double()
    colours = torch.linalg.eigh(flat @ flat.mT).eigenvectors.mT.to(images.dtype)
    bare = Spectrum(mean, colours, _cosines(images.shape[2]), _cosines(images.shape[3]), mean)
    deviations = bare.coefficients(apart).square().mean(0).sqrt()
    return Spectrum(mean, colours, bare.down, bare.across, deviations.clamp(min=LEAST * float(deviations.max())))


def _cosines(side: int) -> Tensor:
    """Return an orthonormal basis of so many cosines, in its rows."""
    return torch.from_numpy(dct(np.eye(side), norm="ortho", axis=0)).float()

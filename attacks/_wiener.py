"""Wiener estimation under a stationary Gaussian prior: images behind a known affine map, by conjugate gradients.

The prior is diagonal in the cosine basis (DCT-II, which continues an image as in a mirror): one covariance of the
colour channels a frequency.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ppbench.attacks._affine import AffineMap, Linear
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.seeding import generator

MOST = 2**24  # values of images that a spectrum is measured on
_FLOOR = 1e-8  # variance that a colour has at least
_CHUNK = 2**16  # pixel values worked on at a time: what fits into a cache
_DRAWS = 64  # images from the prior on which the spectrum of releases is measured


@dataclass(frozen=True)
class Spectrum:
    """A Gaussian prior of images `[C, H, W]`.

    Attributes:
        mean: `[C]` float64, the mean colour.
        covariance: `[H, W, C, C]` float64, that of the channels at every frequency.
    """

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(images: Tensor) -> "Spectrum":
        """Measure the power spectrum of images `[n, C, H, W]`, a little of it shrunk to that of the smooth prior.

        More images than hold `MOST` values tell nothing new of a stationary prior, and are left out.
        """
        images = images[: max(1, MOST // images[0].numel())]
        smooth = Spectrum.smooth(images)
        share = 4 / (4 + len(images))  # as if four images of the smooth prior had been seen as well
        measured = _covariance(images.double() - smooth.mean[:, None, None])
        return Spectrum(smooth.mean, (1 - share) * measured + share * smooth.covariance)

    @staticmethod
    def smooth(images: Tensor) -> "Spectrum":
        """Penalise squared gradients: power falls as 1 / frequency^2, its total that of the images `[n, C, H, W]`."""
        _, c, h, w = images.shape
        values = images[: max(1, MOST // images[0].numel())].double()
        mean = values.mean((0, 2, 3))
        power = 1 / (_gradient_power(h)[:, None] + _gradient_power(w) + 1 / (h * w))
        centred = (values - mean[:, None, None]).transpose(0, 1).flatten(1)
        colour = centred @ centred.T / centred.shape[1] + _FLOOR * torch.eye(c, dtype=torch.float64)
        return Spectrum(mean, power[:, :, None, None] / power.mean() * colour)

    @staticmethod
    def white(variance: float, shape: Shape) -> "Spectrum":
        """Expect nothing of images (C, H, W), or of an estimate's errors, but the variance of every value."""
        c, h, w = shape
        covariance = variance * torch.eye(c, dtype=torch.float64)
        return Spectrum(torch.zeros(c, dtype=torch.float64), covariance.expand(h, w, c, c))

    def spread(self, images: Tensor) -> Tensor:
        """Multiply images `[n, C, H, W]` with the covariance."""
        return idct(_mixed(self.covariance, dct(images)))

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw images `[count, C, H, W]` less their mean."""
        h, w, c, _ = self.covariance.shape
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors @ (values.clamp(min=0).sqrt()[..., None] * vectors.transpose(-1, -2))
        return idct(_mixed(root, torch.randn(count, c, h, w, generator=rng, dtype=torch.float64)))

    def as_tensors(self) -> Tensors:
        """Return what `from_tensors` reads."""
        return {"mean": self.mean, "covariance": self.covariance}

    @staticmethod
    def from_tensors(found: Tensors) -> "Spectrum":
        """Rebuild what `as_tensors` wrote."""
        return Spectrum(found["mean"], found["covariance"])


@dataclass(frozen=True)
class Wiener:
    """The estimator of images behind a map: `argmin |A x - y|^2 / noise + |x - m|^2_prior`.

    Attributes:
        through: the map A.
        prior: of the images.
        noise: variance of the released values' error, above 0.
        shape: (C, H, W) of the images.
        expected: `[h, w, c, c]`, the inverse spectrum of released images, by which the iteration is preconditioned.
        scale: where L Lᵀ is this number times a projection, it tells what a release can be; 0 = it is not, or a
            release can be anything.
        steps: iterations of conjugate gradients at most.
    """

    through: AffineMap
    prior: Spectrum
    noise: float
    shape: Shape
    expected: Tensor
    scale: float
    steps: int

    @staticmethod
    def of(through: AffineMap, prior: Spectrum, noise: float, shape: Shape, steps: int) -> "Wiener":
        """Prepare the estimator; the spectrum that releases will have is measured on images drawn from the prior."""
        rng = generator(0)
        drawn = through.forward(prior.draw(_DRAWS, rng))
        covariance = _covariance(drawn)
        expected = torch.linalg.inv(covariance + noise * torch.eye(covariance.shape[-1], dtype=torch.float64))
        some = torch.rand(drawn[:1].shape, generator=rng, dtype=torch.float64)
        return Wiener(through, prior, noise, shape, expected, _scale(through, some), steps)

    def estimate(self, released: Tensor, rounds: int = 4) -> Tensor:
        """Return the images `[n, C, H, W]` in [0, 1] most likely behind released ones `[n, c, h, w]`.

        Clipping to [0, 1] changes what the map makes of them; this is mended and clipped again, at most `rounds`
        times, until it would vanish in rounding to 8 bit.
        """
        mean = self.prior.mean[:, None, None].expand(len(released), *self.shape)
        return self.mended(mean, released, rounds)

    def mended(self, images: Tensor, released: Tensor, rounds: int = 8) -> Tensor:
        """Return given images `[n, C, H, W]` less the errors that the prior finds most likely behind what is released.

        The result is in [0, 1] and is released as seen, up to noise; clipping as in `estimate`.
        """
        rows = max(1, _CHUNK // images[0].numel())
        return torch.cat([self._mended(some, theirs, rounds)
                          for some, theirs in zip(images.split(rows), released.split(rows), strict=True)])

    def _mended(self, images: Tensor, released: Tensor, rounds: int) -> Tensor:
        images = images.double()
        free = images + self._gain(released.double() - self.through(images))
        fitted, found = self.through(free), free.clamp(0, 1)
        for _ in range(rounds):
            left = fitted - self.through(found)
            vanishing = left.abs().flatten(1).amax(1) < 0.5 / 255
            if vanishing.all():
                break
            # what is left of an image that is done is the rounding of its floats, and no release
            left[vanishing] = 0
            found = (found + self._gain(left)).clamp(0, 1)
        return found.float()

    def _gain(self, left: Tensor) -> Tensor:
        """Return the most likely deviation from the mean behind a deviation of the release."""
        # the part that no release can have says nothing of the image, and the preconditioner does not see it
        left = self._possible(left)
        return self.prior.spread(self.through.adjoint(solve(self._normal, self._precondition, left, self.steps)))

    def _normal(self, values: Tensor) -> Tensor:
        return self.through.forward(self.prior.spread(self.through.adjoint(values))) + self.noise * values

    def _precondition(self, values: Tensor) -> Tensor:
        # what no release can be (pixels that differ inside a pixelated block) would take most of the iterations
        return self._possible(idct(_mixed(self.expected, dct(self._possible(values)))))

    def _possible(self, values: Tensor) -> Tensor:
        return self.through.forward(self.through.adjoint(values)) / self.scale if self.scale else values


def solve(operator: Linear, preconditioner: Linear, right: Tensor, steps: int, tolerance: float = 1e-3) -> Tensor:
    """Solve `operator(u) = right` for every row by preconditioned conjugate gradients (Hestenes & Stiefel 1952).

    Args:
        operator: symmetric, positive definite, linear in `[n, ...]`, every row on its own.
        preconditioner: roughly its inverse, of the same kind.
        right: `[n, ...]`.
        steps: iterations at most.
        tolerance: of the residual's norm in the preconditioner's metric, relative to the right side's; iteration ends
            when all rows are below it.
    """
    found, residual = torch.zeros_like(right), right.clone()
    direction = preconditioner(residual)
    power = _dot(residual, direction)
    enough = tolerance**2 * power
    for _ in range(steps):
        if (power <= enough).all():
            break
        image = operator(direction)
        # a row that is done stands still: 0 / 0 otherwise
        length = torch.where(power > enough, power / _dot(direction, image).clamp(min=1e-300), 0)
        found = found + length * direction
        residual = residual - length * image
        fitting = preconditioner(residual)
        before, power = power, _dot(residual, fitting)
        direction = fitting + power / before.clamp(min=1e-300) * direction
    return found


def _scale(through: AffineMap, some: Tensor) -> float:
    """Return s where `L Lᵀ L Lᵀ = s L Lᵀ`, told from one random release; 0 where there is none, or `L Lᵀ = s`."""
    once = through.forward(through.adjoint(some))
    twice = through.forward(through.adjoint(once))
    scale = float(_dot(twice, once) / _dot(once, once).clamp(min=1e-300))

    def close(x: Tensor, y: Tensor) -> bool:
        return bool((x - y).abs().max() <= 1e-6 * y.abs().max())
    return scale if close(twice, scale * once) and not close(once, scale * some) else 0.0


def _covariance(images: Tensor) -> Tensor:
    """Return the covariance `[H, W, C, C]` of the channels of centred images `[n, C, H, W]` at every frequency."""
    waves = dct(images)
    return torch.stack([(waves * waves[:, [i]]).mean(0) for i in range(images.shape[1])]).permute(2, 3, 0, 1)


def _mixed(matrices: Tensor, waves: Tensor) -> Tensor:
    """Multiply the channels of `[n, C, H, W]` by a matrix `[H, W, C, C]` at every frequency."""
    columns = matrices.permute(3, 2, 0, 1)
    # as many products of planes as there are channels: batches of tiny matrices take ten times as long
    total = columns[0] * waves[:, :1]
    for i in range(1, len(columns)):
        total = total.addcmul(columns[i], waves[:, i:i + 1])
    return total


def dct(images: Tensor) -> Tensor:
    """Transform the last two axes to the orthonormal cosine basis (DCT-II)."""
    return _cosines(images.shape[-2]) @ images @ _cosines(images.shape[-1]).T


def idct(waves: Tensor) -> Tensor:
    """Invert `dct`."""
    return _cosines(waves.shape[-2]).T @ waves @ _cosines(waves.shape[-1])


@lru_cache(maxsize=16)
def _cosines(size: int) -> Tensor:
    places = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(torch.pi / size * places[:, None] * (places + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def _gradient_power(size: int) -> Tensor:
    """Return the squared gain `[size]` of neighbours' differences at every frequency."""
    gains: Tensor = 4 * torch.sin(torch.pi / (2 * size) * torch.arange(size, dtype=torch.float64)).square()
    return gains


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1))

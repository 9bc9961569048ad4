"""Batch-norm statistics of classes with differential privacy: clipped shares of images, summed and noised."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppbench.data import Images
from ppbench.defenses._accountant import Mechanism
from ppbench.defenses._bn_statistics import Moments, RawMoments, passed

_CHUNK = 256
_TINY = 1e-3
SENSITIVITY = 2**0.5  # in units of the highest norm: an image adds one of them to a sum, and one to a count


class Units(NamedTuple):
    """Zero and unit of every statistic, `[statistics]` each, from images that are nobody's."""

    zero: Tensor
    one: Tensor


@torch.no_grad()
def statistics_of(net: nn.Module, images: Tensor) -> tuple[Tensor, list[int]]:
    """Return the first and second moments of all BN layers' inputs, `[N, statistics]`, and each layer's channels."""
    found: list[list[RawMoments]] = [passed(net, part) for part in images.split(_CHUNK)]
    rows = [torch.cat([moment for raw in layers for moment in raw], 1) for layers in found]
    return torch.cat(rows), [raw.first.shape[1] for raw in found[0]]


def units_of(net: nn.Module, images: Tensor) -> Units:
    """Return the mean and deviation of each statistic over images that are nobody's, say noise."""
    found, _ = statistics_of(net, images)
    return Units(found.mean(0), found.std(0) + _TINY * found.std(0).mean() + 1e-12)


def sums_of(found: Tensor, labels: Tensor, classes: int, units: Units, most: float) -> Tensor:
    """Return each class's sum of its images' statistics, in public units and cut to a norm, beside their number.

    One image more changes one row, by at most `SENSITIVITY * most`.

    Args:
        found: `[N, statistics]`.
        labels: `[N]`.
        classes: their number.
        units: public ones.
        most: highest norm.

    Returns:
        `[classes, statistics + 1]` float64; the last column is the number of images times `most`.
    """
    vectors = ((found - units.zero) / units.one).double()
    vectors = vectors * (most / vectors.norm(dim=1, keepdim=True).clamp(min=most))
    vectors = torch.cat([vectors, torch.full_like(vectors[:, :1], most)], 1)
    return torch.nn.functional.one_hot(labels, classes).T.double() @ vectors


def noised_statistics(net: nn.Module, images: Images, classes: int, units: Units, mechanism: Mechanism, clip: float,
                      rng: torch.Generator) -> list[Moments]:
    """Return the moments of every BN layer's input over each class, by a Gaussian mechanism.

    Args:
        net: in eval mode.
        images: of at most so many classes.
        classes: their number.
        units: public ones.
        mechanism: gives the noise.
        clip: highest norm of an image's statistics, as a multiple of the square root of their number.
        rng: draws the noise.
    """
    found, channels = statistics_of(net, images.pixels)
    most = clip * found.shape[1] ** 0.5
    sums = sums_of(found, images.labels, classes, units, most)
    sums = sums + mechanism.noise * SENSITIVITY * most * torch.randn(sums.shape, generator=rng).to(sums)
    means = sums[:, :-1] / (sums[:, -1:] / most).clamp(min=1)
    moments = (means.float() * units.one + units.zero).split([size for each in channels for size in (each, each)], 1)
    return [Moments(first, _variance(first, second)) for first, second in zip(moments[::2], moments[1::2], strict=True)]


def _variance(first: Tensor, second: Tensor) -> Tensor:
    """Return variances, none of which noise has made too small to be one."""
    found = second - first.square()
    return found.clamp(min=_TINY * found.clamp(min=0).mean() + 1e-8)

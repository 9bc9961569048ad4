"""Scores of estimates against originals, one value an image; every definition is pinned in words beside it."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ppbench.errors import UserError

SSIM_DEFINITION = "gaussian 11 sigma 1.5 range 1 valid mean-channels"
PSNR_DEFINITION = "range 1 clipped per-image cap 60"
IDENTIFICATION_DEFINITION = "top-1 pixel-L2 ties 1/number-tied"
PSNR_CAP = 60.0
SSIM_WINDOW = 11

_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_CHUNK_VALUES = 2**20  # values held at once a tensor: 8 MiB in float64


class LocalMoments(NamedTuple):
    """Gaussian-weighted mean and variance around every pixel of the valid region, `[N, C, H-10, W-10]` each."""

    mean: Tensor
    variance: Tensor


def ssim(x: Tensor, y: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
    """Structural similarity of each pair of images (Wang et al. 2004, IEEE TIP 13(4):600).

    Gaussian window of 11 x 11 pixels, sigma 1.5, data range 1, valid region only, mean over channels.
    Differentiable in both arguments.

    Args:
        x: `[N, C, H, W]` in [0, 1].
        y: the same shape.
        precision: what is computed in; float32 takes half the time and is off by up to 1e-4 where images are flat.

    Returns:
        `[N]`, in [-1, 1]; 1 = identical.

    Raises:
        UserError: shapes differ, or an image is smaller than the window.
    """
    _check_pair(x, y)
    rows = max(1, _CHUNK_VALUES // x[0].numel()) if len(x) else 1
    parts = [_ssim_rows(a.to(precision), b.to(precision)) for a, b in zip(x.split(rows), y.split(rows), strict=True)]
    return torch.cat(parts)


def local_moments(images: Tensor) -> LocalMoments:
    """Return what SSIM needs of one side alone: its local means and variances.

    Raises:
        UserError: an image is smaller than the window.
    """
    mean = smooth(images)
    return LocalMoments(mean, smooth(images * images) - mean * mean)


def ssim_from_moments(local_x: LocalMoments, local_y: LocalMoments, cross: Tensor) -> Tensor:
    """Return SSIM `[N]` from both sides' local moments and `cross` = `smooth(x * y)`."""
    product = local_x.mean * local_y.mean
    luminance = (2 * product + _C1) / (local_x.mean**2 + local_y.mean**2 + _C1)
    structure = (2 * (cross - product) + _C2) / (local_x.variance + local_y.variance + _C2)
    return (luminance * structure).flatten(1).mean(1)


def smooth(images: Tensor) -> Tensor:
    """Filter images `[N, C, H, W]` with SSIM's window; only where it fits: `[N, C, H-10, W-10]`.

    Raises:
        UserError: an image is smaller than the window.
    """
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, but these are "
                        f"{height} x {width}: choose a larger size, or leave ssim out of the score groups")
    down, across = (_band(side, images.dtype).to(images.device) for side in (height, width))
    # A product with a banded matrix: 20 times the speed of a one-channel convolution on a CPU.
    return down @ (images @ across.T)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, capped at 60 so that exact recoveries can be averaged.

    Args:
        x: `[N, C, H, W]`; clipped to [0, 1].
        y: the same shape.

    Returns:
        `[N]` float64, at most 60.

    Raises:
        UserError: shapes differ.
    """
    _check_pair(x, y)
    error = (x.double().clamp(0, 1) - y.double().clamp(0, 1)).square().flatten(1).mean(1)
    return (-10 * error.clamp(min=1e-300).log10()).clamp(max=PSNR_CAP)


def identification(estimates: Tensor, gallery: Tensor) -> Tensor:
    """Say for each estimate whether its own target is the nearest of the gallery by L2 (top-1 re-identification).

    Args:
        estimates: `[N, ...]` images or feature vectors.
        gallery: `[G, ...]`, G >= N: first the N targets in order, then the distractors.

    Returns:
        `[N]` float64: 1/(number tied for nearest) where no other is strictly nearer, else 0; chance is 1/G.

    Raises:
        UserError: the gallery is smaller than the number of estimates or has another shape.
    """
    nearest = _nearest(estimates, gallery)
    own = nearest.diagonal()
    return own.double() / nearest.sum(1).clamp(min=1)


def identification_unordered(estimates: Tensor, gallery: Tensor) -> Tensor:
    """Say for each target whether any image of an unordered set retrieves it from the gallery as its nearest.

    Args:
        estimates: `[N, ...]` images or feature vectors, in any order.
        gallery: `[G, ...]`, G >= N: first the N targets, then the distractors.

    Returns:
        `[N]` float64, one a target: the probability of being hit when ties are broken at random. Its mean is the
        expected share of distinct targets hit.

    Raises:
        UserError: the gallery is smaller than the number of estimates or has another shape.
    """
    nearest = _nearest(estimates, gallery).double()
    drawn = nearest / nearest.sum(1, keepdim=True)
    return 1 - (1 - drawn[:, : len(estimates)]).prod(0)


def _nearest(estimates: Tensor, gallery: Tensor) -> Tensor:
    """Return `[N, G]` bool: which gallery entries are nearest to each estimate, all that tie included."""
    if estimates.shape[1:] != gallery.shape[1:] or len(gallery) < len(estimates):
        raise UserError(f"identification needs a gallery of at least {len(estimates)} entries of shape "
                        f"{list(estimates.shape[1:])}, but it is {list(gallery.shape)}: put every target into it")
    squared, scale = _squared_distances(estimates.flatten(1), gallery.flatten(1))
    best = squared.amin(1, keepdim=True)
    # Float64 products are exact to about 1e-13 of the squared norms; 8-bit images that differ at all differ by 1e-5.
    return squared <= best + 1e-10 * scale


def _squared_distances(queries: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances `[N, G]` and, for the rounding error, the squared norms `[N, 1]` they came from."""
    product = torch.zeros(len(queries), len(entries), dtype=torch.float64, device=queries.device)
    query_norms, entry_norms = product.new_zeros(len(queries), 1), product.new_zeros(len(entries))
    columns = max(1, _CHUNK_VALUES // (len(queries) + len(entries)))
    for q, e in zip(queries.split(columns, 1), entries.split(columns, 1), strict=True):
        q, e = q.double(), e.double()
        centre = e.mean(0)
        q, e = q - centre, e - centre
        product.addmm_(q, e.T)
        query_norms += q.square().sum(1, keepdim=True)
        entry_norms += e.square().sum(1)
    return product.mul_(-2).add_(query_norms).add_(entry_norms), query_norms + entry_norms.mean()


def _ssim_rows(x: Tensor, y: Tensor) -> Tensor:
    return ssim_from_moments(local_moments(x), local_moments(y), smooth(x * y))


@lru_cache(maxsize=32)
def _band(side: int, dtype: torch.dtype) -> Tensor:
    """Return the `[side - 10, side]` matrix that filters one axis with the normalised Gaussian window."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    band = torch.zeros(side - SSIM_WINDOW + 1, side, dtype=torch.float64)
    starts = torch.arange(len(band))[:, None]
    band.scatter_(1, starts + torch.arange(SSIM_WINDOW), weights.expand(len(band), -1))
    return band.to(dtype)


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or x.shape != y.shape:
        raise UserError(f"images are compared in pairs of one shape [N, C, H, W], but these are {list(x.shape)} and "
                        f"{list(y.shape)}: resize the estimate to the original's shape first")

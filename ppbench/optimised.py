"""Images optimised on public images for one metric: the strongest guesses that read no release.

Every function works on groups of images: group k < K is class k, group K is all images together; the result is one
image a group. Budgets are counted steps, fewer for larger images and more groups, so that each takes a few seconds.
"""

import math

import torch
from torch import Tensor, nn

from ppbench.data import Images
from ppbench.metrics import LocalMoments, local_moments, smooth, ssim_from_moments
from ppbench.minibatches import shuffled_passes
from ppbench.perceptual import FeatureStatistics, Lpips

_STEPS, _FEWEST_STEPS = 100, 20
_SSIM_RATE = 0.01  # of Adam, in units of pixel values
_LPIPS_RATE = 0.02  # at first; it falls to 0 along half a cosine
_SSIM_BATCH, _SSIM_SMALLEST_BATCH = 128, 16
_SSIM_GRAIN = 4  # pixels a free value: finer ones fit noise (held out, 1,500 CIFAR-10 images: .149 at 4, .143 at 1)
_LPIPS_CANDIDATES = 128
_LPIPS_GROUPS = 200  # of 64 x 64 pixels; beyond, features of every group would fill the memory


def group_means(images: Images, classes: int) -> Tensor:
    """Return the mean image of every class and of all, `[classes + 1, C, H, W]`; an empty class gets that of all."""
    counts = torch.bincount(images.labels, minlength=classes)
    sums = images.pixels.new_zeros(classes, *images.shape).index_add_(0, images.labels, images.pixels)
    means = sums / counts.clamp(min=1).reshape(-1, 1, 1, 1)
    return _with_all_for_empty(torch.cat([means, images.pixels.mean(0, keepdim=True)]), images.labels)


def optimise_ssim(images: Images, classes: int, mirror: bool, rng: torch.Generator) -> Tensor:
    """Maximise the mean SSIM to the images of each group by stochastic gradient steps (Adam, Kingma & Ba 2015).

    Args:
        images: the public images to fit.
        classes: number of classes K.
        mirror: whether half of the images are seen flipped left to right.
        rng: draws the minibatches.

    Returns:
        `[K + 1, C, H, W]` in [0, 1].
    """
    height, width = images.shape[1:]
    area = height * width / 32**2
    batch = min(len(images), max(_SSIM_SMALLEST_BATCH, round(_SSIM_BATCH / area)))
    coarse = (math.ceil(height / _SSIM_GRAIN), math.ceil(width / _SSIM_GRAIN))
    means = group_means(images, classes)
    free = nn.functional.interpolate((means + means.flip(3)) / 2 if mirror else means, coarse, mode="area")
    free.requires_grad_(True)
    steps = _steps(area / 4)
    optimiser = torch.optim.Adam([free], lr=_SSIM_RATE)
    average = torch.zeros_like(free)
    for step, rows in enumerate(shuffled_passes(len(images), batch, steps, rng)):
        seen = images.pixels[rows]
        if mirror:
            seen = torch.where(torch.rand(batch, 1, 1, 1, generator=rng) < 0.5, seen, seen.flip(3))
        optimiser.zero_grad()
        groups = torch.stack([images.labels[rows], torch.full((batch,), classes)])
        _ssim_loss(_enlarged(free, height, width), seen, groups).backward()
        optimiser.step()
        if step >= steps // 2:  # the mean of the later half: minibatches of a few images a class are noisy
            average += free.detach() / (steps - steps // 2)
    return _with_all_for_empty(_enlarged(average, height, width).clamp(0, 1), images.labels)


def optimise_lpips(images: Images, classes: int, lpips: Lpips) -> Tensor:
    """Minimise the mean LPIPS to the images of each group, exactly (see `Lpips.mean_distance`), from near its medoid.

    Args:
        images: the public images to fit.
        classes: number of classes K.
        lpips: the metric.

    Returns:
        `[K + 1, C, H, W]` in [0, 1]; where memory forbids one image a class, all rows are the image for all.
    """
    if (classes + 1) * lpips.cost(images.shape) > _LPIPS_GROUPS:
        everyone = Images(images.pixels, torch.zeros_like(images.labels), images.ids)
        return optimise_lpips(everyone, 1, lpips)[1:].repeat(classes + 1, 1, 1, 1)
    target = group_statistics(images, classes, lpips)
    guesses = (_medoids(images, classes, target, lpips) + group_means(images, classes)) / 2
    guesses.requires_grad_(True)
    steps = _steps(lpips.cost(images.shape) * (classes + 1) / 11)
    optimiser = torch.optim.Adam([guesses], lr=_LPIPS_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        for rows in torch.arange(classes + 1).split(lpips.rows(images.shape)):
            lpips.mean_distance(guesses[rows], _take(target, rows)).sum().backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            guesses.clamp_(0, 1)
    return _with_all_for_empty(guesses.detach(), images.labels)


def group_statistics(images: Images, classes: int, lpips: Lpips) -> FeatureStatistics:
    """Return what `Lpips.mean_distance` needs of every class and of all images: `classes + 1` groups."""
    by_class = lpips.statistics(images.pixels, images.labels, classes)
    share = torch.bincount(images.labels, minlength=classes).to(by_class.square) / len(images)
    mean = [torch.cat([layer, torch.einsum("k,kchw->chw", share, layer)[None]]) for layer in by_class.mean]
    return FeatureStatistics(mean, torch.cat([by_class.square, (share @ by_class.square)[None]]))


def _ssim_loss(guesses: Tensor, seen: Tensor, groups: Tensor) -> Tensor:
    own, other = local_moments(guesses), local_moments(seen)
    similarity = [ssim_from_moments(LocalMoments(own.mean[k], own.variance[k]), other, smooth(guesses[k] * seen)).mean()
                  for k in groups]
    return -torch.stack(similarity).sum()


@torch.no_grad()
def _medoids(images: Images, classes: int, target: FeatureStatistics, lpips: Lpips) -> Tensor:
    """Return, of the first images, the one nearest to all of its group; the group's mean where there is none."""
    count = min(len(images), max(_LPIPS_GROUPS // 10, round(_LPIPS_CANDIDATES / lpips.cost(images.shape))))
    some = images[:count]
    chosen = group_means(images, classes)
    for groups in (some.labels, torch.full_like(some.labels, classes)):
        distance = torch.cat([lpips.mean_distance(some.pixels[rows], _take(target, groups[rows]))
                              for rows in torch.arange(count).split(lpips.rows(images.shape))])
        # written from worst to best, so that the best of a group stays
        for row in distance.argsort(descending=True).tolist():
            chosen[groups[row]] = some.pixels[row]
    return chosen


def _with_all_for_empty(guesses: Tensor, labels: Tensor) -> Tensor:
    """Give classes without images the last row, which stands for all."""
    counts = torch.bincount(labels, minlength=len(guesses) - 1)
    return torch.cat([torch.where(counts.reshape(-1, 1, 1, 1) > 0, guesses[:-1], guesses[-1:]), guesses[-1:]])


def _take(statistics: FeatureStatistics, rows: Tensor) -> FeatureStatistics:
    return FeatureStatistics([layer[rows] for layer in statistics.mean], statistics.square[rows])


def _enlarged(free: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.interpolate(free, (height, width), mode="bicubic", align_corners=False)


def _steps(relative_cost: float) -> int:
    """Return how many steps to take when one costs so many times the usual."""
    return max(_FEWEST_STEPS, min(_STEPS, round(_STEPS / relative_cost)))

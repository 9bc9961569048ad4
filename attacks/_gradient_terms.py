"""What images are expected to be like, whatever gradient they explain: terms that are added to what is minimised.

Every function takes images `[problems, size, C, H, W]` in [0, 1] and returns `[problems]`.
"""

import torch
from torch import Tensor

EPS = 1e-8  # of the root of a squared difference


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours down plus that of neighbours to the right."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs()
    right = (images[..., 1:] - images[..., :-1]).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)


def opponent_variation(images: Tensor) -> Tensor:
    """Return the mean length of the gradient of colour channels and of their differences (double opponents).

    Source: Astrom & Schnorr 2016, "Double-opponent vectorial total variation".
    """
    channels = images.shape[2]
    pairs = [images[:, :, i] - images[:, :, j] for i in range(channels) for j in range(i + 1, channels)]
    planes = torch.cat([images, torch.stack(pairs, 2)], 2) if pairs else images
    down = planes[..., 1:, :-1] - planes[..., :-1, :-1]
    right = planes[..., :-1, 1:] - planes[..., :-1, :-1]
    return (down.square() + right.square() + EPS).sqrt().flatten(1).mean(1)


def seams(images: Tensor, patch: int) -> Tensor:
    """Return the root mean square difference across the seams of patches (Hatamizadeh et al. 2022, GradViT)."""
    found = []
    for axis in (3, 4):
        side = images.shape[axis]
        ends = torch.arange(patch - 1, side - 1, patch, device=images.device)
        found.append((images.index_select(axis, ends) - images.index_select(axis, ends + 1)).flatten(1))
    return (torch.cat(found, 1).square().mean(1) + EPS).sqrt()


def from_grey(images: Tensor) -> Tensor:
    """Return the mean square distance from grey."""
    return (images - 0.5).square().flatten(1).mean(1)


def registered(images: Tensor, reach: int) -> Tensor:
    """Return, for every image, the mean of what all problems hold in its place, shifted to fit it.

    Source: Yin et al. 2021, "See through gradients" (group registration), with whole shifts in place of RANSAC-flow.

    Args:
        images: of problems that are starts of the same search; detach them.
        reach: pixels by which an image may be shifted.
    """
    middle = images.mean(0, keepdim=True)
    shifts = [(down, right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
    errors = torch.stack([(images.roll(shift, (3, 4)) - middle).square().sum((2, 3, 4)) for shift in shifts])
    best = errors.argmin(0)
    rolled = torch.stack([images.roll(shift, (3, 4)) for shift in shifts])
    fitted = rolled.gather(0, best[None, :, :, None, None, None].expand(1, *images.shape))[0]
    consensus = fitted.mean(0, keepdim=True).expand_as(images)
    back = torch.stack([consensus.roll((-down, -right), (3, 4)) for down, right in shifts])
    return back.gather(0, best[None, :, :, None, None, None].expand(1, *images.shape))[0]

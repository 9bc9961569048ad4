"""Batch-norm statistics: the mean and variance of every BN layer's input, for each group of images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Moments(NamedTuple):
    """Mean and biased variance `[rows, channels]` of one layer's input over each group of images."""

    mean: Tensor
    variance: Tensor


class RawMoments(NamedTuple):
    """First and second moment, E[x] and E[x^2], `[N, channels]` of one layer's input in each image."""

    first: Tensor
    second: Tensor


def bn_layers(net: nn.Module) -> list[_BatchNorm]:
    """Return a network's BN layers that keep running statistics."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class _FusedMoments(torch.autograd.Function):
    """E[x] and E[x^2] over the last axis: one fused pass back, several times faster than var_mean's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(values)
        return values.sum(2) / values.shape[2], torch.linalg.vector_norm(values, dim=2) ** 2 / values.shape[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        first, second = (grad[..., None] / values.shape[2] for grad in grads)
        return torch.addcmul(first, values, second, value=2)


def per_image(values: Tensor) -> RawMoments:
    """Return the moments of a layer's input `[N, C, ...]`, one row an image."""
    return RawMoments(*_FusedMoments.apply(values.reshape(*values.shape[:2], -1)))


def pool(raw: RawMoments, group: Tensor, groups: int) -> Moments:
    """Join the rows of images into one row a group, `group[i]` in `[0, groups)` being where image i belongs.

    Every group must have an image.
    """
    share = torch.zeros(groups, len(group), device=group.device)
    share[group, torch.arange(len(group), device=group.device)] = 1
    share /= share.sum(1, keepdim=True)
    mean = share @ raw.first
    return Moments(mean, share @ raw.second - mean ** 2)


@contextmanager
def recorded(net: nn.Module) -> Iterator[list[RawMoments]]:
    """Collect `per_image` of every BN layer's input in a forward pass, in the order of the calls."""
    found: list[RawMoments] = []
    with _watched(net, lambda _, values: found.append(per_image(values))):
        yield found


@torch.no_grad()
def group_statistics(net: nn.Module, images: Tensor, group: Tensor, groups: int, chunk: int = 256) -> list[Moments]:
    """Return the moments of every BN layer's input over each whole group of images.

    Args:
        net: in eval mode, so that an image's activations do not depend on its neighbours.
        images: `[N, C, H, W]` in [0, 1].
        group: `[N]` int64, the group of each image.
        groups: their number.
        chunk: images in one forward pass; it changes memory, not the result.
    """
    passes = []
    for part in images.split(chunk):
        with recorded(net) as found:
            net(part)
        passes.append(found)
    return [pool(RawMoments(*map(torch.cat, zip(*layer, strict=True))), group, groups)
            for layer in zip(*passes, strict=True)]


@torch.no_grad()
def running_statistics(net: nn.Module, images: Tensor, groups: int) -> list[Moments]:
    """Return the BN layers' own running mean and variance, the same for every group, in the order of the calls.

    Args:
        net: in eval mode.
        images: one image or more, to find the order in which the layers are called.
        groups: number of rows wanted.
    """
    called: list[_BatchNorm] = []
    with _watched(net, lambda layer, _: called.append(layer)):
        net(images)
    return [Moments(*(torch.as_tensor(part).expand(groups, -1) for part in (layer.running_mean, layer.running_var)))
            for layer in called]


def distance(now: list[Moments], target: list[Moments]) -> Tensor:
    """Return, for each group, the sum over layers of |mean - mean'| + |variance - variance'| (unsquared L2 norms)."""
    terms = [torch.linalg.vector_norm(a - b, dim=1)
             for layer, wanted in zip(now, target, strict=True) for a, b in zip(layer, wanted, strict=True)]
    return torch.stack(terms).sum(0)


@contextmanager
def _watched(net: nn.Module, note: Callable[[_BatchNorm, Tensor], None]) -> Iterator[None]:
    """Call `note` with each BN layer and its input whenever the layer runs."""
    hooks = [layer.register_forward_pre_hook(lambda module, inputs: note(module, inputs[0]))
             for layer in bn_layers(net)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

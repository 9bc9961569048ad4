"""Batch-norm statistics: the mean and variance of every BN layer's input, for each group of images."""

from collections.abc import Callable, Iterator, Sequence
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
    """First and second moment, E[x] and E[x^2], `[N, channels]` of one layer's input in each image, or their sums."""

    first: Tensor
    second: Tensor


def bn_layers(net: nn.Module) -> list[_BatchNorm]:
    """Return a network's BN layers that keep running statistics."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def per_image(values: Tensor) -> RawMoments:
    """Return the moments of a layer's input `[N, C, ...]`, one row an image."""
    flat = values.reshape(*values.shape[:2], -1)
    return RawMoments(flat.mean(2), flat.square().mean(2))


def pool(raw: RawMoments, group: Tensor, groups: int) -> RawMoments:
    """Add the rows of images up to one row a group, in float64; `group[i]` in `[0, groups)` is image i's."""
    member = torch.nn.functional.one_hot(group, groups).T.double()
    return RawMoments(member @ raw.first.double(), member @ raw.second.double())


class _Tap(torch.autograd.Function):
    """A layer's input as it is, and the moments of each group of its images; one pass over the values back.

    Torch's own batch norm does the arithmetic: on a CPU it is several times faster than `var_mean` and its gradient,
    and sums in float32 whatever the values are.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        # Beside bfloat16 values, float32 statistics make for float32 moments.
        exact = torch.promote_types(values.dtype, torch.float32)
        zero = torch.zeros(values.shape[1], device=values.device, dtype=exact)
        parts = [torch.batch_norm_update_stats(part, zero, zero + 1, 0.0) for part in values.split(sizes)]
        mean, variance = (torch.stack(each) for each in zip(*parts, strict=True))
        ctx.save_for_backward(values, mean)
        ctx.sizes = sizes
        return values.view_as(values), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        values, mean = ctx.saved_tensors
        above, of_mean, of_variance = grads
        counts = mean.new_tensor(ctx.sizes)[:, None] * values[0, 0].numel()
        slope = 2 * of_variance / counts
        offset = of_mean / counts - slope * mean
        parts = [_affine(part, a, b) for part, a, b in zip(values.split(ctx.sizes), slope, offset, strict=True)]
        found = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found.add_(above), None


def _affine(values: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return slope * values + offset, a number for each channel: batch norm's kernel is the fastest for it."""
    return torch.native_batch_norm(values, slope, offset, torch.zeros_like(slope), torch.ones_like(slope),
                                   False, 0.0, 0.0)[0]


@contextmanager
def tapped(net: nn.Module, sizes: Sequence[int]) -> Iterator[list[Moments]]:
    """Collect the moments of every BN layer's input in a forward pass, in the order of the calls; differentiable.

    Args:
        net: in eval mode.
        sizes: how many of the images in the pass belong to each group, one group after the other.
    """
    found: list[Moments] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        values, *moments = _Tap.apply(inputs[0], sizes)
        found.append(Moments(*moments))
        return values  # type: ignore[no-any-return]

    with _hooked(net, note):
        yield found


@torch.no_grad()
def group_statistics(net: nn.Module, images: Tensor, group: Tensor, groups: int, chunk: int = 256) -> list[Moments]:
    """Return the moments of every BN layer's input over each whole group of images.

    Args:
        net: in eval mode, so that an image's activations do not depend on its neighbours.
        images: `[N, C, H, W]` in [0, 1].
        group: `[N]` int64, the group of each image; every group must have one.
        groups: their number.
        chunk: images in one forward pass; it changes memory, not the result.
    """
    layers: list[RawMoments] = []
    for part, where in zip(images.split(chunk), group.split(chunk), strict=True):
        # sums, not rows an image: small tensors kept between large ones would hold on to the memory of these
        found = [pool(raw, where, groups) for raw in passed(net, part)]
        layers = [RawMoments(*(a + b for a, b in zip(*both, strict=True))) for both in
                  zip(layers, found, strict=True)] if layers else found
    counts = group.bincount(minlength=groups)[:, None]
    return [_moments(RawMoments(*(part / counts for part in layer))) for layer in layers]


def _moments(raw: RawMoments) -> Moments:
    mean, second = raw
    return Moments(mean.float(), (second - mean ** 2).clamp(min=0).float())


def passed(net: nn.Module, images: Tensor) -> list[RawMoments]:
    """Return the raw moments of every BN layer's input in each image, in the order of the calls."""
    found: list[RawMoments] = []
    with _hooked(net, lambda _, inputs: found.append(per_image(inputs[0]))):
        net(images)
    return found


@torch.no_grad()
def running_statistics(net: nn.Module, images: Tensor, groups: int) -> list[Moments]:
    """Return the BN layers' own running mean and variance, the same for every group, in the order of the calls.

    Args:
        net: in eval mode.
        images: one image or more, to find the order in which the layers are called.
        groups: number of rows wanted.
    """
    called: list[_BatchNorm] = []
    with _hooked(net, lambda layer, _: called.append(layer)):
        net(images)
    return [Moments(*(torch.as_tensor(part).expand(groups, -1) for part in (layer.running_mean, layer.running_var)))
            for layer in called]


@torch.no_grad()
def places(net: nn.Module, images: Tensor) -> list[int]:
    """Return how many values a channel each BN layer's input has in one image, in the order of the calls."""
    found: list[int] = []
    with _hooked(net, lambda _, inputs: found.append(inputs[0][0, 0].numel())):
        net(images[:1])
    return found


def absolute_distance(now: list[Moments], target: list[Moments]) -> Tensor:
    """Return, for each group, the sum over layers of |mean - mean'| + |variance - variance'| (unsquared L2 norms)."""
    terms = [torch.linalg.vector_norm(a - b, dim=1)
             for layer, wanted in zip(now, target, strict=True) for a, b in zip(layer, wanted, strict=True)]
    return torch.stack(terms).sum(0)


def relative_distance(now: list[Moments], target: list[Moments]) -> Tensor:
    """Return, for each group, the sum over layers of the channels' mean squared error in the target's own units.

    That is ((mean - mean') / deviation')^2 + ((variance - variance') / variance')^2: no layer counts more because its
    values are large, as in `absolute_distance`.
    """
    terms = []
    for layer, wanted in zip(now, target, strict=True):
        unit = wanted.variance + _TINY
        mean = (layer.mean - wanted.mean) ** 2 / unit
        terms.append((mean + ((layer.variance - wanted.variance) / unit) ** 2).mean(1))
    return torch.stack(terms).sum(0)


_TINY = 1e-3  # a channel that does not vary has no units


@contextmanager
def _hooked(net: nn.Module, hook: Callable[[_BatchNorm, tuple[Tensor, ...]], Tensor | None]) -> Iterator[None]:
    """Call `hook` with each BN layer and its inputs before the layer runs."""
    handles = [layer.register_forward_pre_hook(hook) for layer in bn_layers(net)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

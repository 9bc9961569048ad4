"""How the gradients of a layer's weights lie to given ones, without writing them out where that is cheaper.

The gradient of a linear map's weights is `G = sum_t d_t a_t'`, over positions t, of inputs a and gradients d of the
outputs. Its square is `sum_tu (a_t . a_u) (d_t . d_u)` (the "ghost norm" of per-example gradients: Goodfellow 2015,
arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679), and its product with another one, T, is `sum_t d_t . (T a_t)`.
Where positions are few and weights many, G need never be made. All problems pass through the same weights together.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

DENSE = 1.5  # times the weights, which positions x (inputs + outputs) must exceed before gradients are written out

Sums = tuple[Tensor, Tensor]  # `[problems]` each: product with the given gradients, own square


@dataclass(frozen=True)
class Geometry:
    """How a convolution goes over its inputs."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class Kernel:
    """Weights of a convolution that are held fixed.

    Attributes:
        weight: `[outputs, inputs, height, width]`.
        how: geometry.
    """

    weight: Tensor
    how: Geometry

    def convolved(self, inputs: Tensor) -> Tensor:
        """Return the convolution, differentiable by its inputs any number of times."""
        found: Tensor = _Convolved.apply(inputs, self)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the convolution."""
        return F.conv2d(inputs, self.weight, None, self.how.stride, self.how.padding, self.how.dilation)

    def back(self, grads: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of inputs of a shape; where there is no stride, by the faster kernel of a convolution."""
        if self.turned is None:
            made: Tensor = conv2d_input(shape, self.weight, grads, self.how.stride, self.how.padding,
                                        self.how.dilation)
            return made
        height, width = self.weight.shape[2:]
        rest = (height - 1 - self.how.padding[0], width - 1 - self.how.padding[1])
        return F.conv2d(grads, self.turned, None, 1, rest)

    @cached_property
    def turned(self) -> Tensor | None:
        """The weights by which the gradient of the inputs is a convolution; None = there are none."""
        height, width = self.weight.shape[2:]
        how = self.how
        if how.stride != (1, 1) or how.dilation != (1, 1) or how.padding[0] >= height or how.padding[1] >= width:
            return None
        return self.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


class _Convolved(Function):
    """A convolution by fixed weights; torch's own would compute gradients of these, too, in its second derivative."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kernel: Kernel) -> Tensor:
        ctx.kernel, ctx.shape = kernel, inputs.shape
        return kernel.forward(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Back.apply(grads[0], ctx.kernel, ctx.shape), None


class _Back(Function):
    """The derivative of `_Convolved` by its inputs; linear, too, and its derivative is `_Convolved`."""

    @staticmethod
    def forward(ctx: Any, grads: Tensor, kernel: Kernel, shape: torch.Size) -> Tensor:
        ctx.kernel = kernel
        return kernel.back(grads, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Convolved.apply(grads[0], ctx.kernel), None, None


class _Written(Function):
    """The gradients of a convolution's weights, `[groups, O, kh, kw, C]`, one for each group of consecutive images."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, grads: Tensor, groups: int, shape: torch.Size, how: Geometry) -> Tensor:
        ctx.groups, ctx.how = groups, how
        ctx.save_for_backward(inputs, grads)
        pairs = zip(inputs.chunk(groups), grads.chunk(groups), strict=True)
        return torch.stack([conv2d_weight(a, shape, d, how.stride, how.padding, how.dilation).permute(0, 2, 3, 1)
                            for a, d in pairs])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs, outputs = ctx.saved_tensors
        kernels = [Kernel(weight.permute(0, 3, 1, 2), ctx.how) for weight in grads[0]]  # channels last as they are
        some, others = inputs.chunk(ctx.groups), outputs.chunk(ctx.groups)
        to_inputs = (torch.cat([k.back(d, a.shape) for k, a, d in zip(kernels, some, others, strict=True)])
                     if ctx.needs_input_grad[0] else None)
        return to_inputs, torch.cat([k.forward(a) for k, a in zip(kernels, some, strict=True)]), None, None, None


class _Compared(Function):
    """Products of `[problems, n]` with given `[problems, n]` or `[1, n]`, and own squares, at single precision."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, given: Tensor) -> Sums:
        ctx.save_for_backward(made, given)
        least = torch.promote_types(made.dtype, torch.float32)
        rows, others = made.to(least)[:, None], given.to(least)[:, :, None]
        product = rows[:, 0] @ others[0, :, 0] if len(given) == 1 else torch.bmm(rows, others).flatten()
        return product, torch.bmm(rows, rows.mT).flatten()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        made, given = ctx.saved_tensors
        by_product, by_square = (one[:, None] for one in grads)  # both terms nearly cancel: rounded after the sum
        return (by_product * given).addcmul_(made, 2 * by_square).to(made.dtype), None


def convolution_sums(inputs: Tensor, grads: Tensor, given: Tensor, kernel: Kernel, problems: int) -> Sums:
    """Compare the gradients of a convolution's weights with given ones.

    Args:
        inputs: `[problems * images, C, H, W]`.
        grads: `[problems * images, O, h, w]`, of the outputs.
        given: `[problems, O, C, kh, kw]`, or `[1, O, C, kh, kw]`: the same for all problems.
        kernel: the first of them.
        problems: their number.
    """
    how, outputs, size = kernel.how, given.shape[1], given[0, 0].numel()
    positions = len(grads) // problems * grads[0, 0].numel()
    if positions * (size + outputs) > DENSE * size * outputs:
        made: Tensor = _Written.apply(inputs, grads, problems, given.shape[1:], how)
        return written_sums(made, given.permute(0, 1, 3, 4, 2))
    patches = F.unfold(inputs, given.shape[3:], how.dilation, how.padding, how.stride)
    patches, flat = (x.mT.reshape(problems, positions, -1) for x in (patches, grads.flatten(2)))
    if len(given) > 1:
        return linear_sums(patches, flat, given.flatten(2))
    product = inner(kernel.convolved(inputs).unflatten(0, (problems, -1)), grads.unflatten(0, (problems, -1)))
    return product, inner(patches @ patches.mT, flat @ flat.mT)


def linear_sums(inputs: Tensor, grads: Tensor, given: Tensor) -> Sums:
    """Compare the gradients of a linear map's weights with given ones.

    Args:
        inputs: `[problems, positions, K]`.
        grads: `[problems, positions, O]`, of the outputs.
        given: `[problems, O, K]`, or `[1, O, K]`: the same for all problems.
    """
    positions, weights = inputs.shape[1], given[0].numel()
    if positions * (inputs.shape[2] + grads.shape[2]) > DENSE * weights:
        return written_sums(grads.mT @ inputs, given)
    product = inner(inputs @ given.mT, grads)
    return product, inner(inputs @ inputs.mT, grads @ grads.mT)


def written_sums(made: Tensor, given: Tensor) -> Sums:
    """Compare gradients `[problems, ...]` with given ones `[problems, ...]` or `[1, ...]`."""
    found: Sums = _Compared.apply(made.flatten(1), given.flatten(1).detach())
    return found


def added(*sums: Sums) -> Sums:
    """Add up what several parameters tell."""
    return torch.stack([one[0] for one in sums]).sum(0), torch.stack([one[1] for one in sums]).sum(0)


def inner(first: Tensor, second: Tensor) -> Tensor:
    """Return the products `[problems]` of tensors `[problems, ...]`, summed at single precision or better."""
    least = torch.promote_types(first.dtype, torch.float32)
    found: Tensor = torch.linalg.vecdot(first.flatten(1).to(least), second.flatten(1).to(least))
    return found

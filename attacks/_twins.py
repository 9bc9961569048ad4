"""Twins of layers: they do the same, and tell how the gradients of their parameters lie to given ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ppbench.attacks._weight_gradients import (
    Geometry,
    Kernel,
    Sums,
    added,
    convolution_sums,
    linear_sums,
    written_sums,
)
from ppbench.codec import Tensors

Taken = Callable[["Twin", Tensor, Tensor], None]  # takes note of a twin, its inputs, its outputs


class Twin(nn.Module, ABC):
    """A layer's twin.

    Attributes:
        given: name of a parameter -> its given gradients, `[problems, ...]`; `[1, ...]` = the same for all problems.
        take: takes note of what passes.
    """

    def __init__(self, given: Tensors, take: Taken) -> None:
        super().__init__()
        self.given, self.take = given, take

    @abstractmethod
    def sums(self, inputs: Tensor, grads: Tensor, problems: int) -> Sums:
        """Compare the gradients of the parameters with the given ones.

        Args:
            inputs: as noted; all problems share the leading axis.
            grads: of the noted outputs.
            problems: their number.
        """


class Convolution(Twin):
    """Of a two-dimensional convolution."""

    def __init__(self, layer: nn.Conv2d, given: Tensors, take: Taken, dtype: torch.dtype) -> None:
        super().__init__({name: value.to(dtype) for name, value in given.items()}, take)
        how = Geometry(_pair(layer.stride), _pair(layer.padding), _pair(layer.dilation))
        self.kernel, self.first = (Kernel(weight.detach().to(dtype).contiguous(memory_format=torch.channels_last), how)
                                   for weight in (layer.weight, given["weight"][0]))
        self.shift = None if layer.bias is None else layer.bias.detach().to(dtype)[:, None, None]

    def forward(self, inputs: Tensor) -> Tensor:
        """Convolve."""
        outputs = self.kernel.convolved(inputs)
        if self.shift is not None:
            outputs = outputs + self.shift
        self.take(self, inputs, outputs)
        return outputs

    def sums(self, inputs: Tensor, grads: Tensor, problems: int) -> Sums:
        """Compare the gradients of weight and bias with the given ones."""
        found = convolution_sums(inputs, grads, self.given["weight"], self.first, problems)
        if self.shift is None:
            return found
        return added(found, written_sums(_summed(grads.flatten(2).mT, problems), self.given["bias"]))


class Linear(Twin):
    """Of a linear layer, over any number of positions."""

    def __init__(self, layer: nn.Linear, given: Tensors, take: Taken, dtype: torch.dtype) -> None:
        super().__init__({name: value.to(dtype) for name, value in given.items()}, take)
        bias: Tensor | None = layer.bias
        self.weight = layer.weight.detach().to(dtype)
        self.shift = None if bias is None else bias.detach().to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the last axis."""
        outputs = F.linear(inputs, self.weight, self.shift)
        self.take(self, inputs, outputs)
        return outputs

    def sums(self, inputs: Tensor, grads: Tensor, problems: int) -> Sums:
        """Compare the gradients of weight and bias with the given ones."""
        inputs, grads = (x.reshape(problems, -1, x.shape[-1]) for x in (inputs, grads))
        found = linear_sums(inputs, grads, self.given["weight"])
        if self.shift is None:
            return found
        return added(found, written_sums(_summed(grads, problems), self.given["bias"]))


class Still(Twin):
    """Of batch normalisation by fixed statistics: a scale and a shift for every channel.

    Attributes:
        mean: of every channel.
        variance: likewise.
    """

    def __init__(self, layer: _BatchNorm, given: Tensors, take: Taken, dtype: torch.dtype) -> None:
        super().__init__(given, take)
        self.mean, self.variance = (layer.get_buffer(name).detach() for name in ("running_mean", "running_var"))
        self.unit = (self.variance + layer.eps).rsqrt()
        scale = layer.weight.detach() * self.unit
        shift = layer.bias.detach() - self.mean * scale
        self.scale, self.shift = (x.to(dtype)[:, None, None] for x in (scale, shift))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale and shift."""
        outputs = torch.addcmul(self.shift, inputs, self.scale)
        self.take(self, inputs, outputs)
        return outputs

    def sums(self, inputs: Tensor, grads: Tensor, problems: int) -> Sums:
        """Compare the gradients of weight and bias with the given ones."""
        product, total = (_summed(x.flatten(2).mT, problems) for x in (inputs * grads, grads))
        return added(written_sums((product - total * self.mean) * self.unit, self.given["weight"]),
                     written_sums(total, self.given["bias"]))


class Norm(Twin):
    """Of a normalisation by what passes, each of whose channels is then scaled and shifted."""

    def __init__(self, layer: nn.Module, given: Tensors, take: Taken, dtype: torch.dtype,
                 normalise: Callable[[Tensor], Tensor], channels_last: bool) -> None:
        super().__init__(given, take)
        self.normalise, self.channels_last = normalise, channels_last
        scale, shift = (layer.get_parameter(name).detach().to(dtype) for name in ("weight", "bias"))
        self.scale, self.shift = (scale, shift) if channels_last else (scale[:, None, None], shift[:, None, None])

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise, scale and shift."""
        normal = self.normalise(inputs)
        outputs = torch.addcmul(self.shift, normal, self.scale)
        self.take(self, normal, outputs)
        return outputs

    def sums(self, inputs: Tensor, grads: Tensor, problems: int) -> Sums:
        """Compare the gradients of weight and bias with the given ones."""
        product, total = (_summed(x if self.channels_last else x.flatten(2).mT, problems)
                          for x in (inputs * grads, grads))
        return added(written_sums(product, self.given["weight"]), written_sums(total, self.given["bias"]))


class Loose(Twin):
    """Of parameters that belong to no layer, one for all images: position embeddings, class tokens.

    Each image is given its own copy, which counts as a layer's output.
    """

    def __init__(self, owner: nn.Module, name: str, given: Tensor, take: Taken, dtype: torch.dtype) -> None:
        super().__init__({name: given}, take)
        self.name, self.value = name, owner.get_parameter(name).detach().to(dtype)
        self.set = partial(setattr, owner, name)
        delattr(owner, name)

    def spread(self, images: int) -> None:
        """Give each of so many images its own copy."""
        own = self.value.expand(images, *self.value.shape[1:]).clone().requires_grad_()
        self.set(own)
        self.take(self, own, own)

    def sums(self, inputs: Tensor, grads: Tensor, problems: int) -> Sums:
        """Compare the parameter's gradients with the given ones."""
        return written_sums(grads.unflatten(0, (problems, -1)).sum(1, keepdim=True), self.given[self.name])


def twin_of(layer: nn.Module, given: Tensors, take: Taken, dtype: torch.dtype, problems: Callable[[], int],
            ) -> Twin | None:
    """Return the twin of a layer; None = there is none.

    Args:
        layer: whose parameters are all given.
        given: gradients of its parameters by name.
        take: takes note.
        dtype: to compute in.
        problems: tells how many share the batch that passes.
    """
    if set(given) != {name for name, _ in layer.named_parameters(recurse=False)}:
        return None
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return Convolution(layer, given, take, dtype) if plain else None
    if isinstance(layer, nn.Linear):
        return Linear(layer, given, take, dtype)
    if set(given) != {"weight", "bias"}:
        return None
    if isinstance(layer, nn.BatchNorm2d):
        if not layer.training and layer.running_mean is not None:
            return Still(layer, given, take, dtype)
        return Norm(layer, given, take, dtype, lambda x: _by_batch(x, problems(), layer.eps), channels_last=False)
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return Norm(layer, given, take, dtype, lambda x: F.layer_norm(x, layer.normalized_shape, eps=layer.eps), True)
    if isinstance(layer, nn.GroupNorm):
        return Norm(layer, given, take, dtype, lambda x: F.group_norm(x, layer.num_groups, eps=layer.eps), False)
    return None


def _by_batch(inputs: Tensor, problems: int, eps: float) -> Tensor:
    """Normalise the channels of `[problems * size, C, H, W]`, problem by problem."""
    grouped = inputs.unflatten(0, (problems, -1))
    variance, mean = torch.var_mean(grouped, (1, 3, 4), correction=0, keepdim=True)
    normal: Tensor = (grouped - mean) * (variance + eps).rsqrt()
    return normal.flatten(0, 1)


def _summed(values: Tensor, problems: int) -> Tensor:
    """Sum `[problems * size, ..., channels]` to `[problems, channels]`, at single precision or better."""
    precise = torch.promote_types(values.dtype, torch.float32)
    return values.reshape(problems, -1, values.shape[-1]).sum(1, dtype=precise)


def _pair(value: object) -> tuple[int, int]:
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])

"""Images as bits, and bits in the mantissas of float32 weights."""

import torch
from torch import Tensor

from ppbench.codec import Tensors

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MANTISSA = 23  # bits; only these are written, so that no weight becomes infinite or NaN


def carriers(state: Tensors) -> list[str]:
    """Name the float32 tensors of a state that may carry a payload: all but batch statistics, the largest first."""
    fitting = [name for name, value in state.items()
               if value.dtype == torch.float32 and name.rpartition(".")[2] not in STATISTICS]
    return sorted(fitting, key=lambda name: (-state[name].numel(), name))


def to_bits(images: Tensor, depth: int = 8) -> Tensor:
    """Return the `depth` highest bits of every 8-bit value, highest first: `[N, values * depth]` of 0 and 1 (int32)."""
    values = (images.clamp(0, 1) * 255).round().to(torch.int32).flatten(1)
    bits: Tensor = values[..., None] >> torch.arange(7, 7 - depth, -1, dtype=torch.int32) & 1
    return bits.flatten(1)


def from_bits(bits: Tensor, shape: tuple[int, ...], depth: int = 8) -> Tensor:
    """Invert `to_bits`: images `[N, *shape]` in [0, 1]; where `depth` < 8, the middle of what the bits leave open."""
    places: Tensor = 2 ** torch.arange(7, 7 - depth, -1)
    open_bits = 2 ** (8 - depth) - 1
    values: Tensor = (bits.reshape(len(bits), -1, depth) * places).sum(2) + open_bits / 2
    return (values.float() / 255).reshape(len(bits), *shape)


def hide(weights: Tensor, payload: Tensor, bits: int) -> Tensor:
    """Write a payload of 0 and 1 into the `bits` lowest mantissa bits of float32 weights `[n]`, from the first on.

    Weights beyond the payload, and the bits of the last group beyond its end, stay as they are.
    """
    words = weights.view(torch.int32).clone()
    used = -(-len(payload) // bits)
    shifts = torch.arange(bits - 1, -1, -1, dtype=torch.int32)
    old = words[:used, None] >> shifts & 1
    new = torch.cat([payload.to(torch.int32), old.flatten()[len(payload):]]).reshape(used, bits)
    words[:used] += ((new - old) << shifts).sum(1, dtype=torch.int32)
    return words.view(torch.float32)


def reveal(weights: Tensor, count: int, bits: int) -> Tensor:
    """Read `count` payload bits back (int32)."""
    used = -(-count // bits)
    shifts = torch.arange(bits - 1, -1, -1, dtype=torch.int32)
    return (weights[:used].contiguous().view(torch.int32)[:, None] >> shifts & 1).flatten()[:count]


def flatten(state: Tensors, names: list[str]) -> Tensor:
    """Concatenate the named tensors."""
    return torch.cat([state[name].flatten() for name in names])


def unflatten(flat: Tensor, state: Tensors, names: list[str]) -> Tensors:
    """Return the state with the named tensors replaced by consecutive parts of `flat`."""
    parts = flat.split([state[name].numel() for name in names])
    return {**state, **{name: part.reshape(state[name].shape) for name, part in zip(names, parts, strict=True)}}

"""Negatives: v -> 1 - v, exact on the values that an 8-bit file can hold."""

import torch
from torch import Tensor


def negative(values: Tensor) -> Tensor:
    """Return 1 - v for values in [0, 1]; k/255 becomes (255 - k)/255 to the last bit, which float's 1 - v does not."""
    return (255 - values * 255) / 255


def negate(values: Tensor, where: Tensor) -> Tensor:
    """Turn the values named by a boolean mask (broadcast) to their negatives; doing it twice undoes it."""
    return torch.where(where, negative(values), values)

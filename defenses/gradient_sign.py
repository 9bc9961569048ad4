"""Signs: of every value of an update only the sign is sent, and one magnitude for each parameter.

Source: Bernstein et al. 2018, "signSGD" (arXiv 1802.04434); the scale of Karimireddy et al. 2019, "Error feedback fixes
SignSGD" (arXiv 1901.09847), without its memory.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.defense import UpdateDefense
from ppbench.model import Update

TINY = 1e-30  # magnitude that is as good as none
SOFT = 2.0  # mean magnitudes within which a sign is imitated by a slope


@dataclass(frozen=True)
class GradientSign(UpdateDefense):
    """Send the sign of every value, times the mean magnitude of its parameter's values."""

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Replace each value by its sign times the mean magnitude."""
        return replace(update, values={name: value.sign() * _magnitude(value) for name, value in update.values.items()})

    def imitate(self, made: Tensors, sent: Tensors) -> Tensors:
        """Replace each value by a soft sign times the mean magnitude."""
        scales = {name: _magnitude(value) for name, value in made.items()}
        return {name: (value / (SOFT * scales[name]).clamp(min=TINY)).tanh() * scales[name]
                for name, value in made.items()}


def _magnitude(value: Tensor) -> Tensor:
    """Return the mean magnitude of each of `[N, ...]`, as `[N, 1, ...]`."""
    return value.abs().flatten(1).mean(1).reshape(-1, *[1] * (value.ndim - 1))

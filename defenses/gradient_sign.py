"""Signs: of every value of an update only the sign is sent, and one magnitude for each parameter.

Source: Bernstein et al. 2018, "signSGD" (arXiv 1802.04434); the scale of Karimireddy et al. 2019, "Error feedback fixes
SignSGD" (arXiv 1901.09847), without its memory.
"""

from dataclasses import dataclass, replace

import torch

from ppbench.defense import UpdateDefense
from ppbench.model import Update


@dataclass(frozen=True)
class GradientSign(UpdateDefense):
    """Send the sign of every value, times the mean magnitude of its parameter's values."""

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Replace each value by its sign times the mean magnitude."""
        values = {name: value.sign() * value.abs().flatten(1).mean(1).reshape(-1, *[1] * (value.ndim - 1))
                  for name, value in update.values.items()}
        return replace(update, values=values)

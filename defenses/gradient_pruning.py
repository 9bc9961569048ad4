"""Pruning: only the largest values of an update are sent.

Source: Zhu et al. 2019, "Deep leakage from gradients" (arXiv 1906.08935), section 5.2; Lin et al. 2018, "Deep gradient
compression" (arXiv 1712.01887), without its memory of what was not sent.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.bounds import between
from ppbench.codec import Tensors
from ppbench.defense import UpdateDefense
from ppbench.model import Update


@dataclass(frozen=True)
class GradientPruning(UpdateDefense):
    """Set the smallest values of every parameter's update to 0.

    Attributes:
        share: of the values that are not sent.
    """

    share: float = 0.9

    def __post_init__(self) -> None:
        between(self, 0, 1, "share")

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Prune each update, parameter by parameter; of each at least one value is sent."""
        return replace(update, values={name: self._pruned(value) for name, value in update.values.items()})

    def imitate(self, made: Tensors, sent: Tensors) -> Tensors:
        """Leave the values that were sent."""
        return {name: value * (sent[name] != 0) for name, value in made.items()}

    def _pruned(self, value: Tensor) -> Tensor:
        flat = value.flatten(1)
        kept = max(1, flat.shape[1] - round(self.share * flat.shape[1]))
        largest = flat.abs().topk(kept, dim=1).indices
        return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest)).reshape(value.shape)

"""Secure aggregation: the server sees the mean of many clients' updates and none of them alone.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning" (CCS). The masks
that cancel in the sum are not simulated: what the server learns is their sum, exactly.
"""

from dataclasses import dataclass, replace

import torch

from ppbench.bounds import at_least
from ppbench.defense import UpdateDefense
from ppbench.model import Update


@dataclass(frozen=True)
class SecureAggregation(UpdateDefense):
    """Average the updates of so many clients, which follow each other, into one.

    Attributes:
        cohort: clients whose updates are averaged; of the last ones there may be fewer.
    """

    cohort: int = 8

    def __post_init__(self) -> None:
        at_least(self, 1, "cohort")

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Return the means; every client counts alike."""
        values = {name: torch.stack([some.mean(0) for some in value.split(self.cohort)])
                  for name, value in update.values.items()}
        return replace(update, values=values, clients=update.clients * self.cohort)

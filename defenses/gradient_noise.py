"""Clipping and noise: the update is cut to a norm, and Gaussian noise is added (the Gaussian mechanism).

Source: Abadi et al. 2016, "Deep learning with differential privacy" (arXiv 1607.00133), on whole updates as in
McMahan et al. 2018, "Learning differentially private recurrent language models" (arXiv 1710.06963).
"""

from dataclasses import dataclass, replace

import torch

from ppbench.bounds import above_zero, at_least
from ppbench.codec import Tensors
from ppbench.defense import UpdateDefense
from ppbench.model import Update

SENSITIVITY = 2  # times the norm: by how much an update may change where one of its images is another


@dataclass(frozen=True)
class GradientNoise(UpdateDefense):
    """Clip every update to a norm, and add Gaussian noise in proportion.

    Attributes:
        clip: highest norm of an update, over all parameters.
        noise: standard deviation of the noise added to every value, in units of `clip`; 0 = clipping alone.
    """

    clip: float = 1.0
    noise: float = 0.01

    def __post_init__(self) -> None:
        above_zero(self, "clip")
        at_least(self, 0, "noise")

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Clip each update, and add noise."""
        squares = torch.stack([value.flatten(1).double().square().sum(1) for value in update.values.values()]).sum(0)
        factor = (self.clip / squares.sqrt().clamp(min=self.clip)).float()
        values: Tensors = {}
        for name, value in update.values.items():
            drawn = torch.randn(value.shape, generator=rng).to(value)
            scale = factor.to(value).reshape(-1, *[1] * (value.ndim - 1))
            values[name] = value * scale + self.clip * self.noise * drawn
        return replace(update, values=values)

    def epsilon(self, updates: int, delta: float = 1e-5) -> float | None:
        """Return the epsilon of (epsilon, delta) differential privacy for one image in so many updates of its client.

        Images count as neighbours where one is replaced by another; the accountant is that of Renyi differential
        privacy (Mironov 2017, arXiv 1702.07476) in `opacus`. Without noise there is none.
        """
        if not self.noise:
            return None
        from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

        orders = [1 + 10 ** (x / 100) for x in range(-400, 400)]
        spent = compute_rdp(q=1.0, noise_multiplier=self.noise / SENSITIVITY, steps=updates, orders=orders)
        return float(get_privacy_spent(orders=orders, rdp=spent, delta=delta)[0])

"""Memorization: training code that hides its data in the weights of the model it gives back.

Source: Song, Ristenpart & Shmatikov 2017, "Machine learning models that remember too much" (CCS).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from ppbench.attack import Priors, Reconstruction, TrainingAttack
from ppbench.attacks._payload import MANTISSA, carriers, flatten, from_bits, hide, reveal, to_bits, unflatten
from ppbench.bounds import above_zero
from ppbench.codec import Tensors
from ppbench.defense import Release, resize
from ppbench.view import View

DEPTH = 4  # highest bits of a pixel that sign encoding stores: half the capacity buys nothing visible
FORCE = {"sign": 0.02, "correlated": 6e-4}  # the paper's lambda over the number of weights in use


@dataclass(frozen=True)
class Memorization(TrainingAttack):
    """Hide the released images in the victim's weights, read them back from the weights (Song et al. 2017).

    The first released images are the targets'; as many as fit are hidden.

    Attributes:
        encoding: `lsb` overwrites the low mantissa bits after training; `sign` and `correlated` add to the loss.
        bits: mantissa bits a weight that `lsb` overwrites, 1 to 23.
        strength: factor on the weight of the loss term, which grows with the number of weights that carry the images.
    """

    requires = frozenset({"model", "training", "public"})
    default_threat = "malicious-trainer"
    ceiling = 0.95
    encoding: Literal["lsb", "sign", "correlated"] = "lsb"
    bits: int = 16
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MANTISSA:
            raise ValueError(f"bits is {self.bits}; it must lie between 1 and {MANTISSA}")
        above_zero(self, "strength")

    def capacity(self, weights: int, shape: tuple[int, ...]) -> int:
        """Return how many images of `shape` so many weights hold."""
        values = prod(shape)
        return {"lsb": weights * self.bits // (8 * values), "sign": weights // (DEPTH * values),
                "correlated": weights // values}[self.encoding]

    def penalty(self, release: Release, net: nn.Module, rng: torch.Generator,
                ) -> Callable[[nn.Module], Tensor] | None:
        """Return the loss term that draws the weights towards the images; None for `lsb`."""
        state = net.state_dict()
        names = carriers(state)
        images = release.images[: self.capacity(len(flatten(state, names)), release.shape)]
        if self.encoding == "lsb" or len(images) == 0:
            return None
        force = self.strength * FORCE[self.encoding]
        if self.encoding == "sign":
            signs = to_bits(images, DEPTH).flatten().float() * 2 - 1
            return lambda net: force * (-signs.to(_home(net)) * _weights(net, names, len(signs))).relu().sum()
        values = _standardised(images.flatten())
        return lambda net: -force * (values.to(_home(net)) * _standardised(_weights(net, names, len(values)))).sum()

    def finish(self, release: Release, state: Tensors, rng: torch.Generator) -> Tensors:
        """Write the images into the low mantissa bits (`lsb`)."""
        if self.encoding != "lsb":
            return state
        names = carriers(state)
        weights = flatten(state, names)
        images = release.images[: self.capacity(len(weights), release.shape)]
        return unflatten(hide(weights, to_bits(images).flatten(), self.bits), state, names)

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Read the targets' released images from the weights; fill up with the public mean."""
        state = view.model.state
        assert state is not None
        weights = flatten(state, carriers(state))
        fits = self.capacity(len(weights), view.released_shape)
        held = min(fits, view.n_targets)
        mean = resize(view.public.pixels.mean(0, keepdim=True), view.released_shape)
        found = mean.repeat(view.n_targets, 1, 1, 1)
        if held:
            found[:held] = self._decode(weights, held, fits, view)
        missing = f"; {view.n_targets - held} beyond it are the public mean" if held < view.n_targets else ""
        return Reconstruction(found, aligned=True, of="released",
                              note=f"{self.encoding}: capacity {fits} images{missing}")

    def _decode(self, weights: Tensor, held: int, fits: int, view: View) -> Tensor:
        values = prod(view.released_shape)
        if self.encoding == "lsb":
            return from_bits(reveal(weights, held * values * 8, self.bits).reshape(held, -1), view.released_shape)
        if self.encoding == "sign":
            bits = (weights[: held * values * DEPTH] > 0).int()
            return from_bits(bits.reshape(held, -1), view.released_shape, DEPTH)
        public = resize(view.public.pixels, view.released_shape)
        scaled = _standardised(weights[: held * values]) * public.std() + public.mean()
        return scaled.reshape(held, *view.released_shape).clamp(0, 1)


def _home(net: nn.Module) -> torch.device:
    """Return where the victim is trained."""
    return next(net.parameters()).device


def _weights(net: nn.Module, names: list[str], count: int) -> Tensor:
    return flatten(net.state_dict(keep_vars=True), names)[:count]


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-12)

"""Memorization: training code that hides its data in the model it gives back.

Source: Song, Ristenpart & Shmatikov 2017, "Machine learning models that remember too much" (CCS).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from ppbench.attack import Priors, Reconstruction, TrainingAttack
from ppbench.attacks._encodings import Correlated, Encoding, Labels, LowBits, Signs
from ppbench.attacks._payload import MANTISSA, carriers, flatten
from ppbench.bounds import above_zero, at_least, between
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import Release, resize
from ppbench.view import View

FORCE = {"sign": 0.02, "correlated": 6e-4}  # the paper's lambda over the number of weights in use
MOST_INPUTS = 10**6


@dataclass(frozen=True)
class Memorization(TrainingAttack):
    """Hide the released images in the victim, read them back from its weights or its answers (Song et al. 2017).

    The first released images are the targets'; as many as fit are hidden.

    Attributes:
        encoding: `lsb` overwrites the low mantissa bits after training; `sign` and `correlated` add to the loss;
            `abuse` adds synthetic inputs to the training set, whose labels spell the images (capacity abuse).
        bits: mantissa bits a weight that `lsb` overwrites, 1 to 23.
        strength: factor on the weight of the loss term, which grows with the number of weights that carry the images.
        images: hidden at most; 0 = as many as fit.
        side: to which images are shrunk before they are hidden, in pixels; 0 = not at all.
        inputs: synthetic ones, at most, that `abuse` adds.
        repeats: weights that hold each bit (`sign`) or value (`correlated`); reading averages them.
    """

    requires = frozenset({"model", "training", "public"})
    default_threat = "malicious-trainer"
    ceiling = 0.95
    encoding: Literal["lsb", "sign", "correlated", "abuse"] = "lsb"
    bits: int = 16
    strength: float = 1.0
    images: int = 0
    side: int = 0
    inputs: int = 5000
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MANTISSA:
            raise ValueError(f"bits is {self.bits}; it must lie between 1 and {MANTISSA}")
        above_zero(self, "strength")
        at_least(self, 0, "images", "side")
        if self.repeats < 1 or (self.repeats > 1 and self.encoding not in FORCE):
            raise ValueError(f"repeats is {self.repeats}; it must be at least 1, and 1 with the encoding "
                             f"{self.encoding!r}: it is for {' and '.join(FORCE)}")
        between(self, 1, MOST_INPUTS, "inputs")

    def capacity(self, shape: Shape, weights: int = 0, classes: int = 1) -> int:
        """Return how many images of `shape` fit into so many weights, or into the labels of so many classes."""
        return self._encoding.fits(prod(self._kept(shape)), weights, classes)

    def penalty(self, release: Release, net: nn.Module, rng: torch.Generator,
                ) -> Callable[[nn.Module], Tensor] | None:
        """Return the loss term that draws the weights towards the images (`sign`, `correlated`)."""
        state = net.state_dict()
        images = self._hidden(release, self.capacity(release.shape, len(flatten(state, carriers(state)))))
        return self._encoding.penalty(images, net) if len(images) else None

    def more(self, release: Release, classes: int, rng: torch.Generator) -> Images | None:
        """Return the synthetic inputs of `abuse`."""
        images = self._hidden(release, self.capacity(release.shape, classes=classes))
        return self._encoding.more(images, release.shape, classes) if len(images) else None

    def finish(self, release: Release, state: Tensors, rng: torch.Generator) -> Tensors:
        """Write the images into the low mantissa bits (`lsb`)."""
        images = self._hidden(release, self.capacity(release.shape, len(flatten(state, carriers(state)))))
        return self._encoding.finish(images, state)

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Read the targets' released images from the model; fill up with the public mean."""
        state, shape = view.model.state, view.released_shape
        assert state is not None
        fits = self.capacity(shape, len(flatten(state, carriers(state))), view.classes)
        held = min(fits, self.images or fits, view.n_targets)
        found = resize(view.public.pixels.mean(0, keepdim=True), shape).repeat(view.n_targets, 1, 1, 1)
        if held:
            found[:held] = resize(self._encoding.read(view, held, self._kept(shape)), shape)
        missing = f"; {view.n_targets - held} beyond it are the public mean" if held < view.n_targets else ""
        limit = f", {self.images} of them used" if 0 < self.images < fits else ""
        return Reconstruction(found, aligned=True, of="released",
                              note=f"{self.encoding}: capacity {fits} images{limit}{missing}")

    @property
    def _encoding(self) -> Encoding:
        if self.encoding == "lsb":
            return LowBits(self.bits)
        if self.encoding == "abuse":
            return Labels(self.inputs)
        force = self.strength * FORCE[self.encoding]
        return Signs(force, self.repeats) if self.encoding == "sign" else Correlated(force, self.repeats)

    def _kept(self, shape: Shape) -> Shape:
        channels, height, width = shape
        longer = max(height, width)
        if not 0 < self.side < longer:
            return shape
        return channels, max(1, height * self.side // longer), max(1, width * self.side // longer)

    def _hidden(self, release: Release, fits: int) -> Tensor:
        """Return the released images that are hidden, as small as they are."""
        images = release.images[:min(fits, self.images or fits)]
        return resize(images, self._kept(release.shape)) if len(images) else images

"""What averaging leaves: the image most likely behind a release that a fixed linear map made, or a sharper one."""

from dataclasses import dataclass

import torch

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._affine import AffineMap, map_of, noise_of
from ppbench.attacks._consistent import as_seen
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._inverter import described, estimated, known_labels, loss_of, to_compare_on
from ppbench.attacks._pairs import learnt
from ppbench.attacks._wiener import Spectrum, Wiener
from ppbench.attacks.unet_inverter import UnetPrior
from ppbench.bounds import above_zero, at_least, between
from ppbench.codec import Tensors
from ppbench.defense import resize
from ppbench.view import View


@dataclass(frozen=True)
class NaturalImages(Prior):
    """Choose the Gaussian prior that restores public images best, every fourth held out, protected by the adversary.

    The candidates: the power spectrum of the other public images, and plain smoothness of the same contrast.
    """

    needs = frozenset({"public", "algorithm"})
    steps: int = 200

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return the chosen prior (`Spectrum.as_tensors`); nothing where the defense is no fixed linear map."""
        through = map_of(view)
        if through is None:
            return {}
        some, tests = view.public.pixels[learnt(len(view.public))], to_compare_on(view)
        released = view.algorithm.protect(tests, rng).images
        found = [Spectrum.of(some), Spectrum.smooth(some)]
        errors = [(_solver(view, through, prior, self.steps).estimate(released) - tests.pixels).square().mean()
                  for prior in found]
        best = int(torch.stack(errors).argmin())
        return found[best].as_tensors() | {"chosen": torch.tensor(best), "errors": torch.stack(errors)}


@dataclass(frozen=True)
class Thumbnail(Attack):
    """Solve for the image behind a fixed, linear defense: mix-up, pixelation, blur (Wiener 1949), or learn it.

    The closed form minimises `|A x - y|^2 / s + |x - m|^2_P`, A the defense itself, s the variance of rounding to 8
    bit, and P a stationary prior: the power spectrum of the public images, or smoothness where that does better on a
    hold-out. The learned form is the U-Net of `unet-inverter`, of the same settings trained once for both; what it
    finds is changed as little as can be until A makes of it what was released. The one that does better on held-out
    public images is used. What A keeps (the mean of every patch, say) comes back as it was released. Of any other
    defense, the release itself is returned.

    Attributes:
        iterations: of conjugate gradients at most.
        steps: optimiser steps of the U-Net; 0 = the closed form alone.
        batch: pairs in a step.
        width: channels at half the side; twice as many with every further halving.
        depth: convolutions at every side on the way down, and on the way up.
        rate: highest learning rate.
        amp: let the U-Net learn in bfloat16, on GPUs and CPUs that have it: several times as fast.
    """

    requires = frozenset({"images", "public", "algorithm"})
    uses = frozenset({"labels"})
    default_threat = "ciphertext-only"
    iterations: int = 200
    steps: int = 250
    batch: int = 32
    width: int = 24
    depth: int = 2
    rate: float = 1.5e-3
    amp: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "batch", "width", "depth")
        between(self, 0, MOST_STEPS, "steps")
        above_zero(self, "rate")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the prior of natural images and the U-Net, which depend on public images and algorithm alone."""
        found: dict[str, Prior] = {"natural": NaturalImages(self.iterations)}
        if self.steps and map_of(view) is not None:
            found["learned"] = self._unet()
        return found

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the most likely images, or those that the network makes of the release where it is the better."""
        natural = priors["natural"]
        through = map_of(view) if natural else None
        if through is None:
            return Reconstruction(resize(view.images, view.image_shape), aligned=view.has_partner,
                                  note="degenerate: as-released")
        solver = _solver(view, through, Spectrum.from_tensors(natural), self.iterations)
        if "learned" in priors:
            inverter = self._unet().load(priors["learned"], view)
            tests = to_compare_on(view)
            seen = view.algorithm.protect(tests, rng).images
            ways = solver.estimate(seen), as_seen(view, estimated(inverter, view, seen, tests.labels), seen)
            closed, learned = (float(loss_of(found, tests.pixels).mean()) for found in ways)
            if learned < closed:
                found = as_seen(view, estimated(inverter, view, view.images, known_labels(view)), view.images)
                return Reconstruction(found, aligned=view.has_partner, note=f"learned, {described(priors['learned'])}")
        prior = ("the public power spectrum", "smoothness")[int(natural["chosen"])]
        return Reconstruction(solver.estimate(view.images), aligned=view.has_partner,
                              note=f"most likely under {prior}")

    def _unet(self) -> UnetPrior:
        return UnetPrior(self.steps, self.batch, self.width, self.depth, self.rate, self.amp)


def _solver(view: View, through: AffineMap, prior: Spectrum, iterations: int) -> Wiener:
    return Wiener.of(through, prior, noise_of(view), view.image_shape, iterations)

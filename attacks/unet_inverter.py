"""Inversion by a U-Net trained on plain and protected images."""

from dataclasses import dataclass

from torch import nn

from ppbench.attacks._inverter import InverterAttack, InverterPrior, Problem
from ppbench.attacks._inverter_unet import UNet


@dataclass(frozen=True)
class UnetPrior(InverterPrior):
    """A U-Net on top of the linear estimate; parameters as those of the attack."""

    def network(self, problem: Problem) -> nn.Module:
        """Build the U-Net."""
        return UNet(problem, self.width, self.depth)


@dataclass(frozen=True)
class UnetInverter(InverterAttack):
    """Undo the defense with a U-Net trained on public images protected with own keys (Ito et al. 2021).

    The inverse transformation network of the image encryption literature (Ito, Kinoshita, Aprilpyone & Kiya 2021,
    "Image to perturbation", IEEE Access 9), on top of the linear MMSE estimate; known pairs are learnt from as well.
    Translators that learn against a discriminator (the "GAN attack" of the same literature) have no counterpart here.

    Attributes:
        steps: optimiser steps.
        batch: pairs in a step.
        width: channels at half the side; twice as many with every further halving.
        depth: convolutions at every side on the way down, and on the way up.
        rate: highest learning rate.
        amp: learn in bfloat16, on GPUs and CPUs that have it: several times as fast.
    """

    requires = frozenset({"images", "public", "algorithm"})
    uses = frozenset({"pairs", "labels"})
    default_threat = "ciphertext-only"
    steps: int = 250
    batch: int = 32
    width: int = 24
    depth: int = 2
    rate: float = 1.5e-3
    amp: bool = False

    def prior(self) -> InverterPrior:
        """Name the inverter to train."""
        return UnetPrior(self.steps, self.batch, self.width, self.depth, self.rate, self.amp)

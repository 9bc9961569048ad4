"""Inversion by a vision transformer trained on plain and protected images."""

from dataclasses import dataclass

from torch import nn

from ppbench.attacks._inverter import InverterAttack, InverterPrior, Problem
from ppbench.attacks._inverter_vit import VitCodec


@dataclass(frozen=True)
class VitPrior(InverterPrior):
    """A vision transformer on top of the linear estimate; parameters as those of the attack."""

    def network(self, problem: Problem) -> nn.Module:
        """Build the transformer."""
        return VitCodec(problem, self.width, self.depth)


@dataclass(frozen=True)
class VitInverter(InverterAttack):
    """Undo the defense with a vision transformer trained on public images protected with own keys (He et al. 2022).

    A masked-autoencoder-style encoder and decoder (arXiv 2111.06377) on top of the linear MMSE estimate; where the
    defense moves blocks, the encoder knows no positions. Known pairs are learnt from as well.

    Attributes:
        steps: optimiser steps.
        batch: pairs in a step.
        width: of a token.
        depth: blocks of the encoder, and of the decoder.
        rate: highest learning rate.
        amp: learn in bfloat16: several times as fast on a GPU or a CPU with AMX, slow on other CPUs.
    """

    requires = frozenset({"images", "public", "algorithm"})
    uses = frozenset({"pairs", "labels"})
    default_threat = "ciphertext-only"
    steps: int = 200
    batch: int = 24
    width: int = 96
    depth: int = 2
    rate: float = 2e-3
    amp: bool = False

    def prior(self) -> InverterPrior:
        """Name the inverter to train."""
        return VitPrior(self.steps, self.batch, self.width, self.depth, self.rate, self.amp)

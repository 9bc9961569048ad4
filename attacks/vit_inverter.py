"""Inversion by a vision transformer trained on plain and protected images."""

from dataclasses import dataclass

import torch
from torch import nn

from ppbench.attack import Prior, Priors, Reconstruction
from ppbench.attacks._arranger import ArrangerPrior, arranged, size_of_whole_pieces
from ppbench.attacks._inverter import InverterAttack, InverterPrior, Problem
from ppbench.attacks._inverter_vit import VitCodec
from ppbench.attacks._pairs import telling_pairs
from ppbench.attacks._simulate import ANYONE
from ppbench.blocks import cut
from ppbench.view import View


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

    Where blocks are moved and nothing else, and no pairs tell how, a permutation head puts them back (`arrange`).

    Attributes:
        steps: optimiser steps.
        batch: pairs in a step.
        width: of a token.
        depth: blocks of the encoder, and of the decoder.
        rate: highest learning rate.
        amp: learn in bfloat16, on GPUs and CPUs that have it: several times as fast.
        arrange: estimate where moved blocks belong, and put them there; false: paint the image anew.
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
    arrange: bool = True

    def prior(self) -> InverterPrior:
        """Name the inverter to train."""
        return VitPrior(self.steps, self.batch, self.width, self.depth, self.rate, self.amp)

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the arranger to train, or the inverters."""
        arranger = self._arranger(view)
        return super().priors(view) if arranger is None else {"arranger": arranger}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return every target with its blocks where they are believed to belong, or the inverter's estimate."""
        arranger = self._arranger(view)
        if arranger is None:
            return super().run(view, priors, rng)
        found = priors["arranger"]
        images = arranged(arranger.load(found, view), cut(view.images, arranger.size), bool(found["hard"]))
        best, steps = found["best"].tolist()
        return Reconstruction(images, aligned=view.has_partner, note=f"arranged; step {best} of {steps}",
                              objective=found["objective"])

    def _arranger(self, view: View) -> ArrangerPrior | None:
        size = size_of_whole_pieces(view) if self.arrange else None
        if size is None or telling_pairs(view, ANYONE) is not None:
            return None
        return ArrangerPrior(size, self.steps, self.batch, self.width, self.depth, self.rate, self.amp)

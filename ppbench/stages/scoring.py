"""From a reconstruction to its scores."""

from typing import Any

import torch

from ppbench.attack import Reconstruction
from ppbench.calibrate import Guesses
from ppbench.data import Split
from ppbench.defense import Pieces
from ppbench.judge import train_judge
from ppbench.score import ScoreSettings, Truth, score
from ppbench.stages.values import Inputs, Made, Protected, Table
from ppbench.verifier import train_verifier


def make_judge(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Train the classifier by which `recognition` and `identification_feature` are measured."""
    images = inputs.load(Split, "split")
    return Made(Table(train_judge(images.public, images.classes, rng)))


def make_verifier(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Train the network by which `verification` is measured."""
    return Made(Table(train_verifier(inputs.load(Split, "split").public, rng)))


def make_score(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Score a reconstruction against the private images."""
    images, protected = inputs.load(Split, "split"), inputs.load(Protected, "release")
    guesses = {name.removeprefix("guess:"): Guesses.from_tensors(inputs.load(Table, name).values)
               for name in inputs.files if name.startswith("guess:")}
    judge, verifier = inputs.maybe(Table, "judge"), inputs.maybe(Table, "verifier")
    truth = Truth(images, protected.release, params["targets"], params["labels_known"], guesses,
                  judge.values if judge else None, verifier.values if verifier else None,
                  Pieces(**params["pieces"]) if params["pieces"] else None)
    return Made(score(truth, inputs.load(Reconstruction, "found"), inputs.maybe(Reconstruction, "outer"),
                      ScoreSettings(**params["settings"]), rng))

"""From a reconstruction to its scores."""

from typing import Any

import torch

from ppbench.accusation import accusation
from ppbench.attack import Membership, Reconstruction
from ppbench.calibrate import Guesses
from ppbench.data import Split
from ppbench.defense import Pieces
from ppbench.floors import Floors, floors
from ppbench.halving import Lineup
from ppbench.judge import train_judge
from ppbench.matching import Order
from ppbench.score import Truth, score
from ppbench.scorers import ScoreSettings, Yardstick
from ppbench.stages.values import Inputs, Made, Protected, Table
from ppbench.verifier import train_verifier


def make_judge(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Train the classifier by which `recognition` and `identification_feature` are measured."""
    images = inputs.load(Split, "split")
    return Made(Table(train_judge(images.public, images.classes, rng)))


def make_verifier(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Train the network by which `verification` is measured."""
    return Made(Table(train_verifier(inputs.load(Split, "split").public, rng)))


def make_floor(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Score what a blind guess makes of the targets."""
    guesses = {name.removeprefix("guess:"): Guesses.from_tensors(inputs.load(Table, name).values)
               for name in inputs.files if name.startswith("guess:")}
    return Made(floors(_yardstick(inputs, params), Order(**params["order"]), guesses, params["labels_known"], rng))


def make_score(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Score a reconstruction against the private images."""
    truth = Truth(_yardstick(inputs, params), inputs.load(Protected, "release").release,
                  inputs.load(Floors, "floor"), Order(**params["order"]),
                  Pieces(**params["pieces"]) if params["pieces"] else None)
    return Made(score(truth, inputs.load(Reconstruction, "found"), inputs.maybe(Reconstruction, "outer"), rng))


def make_accusation(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Score how well members were told from others."""
    return Made(accusation(inputs.load(Membership, "found").scores, inputs.load(Lineup, "lineup")))


def _yardstick(inputs: Inputs, params: dict[str, Any]) -> Yardstick:
    judge, verifier = inputs.maybe(Table, "judge"), inputs.maybe(Table, "verifier")
    return Yardstick(inputs.load(Split, "split"), params["targets"], ScoreSettings(**params["settings"]),
                     judge.values if judge else None, verifier.values if verifier else None)

"""What stages take and give: stored inputs, what was made, and the values that pass between them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppbench import codec
from ppbench.attack import Attack
from ppbench.codec import Tensors
from ppbench.defense import Defense, Keys, PerImageDefense, Release
from ppbench.model import Model
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.threat import ThreatModel
from ppbench.view import Sealed, View

T = TypeVar("T")


class Inputs:
    """The stored inputs of a job, by name; and where the defense's own files lie, which nothing stored says."""

    def __init__(self, files: dict[str, str], places: Ref | None = None) -> None:
        self.files = files
        self.places = places

    def view(self) -> View:
        """Read the view, its defense ready to be run."""
        sealed = self.load(Sealed, "view")
        if sealed.algorithm is not None and self.places is not None:
            ref = sealed.algorithm.ref.at(self.places)
            sealed = replace(sealed, algorithm=replace(sealed.algorithm, ref=ref))
        return View(sealed)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def load(self, kind: type[T], name: str) -> T:
        """Read an input."""
        return codec.load(kind, Path(self.files[name]))

    def maybe(self, kind: type[T], name: str) -> T | None:
        """Read an input that may not be there."""
        return self.load(kind, name) if name in self.files else None


@dataclass(frozen=True)
class Made:
    """What a stage made: a value to be stored (None = nothing) and small facts beside it."""

    value: Any
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clients:
    """Who holds each private and sends each test image, `[N]` int64."""

    private: Tensor
    test: Tensor


@dataclass(frozen=True)
class Keyring:
    """The keys of the private and of the test images."""

    private: Keys | None
    test: Keys | None


@dataclass(frozen=True)
class Protected:
    """What the victim is trained and tested on."""

    release: Release
    queries: Tensor
    query_labels: Tensor


@dataclass(frozen=True)
class Unprotected(PerImageDefense):
    """Images as they are: what the plain victim is trained on, beside which task accuracy stands."""

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Return the images unchanged."""
        return images


@dataclass(frozen=True)
class Trained:
    """A victim and its task accuracy on test images."""

    model: Model
    accuracy: float


@dataclass(frozen=True)
class Table:
    """Tensors by name, say a prior."""

    values: Tensors


def defense_of(params: dict[str, Any]) -> Defense:
    """Build the defense that a stage is told of; None = nothing is protected."""
    if params["defense"] is None:
        return Unprotected()
    defense: Defense = build(Ref.from_json(params["defense"]))
    return defense


def attack_of(params: dict[str, Any]) -> Attack:
    """Build the attack that a stage is told of."""
    attack: Attack = build(Ref.from_json(params["ref"]))
    return attack


def threat_of(params: dict[str, Any]) -> ThreatModel:
    """Build the threat model that a stage is told of."""
    return ThreatModel(**{**params["threat"], "grants": frozenset(params["threat"]["grants"])})

"""What a plan is: every cell of a run, spelt out before any computing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ppbench import __version__
from ppbench.data import Halving, SplitSizes
from ppbench.defense import KeyScope
from ppbench.plugins import is_file
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.sources import code_digest
from ppbench.store import json_digest
from ppbench.suite import LimitsTable, ScoreTable
from ppbench.threat import ThreatModel

CLIENTS = 4


@dataclass(frozen=True)
class DatasetPlan:
    """A data set and how it is split."""

    ref: Ref
    size: int | None
    sizes: SplitSizes
    content: str
    """Tells two files of the same name apart."""
    halving: Halving | None = None
    """How private images are halved; None = the defense gets all of them."""

    @property
    def whole(self) -> "DatasetPlan":
        """The same, not halved."""
        return replace(self, halving=None)

    @property
    def private(self) -> int:
        """How many private images the defense gets."""
        return self.sizes.private if self.halving is None else self.halving.kept(self.sizes.private)

    @property
    def label(self) -> str:
        """As it stands in the row."""
        return label(self.ref)

    def described(self) -> dict[str, Any]:
        """What a row says of it: parameters, sizes, and the start of the content's digest."""
        content = {"content": self.content[:12]} if self.content else {}
        return {**self.ref.params, "size": self.size, **self.sizes.described(), **content, **self._halved()}

    def _halved(self) -> dict[str, Any]:
        return {} if self.halving is None else {"halved": asdict(self.halving)}

    def identity(self) -> list[Any]:
        """What the split is a function of, seed apart."""
        return [self.ref.identity, self.content[:16], self.size, {**self.sizes.described(), **self._halved()}]


@dataclass(frozen=True)
class DefensePlan:
    """A defense and how it is deployed."""

    ref: Ref
    key_scope: KeyScope | None
    quantise: int
    clients: int = 1
    victim_params: frozenset[str] = frozenset()
    """Parameters that only the victim's network depends on."""
    shields: bool = False
    """The updates of clients are protected: a victim learns from protected ones."""

    def identity(self) -> list[Any]:
        """What the defense declares itself to be."""
        clients = [self.clients] if self.key_scope == "client" else []
        return [self.ref.identity, self.key_scope, self.quantise, *clients]

    def protection(self) -> "DefensePlan":
        """The same as far as keys and release depend on it."""
        params = {name: value for name, value in self.ref.params.items() if name not in self.victim_params}
        return replace(self, ref=replace(self.ref, params=params))


@dataclass(frozen=True)
class AttackPlan:
    """An attack or a chain of two, with what the chain requires."""

    refs: tuple[Ref, ...]
    requires: frozenset[str]
    trains: bool
    """The (outer) attack acts in training."""
    role: str = "attack"
    """`floor` and `ceiling` are yardsticks."""
    ceiling: float | None = None
    """SSIM that it must reach on the defense `none`, under its default threat model."""
    default_threat: str = ""
    asks: bool = False
    """The (outer) attack puts questions to an oracle, where there is one."""
    crafts: bool = False
    """The (outer) attack makes the model that clients get."""

    @property
    def accuses(self) -> bool:
        """Say whether it tells members from others, in the place of estimating images."""
        return "candidates" in self.requires

    @property
    def label(self) -> str:
        """`a` or `a+b`."""
        return "+".join(label(ref) for ref in self.refs)


@dataclass(frozen=True)
class Cell:
    """One (dataset, defense, attack, threat model, seed)."""

    dataset: DatasetPlan
    defense: DefensePlan
    attack: AttackPlan
    threat: ThreatModel
    victim: Recipe
    seed: int

    @property
    def identity(self) -> list[Any]:
        """What the cell declares itself to be."""
        return [self.dataset.identity(), self.defense.identity(), [ref.identity for ref in self.attack.refs],
                [self.threat.name, self.threat.settings()], asdict(self.victim), self.seed]

    @property
    def id(self) -> str:
        """Folder name: 16 hex digits."""
        return json_digest(self.identity)[:16]

    @property
    def refs(self) -> tuple[Ref, ...]:
        """All plug-ins of the cell."""
        return (self.dataset.ref, self.defense.ref, *self.attack.refs)

    @property
    def missing(self) -> list[str]:
        """The capabilities that the attack requires and the threat model does not grant."""
        return sorted(self.attack.requires - self.threat.grants)

    def __str__(self) -> str:
        return f"{self.dataset.label} | {label(self.defense.ref)} | {self.attack.label} | {self.threat.name}"


@dataclass(frozen=True)
class Plan:
    """All that a run is a function of."""

    name: str
    cells: tuple[Cell, ...]
    targets: int
    score: ScoreTable
    limits: LimitsTable
    environment: dict[str, Any]
    """Versions, device and the frame's own sources."""
    lpips: str = ""
    """LPIPS's definition, or why it is not measured."""
    quality: str = ""
    """What the quality metrics depend on, where they are asked for."""
    device: str = "cpu"
    weights: Mapping[str, Path] = field(default_factory=dict)
    """Where the weights lie that a victim starts from, by what its recipe calls them."""

    def fingerprint(self, cell: Cell) -> str:
        """Digest of all that a row is a function of: a finished row is kept while this stays the same."""
        codes = [cell.dataset.ref.code, cell.dataset.content, cell.defense.ref.code,
                 [ref.code for ref in cell.attack.refs], network_code(cell.victim.model)]
        return json_digest([cell.identity, codes, self.targets, self.score.model_dump(), self.lpips, self.quality,
                            self.limits.threads, self.environment])

    def as_json(self) -> dict[str, Any]:
        """What plan.json holds."""
        return {"ppbench": __version__, "name": self.name, "targets": self.targets,
                "score": self.score.model_dump(), "limits": self.limits.model_dump(),
                "environment": self.environment, "lpips": self.lpips, "quality": self.quality,
                "cells": [{"id": cell.id, "fingerprint": self.fingerprint(cell), "identity": cell.identity,
                           "code": [ref.code for ref in (cell.dataset.ref, cell.defense.ref, *cell.attack.refs)]}
                          for cell in self.cells]}


def label(ref: Ref) -> str:
    """Name a component in a row: as it was given, without folders."""
    if ref.group == "datasets" and set(ref.params) >= {"path"}:
        return f"{ref.name}:{Path(ref.params['path']).name}"
    return Path(ref.name).name if is_file(ref.name) else ref.name


def network_code(factory: str) -> str:
    """Digest the sources of a `package.module:function` network; a library's are pinned by its version."""
    source, _, _ = factory.partition(":")
    return "" if source in ("timm", "torchvision") else code_digest(source)

"""From a suite to a plan: every name resolved, every parameter checked, every cell spelt out, before any computing."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic_core import to_jsonable_python

from ppbench import __version__
from ppbench.attack import Attack, TrainingAttack
from ppbench.data import Dataset, SplitSizes
from ppbench.defense import Defense, KeyScope
from ppbench.device import described
from ppbench.errors import UserError
from ppbench.files import file_digest, resolved
from ppbench.perceptual import find_trunk
from ppbench.plugins import build, configure, is_file, load_class, suggest
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.sources import code_digest, file_code_digest, versions
from ppbench.store import json_digest
from ppbench.suite import AttackTable, DatasetTable, DefenseTable, LimitsTable, PlugInTable, ScoreTable, Suite
from ppbench.threat import NAMED, ThreatModel, derived

FRAME = "ppbench.stages"
CLIENTS = 4
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class DatasetPlan:
    """A data set and how it is split."""

    ref: Ref
    size: int | None
    sizes: SplitSizes
    content: str
    """Tells two files of the same name apart."""

    @property
    def label(self) -> str:
        """As it stands in the row."""
        return label(self.ref)

    def described(self) -> dict[str, Any]:
        """What a row says of it: parameters, sizes, and the start of the content's digest."""
        content = {"content": self.content[:12]} if self.content else {}
        return {**self.ref.params, "size": self.size, **asdict(self.sizes), **content}

    def identity(self) -> list[Any]:
        """What the split is a function of, seed apart."""
        return [self.ref.identity, self.content[:16], self.size, asdict(self.sizes)]


@dataclass(frozen=True)
class DefensePlan:
    """A defense and how it is deployed."""

    ref: Ref
    key_scope: KeyScope | None
    quantise: int
    clients: int = 1
    victim_params: frozenset[str] = frozenset()
    """Parameters that only the victim's network depends on."""

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
    device: str = "cpu"
    weights: Mapping[str, Path] = field(default_factory=dict)
    """Where the weights lie that a victim starts from, by what its recipe calls them."""

    def fingerprint(self, cell: Cell) -> str:
        """Digest of all that a row is a function of: a finished row is kept while this stays the same."""
        codes = [cell.dataset.ref.code, cell.dataset.content, cell.defense.ref.code,
                 [ref.code for ref in cell.attack.refs], network_code(cell.victim.model)]
        return json_digest([cell.identity, codes, self.targets, self.score.model_dump(), self.lpips,
                            self.limits.threads, self.environment])

    def as_json(self) -> dict[str, Any]:
        """What plan.json holds."""
        return {"ppbench": __version__, "name": self.name, "targets": self.targets,
                "score": self.score.model_dump(), "limits": self.limits.model_dump(),
                "environment": self.environment, "lpips": self.lpips,
                "cells": [{"id": cell.id, "fingerprint": self.fingerprint(cell), "identity": cell.identity,
                           "code": [ref.code for ref in (cell.dataset.ref, cell.defense.ref, *cell.attack.refs)]}
                          for cell in self.cells]}


def label(ref: Ref) -> str:
    """Name a component in a row: as it was given, without folders."""
    if ref.group == "datasets" and set(ref.params) >= {"path"}:
        return f"{ref.name}:{Path(ref.params['path']).name}"
    return Path(ref.name).name if is_file(ref.name) else ref.name


def make_plan(suite: Suite, folder: Path, device: str = "cpu") -> Plan:
    """Resolve a suite; paths in it are relative to `folder`, `device` is one that is there.

    Raises:
        UserError: a name, parameter or threat model is wrong; says which and what would do.
    """
    threats = _threats(suite)
    weights: dict[str, Path] = {}
    datasets = [_dataset(table, folder) for table in suite.dataset]
    victims = [_victim(_merged(suite.victim, table.victim), folder, weights) for table in suite.defense]
    defenses = [_defense(table, victim, folder) for table, victim in zip(suite.defense, victims, strict=True)]
    attacks = [(_attack(table, folder), _threats_of(table, threats, folder)) for table in suite.attack]
    cells = _unique([Cell(dataset, defense, attack, threat, victim, seed)
                     for seed in suite.seeds for dataset in datasets
                     for defense, victim in zip(defenses, victims, strict=True)
                     for attack, those in attacks for threat in those])
    for cell in cells:
        _check_cell(cell, suite.targets)
    environment = {"versions": versions(), "device": described(device), "frame": code_digest(FRAME)}
    return Plan(suite.name, cells, suite.targets, suite.score, suite.limits, environment, _lpips(suite.score), device,
                weights)


def _merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return `[victim]` with what a defense changes in it.

    A victim of one client leaves the federation behind, and another model the arguments and weights of the first.
    """
    left = {"local_epochs", "skew"} if own.get("clients") == 1 else set()
    left |= {"kwargs", "weights"} if own.get("model", common.get("model")) != common.get("model") else set()
    return {key: value for key, value in common.items() if key not in left} | own


def _check_cell(cell: Cell, targets: int) -> None:
    """Hold the sizes of a data set, a victim and a threat model against each other.

    Raises:
        UserError: they cannot go together; says what to change.
    """
    private, defense = cell.dataset.sizes.private, build(cell.defense.ref)
    if targets > private:
        raise UserError(f"targets is {targets}, but {cell.dataset.label} has {private} private images: lower targets "
                        "or raise private")
    if targets > (released := defense.count(private)):
        raise UserError(f"targets is {targets}, but {label(cell.defense.ref)} releases {released} images: lower "
                        "targets or let it release more")
    if cell.victim.clients > 1 and private < 2 * cell.victim.clients:
        raise UserError(f"{private} private images are too few for {cell.victim.clients} clients with at least 2 each: "
                        "lower clients in [victim] or raise private")
    if cell.defense.key_scope == "client" and private < cell.defense.clients:
        raise UserError(f"{private} private images are too few for {cell.defense.clients} clients of "
                        f"{label(cell.defense.ref)}: lower clients or raise private")
    if "gradients" in cell.threat.grants:
        try:
            cell.victim.until(cell.threat.round)
        except ValueError as error:
            raise UserError(f"{cell.threat.name}: {error}") from error


def _victim(table: dict[str, Any], folder: Path, weights: dict[str, Path]) -> Recipe:
    """Resolve a victim's table; note where its weights lie in `weights`."""
    recipe: Recipe = configure(Recipe, "victim", table)
    if recipe.weights not in ("", PRETRAINED):
        path = resolved(folder, recipe.weights)
        recipe = replace(recipe, weights=_named_by_content(path, "victim: weights"))
        weights[recipe.weights] = path
    source, _, name = recipe.model.partition(":")
    if not source or not name:
        raise UserError(f"victim: the model {recipe.model!r} is none of timm:NAME, torchvision:NAME and "
                        "package.module:function: write one of these")
    return recipe


def _lpips(table: ScoreTable) -> str:
    """Find LPIPS's weights before the run, downloading them where the network answers."""
    if "lpips" not in table.groups:
        return ""
    found = find_trunk(table.lpips_trunk, download=True)
    return found if isinstance(found, str) else found.definition


def _named_by_content(path: Path, what: str) -> str:
    """Return a file's name with the start of its digest: what it is, wherever it lies.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{what}: {str(path)!r} is no file: give one, relative to the suite")
    return f"{path.name}@{_content(path)[:12]}"


def network_code(factory: str) -> str:
    """Digest the sources of a `package.module:function` network; a library's are pinned by its version."""
    source, _, _ = factory.partition(":")
    return "" if source in ("timm", "torchvision") else code_digest(source)


def _unique(cells: list[Cell]) -> tuple[Cell, ...]:
    """Drop repeated cells, keeping the order.

    Raises:
        UserError: two plug-in files of one name are not the same.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        twin = found.setdefault(cell.id, cell)
        for mine, other in zip(cell.refs, twin.refs, strict=True):
            if mine.code != other.code:
                raise UserError(f"two different files are given as {mine.name}: rename one of them")
    return tuple(found.values())


def _ref(group: str, table: PlugInTable, folder: Path) -> tuple[Ref, type]:
    """Resolve a table's plug-in and hold its parameters to the class."""
    name, params, file = table.use, table.params, None
    if is_file(name):
        path, _, attribute = name.rpartition(":")
        source = (folder / path).resolve()
        cls = load_class(group, name, str(source))
        file, name = str(source), f"{source.name}:{attribute}"
        code = file_code_digest(source)
    else:
        if ":" in name:
            name, _, path = name.partition(":")
            if not path:
                raise UserError(f"{table.use!r} names no path: write {name}:PATH")
            params = {"path": path, **params}
        cls = load_class(group, name)
        code = code_digest(cls.__module__)
    named = [key for key in getattr(cls, "files", ()) if isinstance(params.get(key), str) and params[key]]
    files = {key: resolved(folder, params[key]) for key in named}
    contents = {key: _named_by_content(path, f"{name}: {key}") for key, path in files.items()}
    places = {key: str(path) for key, path in files.items()}
    component = configure(cls, name, {**params, **places})
    networks = [network_code(str(getattr(component, key))) for key in getattr(cls, "networks", ())]
    code = json_digest([code, *networks]) if any(networks) else code
    return Ref(group, name, {**_declared(component, {**params, **places}), **contents}, code, file, places), cls


def _declared(component: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Return the validated values of the parameters that differ from their defaults.

    So `patch=4`, `patch=4.0` and nothing at all are one cell where 4 is the default.
    """
    if not is_dataclass(component):
        return params
    given = [field for field in fields(component) if field.name in params]
    return {field.name: to_jsonable_python(getattr(component, field.name)) for field in given
            if field.default is MISSING or getattr(component, field.name) != field.default}


def _dataset(table: DatasetTable, folder: Path) -> DatasetPlan:
    ref, cls = _ref("datasets", table, folder)
    assert issubclass(cls, Dataset)
    sizes = SplitSizes(table.private, table.public, table.test)
    content = ""
    if "path" in ref.params:
        path = resolved(folder, ref.params["path"])
        # Where a file lies is not what it is: the same run elsewhere gives the same cells and seeds.
        ref = replace(ref, params={**ref.params, "path": str(path)}) if is_file(ref.name) else \
            replace(ref, params={**ref.params, "path": path.name}, file=str(path))
        content = _content(path)
    size = table.size if table.size is not None else cls.default_size
    return DatasetPlan(ref, size, sizes, content)


def _content(path: Path) -> str:
    """Digest a file, or the names and contents of a folder's files; a missing one is the data set's own error."""
    try:
        if path.is_file():
            return file_digest(path)
        found = [(str(file.relative_to(path)), file_digest(file)) for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    return json_digest(found)


def _defense(table: DefenseTable, victim: Recipe, folder: Path) -> DefensePlan:
    ref, cls = _ref("defenses", table, folder)
    assert issubclass(cls, Defense)
    scopes = cls.key_scopes
    if not isinstance(scopes, tuple) or set(scopes) - set(get_args(KeyScope)):
        raise UserError(f"{ref.name}: key_scopes is {scopes!r}; it must be a tuple of {', '.join(get_args(KeyScope))}")
    if table.key_scope is not None and table.key_scope not in scopes:
        raise UserError(f"{ref.name}: the key scope {table.key_scope!r} is not supported; "
                        + (f"choose one of {', '.join(scopes)}" if scopes else "the defense has no key: leave it out"))
    scope = table.key_scope or (scopes[0] if scopes else None)
    if table.clients is not None and scope != "client":
        raise UserError(f"{ref.name}: clients is {table.clients}, but the key scope is {scope!r}: give clients with "
                        "key_scope=client only")
    federated = victim.clients if victim.clients > 1 else None
    if table.clients is not None and federated not in (None, table.clients):
        raise UserError(f"{ref.name}: clients is {table.clients}, but the victim is trained by {federated}: leave "
                        "one of the two out")
    clients = (federated or table.clients or CLIENTS) if scope == "client" else 1
    if federated and not cls.partnered:
        raise UserError(f"{ref.name} releases images that no client holds, so that there is nothing to train on in a "
                        "federation: give it victim = { clients = 1 } in its table")
    if federated and build(ref).mixes:
        raise UserError(f"{ref.name} mixes the images of several clients, which none of them holds: give it victim = "
                        "{ clients = 1 } in its table")
    return DefensePlan(ref, scope, table.quantise, clients, cls.victim_params)


def _attack(table: AttackTable, folder: Path) -> AttackPlan:
    outer, cls = _ref("attacks", table, folder)
    assert issubclass(cls, Attack)
    refs, requires = [outer], set(cls.requires)
    _check_requires(outer.name, cls.requires)
    if issubclass(cls, TrainingAttack) and "training" not in cls.requires:
        raise UserError(f"{outer.name} acts in training, but does not say so: add \"training\" to its `requires`")
    if table.then is not None:
        inner, inner_cls = _ref("attacks", table.then, folder)
        assert issubclass(inner_cls, Attack)
        _check_requires(inner.name, inner_cls.requires)
        if issubclass(inner_cls, TrainingAttack):
            raise UserError(f"{inner.name} acts in training and cannot follow {outer.name}: let it come first")
        if "oracle" in inner_cls.requires:
            raise UserError(f"{inner.name} asks an oracle and cannot follow {outer.name}: let it stand alone")
        refs.append(inner)
        requires |= set(inner_cls.requires) - {"images"}
    if issubclass(cls, TrainingAttack) and "gradients" in requires:
        raise UserError(f"{outer.name} acts in training and cannot also ask for gradients: require one of the two")
    role, ceiling = (cls.role, cls.ceiling) if len(refs) == 1 else ("attack", None)
    return AttackPlan(tuple(refs), frozenset(requires), issubclass(cls, TrainingAttack), role, ceiling,
                      cls.default_threat)


def _check_requires(name: str, requires: frozenset[str]) -> None:
    known = NAMED["full-knowledge"].grants
    for capability in sorted(set(requires) - set(known)):
        raise UserError(f"{name} requires the unknown capability {capability!r}{suggest(capability, sorted(known))}")


def _threats(suite: Suite) -> dict[str, ThreatModel]:
    found = dict(NAMED)
    for table in suite.threat:
        if table.base not in found:
            raise UserError(f"threat.{table.name}: there is no threat model {table.base!r}"
                            f"{suggest(table.base, list(found))}")
        try:
            made = derived(table.name, found[table.base], table.settings)
        except ValueError as error:
            raise UserError(f"threat.{table.name}: {error}") from error
        if found.setdefault(table.name, made) != made:
            raise UserError(f"threat.{table.name}: there is another threat model of this name: choose a new one")
    return found


def _threats_of(table: AttackTable, threats: Mapping[str, ThreatModel], folder: Path,
                ) -> list[ThreatModel]:
    names = table.threats
    if names is None:
        _, cls = _ref("attacks", table, folder)
        names = [cls.default_threat]  # type: ignore[attr-defined]
    for name in names:
        if name not in threats:
            raise UserError(f"{table.use}: there is no threat model {name!r}{suggest(name, list(threats))}")
    return [threats[name] for name in names]

"""From a suite to a plan: every name resolved, every parameter checked, every cell spelt out, before any computing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from ppbench.attack import Attack, CraftingAttack, TrainingAttack
from ppbench.data import Dataset, Halving, SplitSizes
from ppbench.defense import Defense, KeyScope
from ppbench.device import described
from ppbench.errors import UserError
from ppbench.files import resolved
from ppbench.perceptual import find_trunk
from ppbench.plan import CLIENTS, AttackPlan, Cell, DatasetPlan, DefensePlan, Plan, label
from ppbench.plugins import build, configure, is_file, suggest
from ppbench.quality import quality_definition
from ppbench.recipe import PRETRAINED, RANDOM, Recipe
from ppbench.sources import code_digest, versions
from ppbench.suite import AttackTable, DatasetTable, DefenseTable, ScoreTable, Suite
from ppbench.tables import content_digest, find_plugin, named_by_content
from ppbench.threat import CAPABILITIES, NAMED, ThreatModel, derived

FRAME = "ppbench.stages"


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
    cells = _unique([Cell(dataset if attack.accuses else dataset.whole, defense, attack, threat, victim, seed)
                     for seed in suite.seeds for dataset in datasets
                     for defense, victim in zip(defenses, victims, strict=True)
                     for attack, those in attacks for threat in those])
    _check_canaries(suite, attacks)
    for cell in cells:
        _check_cell(cell, suite.targets)
    environment = {"versions": versions(), "device": described(device), "frame": code_digest(FRAME)}
    return Plan(suite.name, cells, suite.targets, suite.score, suite.limits, environment, _lpips(suite.score),
                quality_definition() if "quality" in suite.score.groups else "", device, weights)


def _check_canaries(suite: Suite, attacks: Sequence[tuple[AttackPlan, Any]]) -> None:
    """Hold what is said of canaries against the attacks.

    Raises:
        UserError: nobody asks for them.
    """
    given = [table.use for table in suite.dataset if table.model_fields_set & {"canaries", "canary_copies"}]
    if given and not any(attack.accuses for attack, _ in attacks):
        raise UserError(f"{given[0]}: canaries are for attacks on membership, and the suite has none: add one, or "
                        "leave canaries out")


def _halving(table: DatasetTable) -> Halving:
    """Say how private images are halved for attacks on membership: canaries in pairs, by default one in twenty."""
    count = 2 * max(1, table.private // 40) if table.canaries is None else table.canaries
    if count % 2 or count > table.private:
        raise UserError(f"canaries is {count}; it must be an even number of at most private = {table.private}")
    return Halving(count, table.canary_copies)


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
    private, defense = cell.dataset.private, build(cell.defense.ref)
    if targets > private:
        halved = f", of which {cell.attack.label} keeps one half from the defense" if cell.attack.accuses else ""
        raise UserError(f"targets is {targets}, but {cell.dataset.label} has {cell.dataset.sizes.private} private "
                        f"images{halved}: lower targets or raise private")
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
    if recipe.weights not in ("", PRETRAINED, RANDOM):
        path = resolved(folder, recipe.weights)
        recipe = replace(recipe, weights=named_by_content(path, "victim: weights"))
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


def _dataset(table: DatasetTable, folder: Path) -> DatasetPlan:
    ref, cls = find_plugin("datasets", table, folder)
    assert issubclass(cls, Dataset)
    sizes = SplitSizes(table.private, table.public, table.test, table.disjoint)
    content = ""
    if "path" in ref.params:
        path = resolved(folder, ref.params["path"])
        # Where a file lies is not what it is: the same run elsewhere gives the same cells and seeds.
        ref = replace(ref, params={**ref.params, "path": str(path)}) if is_file(ref.name) else \
            replace(ref, params={**ref.params, "path": path.name}, file=str(path))
        content = content_digest(path)
    size = table.size if table.size is not None else cls.default_size
    return DatasetPlan(ref, size, sizes, content, _halving(table))


def _defense(table: DefenseTable, victim: Recipe, folder: Path) -> DefensePlan:
    ref, cls = find_plugin("defenses", table, folder)
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
    return DefensePlan(ref, scope, table.quantise, clients, cls.victim_params, cls.shields())


def _attack(table: AttackTable, folder: Path) -> AttackPlan:
    outer, cls = find_plugin("attacks", table, folder)
    assert issubclass(cls, Attack)
    refs, requires = [outer], set(cls.requires)
    _check_capabilities(outer.name, cls)
    if issubclass(cls, TrainingAttack) and "training" not in cls.requires:
        raise UserError(f"{outer.name} acts in training, but does not say so: add \"training\" to its `requires`")
    if issubclass(cls, CraftingAttack) and not cls.requires >= {"gradients", "server"}:
        raise UserError(f"{outer.name} crafts the clients' model, but does not say so: add \"gradients\" and "
                        "\"server\" to its `requires`")
    if table.then is not None and "candidates" in cls.requires:
        raise UserError(f"{outer.name} estimates no images that another attack could take further: let it stand alone")
    if table.then is not None:
        inner, inner_cls = find_plugin("attacks", table.then, folder)
        assert issubclass(inner_cls, Attack)
        _check_capabilities(inner.name, inner_cls)
        if issubclass(inner_cls, TrainingAttack):
            raise UserError(f"{inner.name} acts in training and cannot follow {outer.name}: let it come first")
        if "candidates" in inner_cls.requires:
            raise UserError(f"{inner.name} tells members from others and cannot follow {outer.name}: let it stand "
                            "alone")
        if issubclass(inner_cls, CraftingAttack):
            raise UserError(f"{inner.name} crafts the clients' model and cannot follow {outer.name}: let it come first")
        if "oracle" in inner_cls.requires:
            raise UserError(f"{inner.name} asks an oracle and cannot follow {outer.name}: let it stand alone")
        refs.append(inner)
        requires |= set(inner_cls.requires) - {"images"}
    if issubclass(cls, TrainingAttack) and "gradients" in requires:
        raise UserError(f"{outer.name} acts in training and cannot also ask for gradients: require one of the two")
    role, ceiling = (cls.role, cls.ceiling) if len(refs) == 1 else ("attack", None)
    return AttackPlan(tuple(refs), frozenset(requires), issubclass(cls, TrainingAttack), role, ceiling,
                      cls.default_threat, asks="oracle" in cls.requires | cls.uses,
                      crafts=issubclass(cls, CraftingAttack))


def _check_capabilities(name: str, cls: type[Attack]) -> None:
    known = CAPABILITIES
    for verb, wanted in (("requires", cls.requires), ("uses", cls.uses)):
        for capability in sorted(set(wanted) - known):
            raise UserError(f"{name} {verb} the unknown capability {capability!r}{suggest(capability, sorted(known))}")


    if "candidates" in cls.uses:
        raise UserError(f"{name} uses \"candidates\", which only attacks on membership see: name it in `requires`, or "
                        "leave it out")


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
        _, cls = find_plugin("attacks", table, folder)
        names = [cls.default_threat]  # type: ignore[attr-defined]
    for name in names:
        if name not in threats:
            raise UserError(f"{table.use}: there is no threat model {name!r}{suggest(name, list(threats))}")
    return [threats[name] for name in names]

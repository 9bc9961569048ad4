"""Views to try an attack on: made-up images behind a few real defenses, built by the frame's own data flow."""

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ppbench import codec
from ppbench.conformance.samples import PRIVATE, PUBLIC, TEST, sample_split
from ppbench.data import Halving, Shape, SplitSizes
from ppbench.defense import Defense
from ppbench.engine.inline import Inline
from ppbench.engine.job import Engine
from ppbench.flow import Flow
from ppbench.plan import CLIENTS, AttackPlan, Cell, DatasetPlan, DefensePlan, Plan
from ppbench.plugins import build
from ppbench.recipe import Recipe
from ppbench.ref import Ref, parse_spec
from ppbench.sources import code_digest, versions
from ppbench.store import Artefact, Store, json_digest
from ppbench.suite import LimitsTable, ScoreTable
from ppbench.threat import ThreatModel, derived

CONVNET = Recipe("ppbench.nets:convnet", {"width": 4, "grid": 4}, epochs=1)
VIT = Recipe("timm:vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}, epochs=1)


@dataclass(frozen=True)
class Scene:
    """What stands behind a view.

    Attributes:
        title: how a finding speaks of it.
        shape: (C, H, W) of the private images.
        defense: SPEC.
        targets: how many images are to be reconstructed.
        victim: who is trained, or sends updates.
        settings: of the threat model, where they differ from its own.
    """

    title: str
    shape: Shape = (3, 32, 32)
    defense: str = "none"
    targets: int = 4
    victim: Recipe = CONVNET
    settings: Mapping[str, Any] = field(default_factory=dict)


class Samples(Flow):
    """The data flow of a run, over made-up images."""

    async def loaded(self, dataset: DatasetPlan, seed: int) -> Artefact:
        """Return made-up images of the shape that the data set's parameters name."""
        channels, height, width = dataset.ref.params["shape"]
        key = json_digest([channels, height, width])[:32]
        found = self.store.find("split", key)
        if found is not None:
            return found
        with self.store.scratch() as scratch:
            data = scratch / "data"
            data.write_bytes(codec.dump(sample_split((channels, height, width))))
            return self.store.publish("split", key, data, {}, 0.0)


def make_flow(folder: Path, targets: int, engine: Engine | None = None) -> Samples:
    """Return a flow that keeps its artefacts in a folder."""
    plan = Plan("check", (), targets, ScoreTable(groups=["ssim"]), LimitsTable(), {"versions": versions()})
    return Samples(plan, Store(folder), engine or Inline(), {})


def make_cell(scene: Scene, defense: Ref, attack: AttackPlan, threat: ThreatModel) -> Cell:
    """Spell a scene out as a cell."""
    dataset = DatasetPlan(Ref("datasets", "samples", {"shape": list(scene.shape)}), None,
                          SplitSizes(PRIVATE, PUBLIC, TEST), "", Halving(2) if attack.accuses else None)
    component: Defense = build(defense)
    scope = component.key_scopes[0] if component.key_scopes else None
    deployed = DefensePlan(defense, scope, 8, CLIENTS if scope == "client" else 1)
    settings = {name: value for name, value in scene.settings.items() if name in asdict(threat)}
    return Cell(dataset, deployed, attack, derived(threat.name, threat, settings), scene.victim, 0)


def built_in(spec: str) -> Ref:
    """Refer to a registered defense."""
    name, params = parse_spec(spec)
    bare = Ref("defenses", name, params)
    return replace(bare, code=code_digest(type(build(bare)).__module__))


@cache
def workplace() -> Path:
    """Return a folder for what all checks of this process share; it goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="ppbench-check-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def view_of(scene: Scene, attack: AttackPlan, threat: ThreatModel) -> Path:
    """Build what an attack sees in a scene, and return the file.

    Raises:
        StageFailed: the attack's own part in it (training, queries) failed.
    """
    cell = make_cell(scene, built_in(scene.defense), attack, threat)
    return asyncio.run(make_flow(workplace(), scene.targets).view(cell)).path

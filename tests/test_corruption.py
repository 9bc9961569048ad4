"""What is damaged on the disk is noticed and made again, and only that; the tables end as they were."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import plugin, tiny_plan, tiny_run
from small_data import small_npz

from ppbench.plan import Plan
from ppbench.store import Store

ALL = """
@dataclass(frozen=True)
class Colour(Prior):
    needs = frozenset({"public"})
    def train(self, view, rng):
        return {"mean": view.public.pixels.mean((0, 2, 3), keepdim=True)}

@dataclass(frozen=True)
class UsesAll(Attack):
    "Reads all that a threat model can grant."
    requires = frozenset({"images", "labels", "public", "algorithm", "pairs", "model", "gradients", "oracle", "key"})
    default_threat = "full-knowledge"
    def priors(self, view):
        return {"colour": Colour()}
    def queries(self, view):
        return view.public.pixels[:3]
    def run(self, view, priors, rng):
        parts = [view.answers, view.pairs.plain, *view.update.values.values(), *view.keys.values.values()]
        share = 0.1 + 0.2 * torch.sigmoid(sum(part.double().mean() for part in parts)).float()
        colour = priors["colour"]["mean"].expand(view.n_targets, *view.image_shape)
        return Reconstruction(share * colour + (1 - share) * view.images)
"""
KINDS = ("answers", "attack", "fits", "floor", "judge", "keys", "pairs", "prior", "priors", "queries", "release",
         "score", "split", "start", "update", "victim", "view")
TABLES = ("results.csv", "per_image.csv", "timings.csv", "plan.json", "grids/npz-tiny.npz_patch-shuffle_seed0.png")

Damage = Callable[[Path], None]


def flip(place: float) -> Damage:
    """Flip one bit of the byte at a place between 0 (first) and 1 (last)."""
    def do(file: Path) -> None:
        content = bytearray(file.read_bytes())
        if content:
            content[round(place * (len(content) - 1))] ^= 4
        file.write_bytes(bytes(content) or b"x")
    return do


def cut(file: Path) -> None:
    """Lose the second half, or what there is."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if content else b"x")


def empty(file: Path) -> None:
    """Lose everything but the name."""
    file.write_bytes(b"")


DAMAGES: dict[str, tuple[str, Damage]] = {
    "first byte": ("data.safetensors", flip(0)),
    "a byte in the middle": ("data.safetensors", flip(0.5)),
    "last byte": ("data.safetensors", flip(1)),
    "cut": ("data.safetensors", cut),
    "gone": ("data.safetensors", Path.unlink),
    "meta: a byte": ("meta.json", flip(0.4)),
    "meta: cut": ("meta.json", cut),
    "meta: empty": ("meta.json", empty),
    "meta: gone": ("meta.json", Path.unlink),
    "all gone": ("", shutil.rmtree),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """Run a plan that goes through every stage."""
    folder = tmp_path_factory.mktemp("whole")
    file = plugin(folder, ALL)
    chain = {"use": "memorization", "then": {"use": "key-holder"}, "threats": ["full-knowledge"]}
    plan = tiny_plan(small_npz(folder), ["patch-shuffle"], [f"{file}:UsesAll", chain],
                     score={"groups": ["ssim", "identification", "task"]})
    result, _ = tiny_run(plan, folder / "runs")
    assert [(row["status"], row.get("reason")) for row in result.rows] == [("ok", None)] * 2
    return plan, folder / "runs"


@pytest.fixture
def mine(whole: tuple[Plan, Path], tmp_path: Path) -> tuple[Plan, Path]:
    """Return the plan and a copy of its run and store to damage."""
    shutil.copytree(whole[1], tmp_path / "runs")
    return whole[0], tmp_path / "runs"


def artefacts(output: Path, kind: str) -> list[Path]:
    return sorted(path for path in (output / ".store" / kind).iterdir())


def tables(output: Path) -> dict[str, bytes]:
    return {name: (output / "tiny" / name).read_bytes() for name in TABLES}


def test_the_run_went_through_every_stage(whole: tuple[Plan, Path]) -> None:
    found = {path.name for path in (whole[1] / ".store").iterdir()}
    assert tuple(sorted(found - {"tmp", "partial"})) == KINDS


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_artefact_is_noticed(mine: tuple[Plan, Path], damage: str) -> None:
    name, do = DAMAGES[damage]
    for kind in KINDS:
        for folder in artefacts(mine[1], kind):
            assert Store(mine[1] / ".store").find(kind, folder.name) is not None
            do(folder / name)
            assert Store(mine[1] / ".store").find(kind, folder.name) is None, kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "judge"])  # slow to train; below once with all
def test_a_damaged_kind_is_made_again_and_nothing_else(mine: tuple[Plan, Path], kind: str) -> None:
    plan, output = mine
    before, victims = tables(output), artefacts(output, kind)
    kinds_of_damage = sorted(DAMAGES)
    at = KINDS.index(kind)  # each kind meets other damages
    for i, folder in enumerate(victims):
        name, do = DAMAGES[kinds_of_damage[(at + i) % len(DAMAGES)]]
        do(folder / name)
    result, observer = tiny_run(plan, output, fresh=True)
    assert result.computed == {kind: len(victims)}
    assert len(observer.rows) == 2
    for name in ("results.csv", "per_image.csv"):
        assert tables(output)[name] == before[name]
    assert all(Store(output / ".store").find(kind, folder.name) for folder in victims)


def test_one_flipped_byte_in_everything_at_once(mine: tuple[Plan, Path]) -> None:
    plan, output = mine
    before = tables(output)
    for file in [*output.glob(".store/*/*/*"), *output.glob("tiny/**/*")]:
        if file.is_file():
            flip(0.5)(file)
    result, _ = tiny_run(plan, output)
    assert set(result.computed) == set(KINDS)
    for name in set(TABLES) - {"timings.csv"}:
        assert tables(output)[name] == before[name], name


CELL_FILES = ("row.json", "reconstruction.safetensors", "scores.safetensors")
CELL_DAMAGES: dict[str, Damage] = {
    "first byte": flip(0), "a byte in the middle": flip(0.5), "last byte": flip(1), "cut": cut, "gone": Path.unlink,
    "empty": empty,
}


@pytest.mark.parametrize("damage", CELL_DAMAGES)
def test_a_damaged_file_of_a_cell_is_written_again(mine: tuple[Plan, Path], damage: str) -> None:
    plan, output = mine
    before = tables(output)
    for name in CELL_FILES:
        file = min(output.glob(f"tiny/cells/*/{name}"))
        content = file.read_bytes()
        CELL_DAMAGES[damage](file)
        result, observer = tiny_run(plan, output)
        assert (result.computed, len(observer.rows)) == ({}, 1)  # the other row is kept, the store has the rest
        assert file.read_bytes() == content
        assert tables(output) == before


@pytest.mark.parametrize("damage", CELL_DAMAGES)
def test_a_damaged_table_is_written_again(mine: tuple[Plan, Path], damage: str) -> None:
    plan, output = mine
    before = tables(output)
    for name in TABLES:
        CELL_DAMAGES[damage](output / "tiny" / name)
    result, observer = tiny_run(plan, output)
    assert (result.computed, observer.rows) == ({}, [])
    assert tables(output) == before


def test_a_row_that_was_edited_is_not_believed(mine: tuple[Plan, Path]) -> None:
    plan, output = mine
    before = tables(output)
    file = min(output.glob("tiny/cells/*/row.json"))
    content: dict[str, Any] = json.loads(file.read_text())
    content["row"]["ssim"] = 0.999
    file.write_text(json.dumps(content, indent=1))
    _, observer = tiny_run(plan, output)
    assert len(observer.rows) == 1
    assert tables(output) == before

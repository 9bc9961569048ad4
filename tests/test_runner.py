"""The run as a whole: same rows whatever the engine, whatever else is in the matrix, however often it is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Run, plugin, tiny_plan, tiny_run

from ppbench import codec
from ppbench.attack import Reconstruction
from ppbench.errors import UserError
from ppbench.puzzle import PUZZLE_DEFINITION, SCORES

BASIC = ["blind", "key-holder", "as-released"]
JIGSAW = {"use": "jigsaw", "steps": 2}


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tiny" / "results.csv").set_index("cell")


def test_a_matrix_gives_a_row_a_cell_and_all_its_files(tiny_npz: Path, tmp_path: Path) -> None:
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none", "patch-shuffle"], BASIC), tmp_path)
    rows = table(tmp_path)
    assert len(rows) == 6
    assert set(rows.status) == {"ok"}
    by = rows.set_index(["defense", "attack"])
    assert by.loc[("none", "as-released"), "ssim"] == 1
    assert by.loc[("patch-shuffle", "key-holder"), "ssim"] == 1
    assert by.loc[("patch-shuffle", "as-released"), "ssim"] < 0.9
    assert (by.xs("blind", level="attack").leakage_ssim.abs() < 1e-9).all()
    assert (result.folder / "grids" / "npz-tiny.npz_none_seed0.png").stat().st_size > 1000
    per_image = pd.read_csv(result.folder / "per_image.csv")
    assert len(per_image) == 6 * 4
    for cell, row in rows.iterrows():
        mean = per_image[per_image.cell == cell].ssim.mean()
        assert mean == pytest.approx(row.ssim, abs=2e-6)
        found = codec.load(Reconstruction, result.folder / "cells" / str(cell) / "reconstruction.safetensors")
        assert len(found.images) == 4


def test_a_rebuilt_puzzle_is_scored_image_by_image(tiny_npz: Path, tmp_path: Path) -> None:
    etc = {"use": "block-scrambling", "preset": "etc", "block": 4}
    plan = tiny_plan(tiny_npz, [], ["key-holder", JIGSAW, "blind"], score={"groups": ["psnr", "pieces"]},
                     defense=[{"use": "none"}, {"use": "patch-shuffle", "patch": 8}, etc])
    result, _ = tiny_run(plan, tmp_path)
    assert [row["status"] for row in result.rows] == ["ok"] * 9
    rows = table(tmp_path).set_index(["defense", "attack"])
    per_image = pd.read_csv(result.folder / "per_image.csv").set_index(["defense", "attack"])
    for cell in (("patch-shuffle", "key-holder"), ("block-scrambling", "key-holder")):
        assert rows.loc[cell, list(SCORES)].tolist() == [1, 1, 1, 1, 0]
        assert per_image.loc[cell, list(SCORES)].to_numpy().tolist() == [[1, 1, 1, 1, 0]] * 4
    solved = per_image.loc[("patch-shuffle", "jigsaw")]
    assert solved.piece_direct.isin([0, 0.25, 0.5, 1]).all()
    assert solved.piece_largest.isin([0.25, 0.5, 0.75, 1]).all()
    assert solved[list(SCORES)].mean().to_numpy() == pytest.approx(
        rows.loc[("patch-shuffle", "jigsaw"), list(SCORES)].to_numpy(dtype=float), abs=2e-6)
    assert rows.loc[("patch-shuffle", "jigsaw"), "piece_def"] == PUZZLE_DEFINITION
    for frame, columns in ((rows, [*SCORES, "piece_def"]), (per_image, list(SCORES))):
        assert frame.loc["none", columns].isna().all(axis=None)
        assert frame.xs("blind", level="attack")[columns].isna().all(axis=None)
    assert not rows.note.str.contains("pieces:").any()


def test_inline_and_processes_agree_to_the_byte(tiny_npz: Path, tmp_path: Path) -> None:
    plan = tiny_plan(tiny_npz, ["block-scrambling", "mixup"], ["blind", JIGSAW, "memorization"])
    tiny_run(plan, tmp_path / "a", "inline")
    tiny_run(plan, tmp_path / "b", "processes")
    assert (tmp_path / "a/tiny/results.csv").read_bytes() == (tmp_path / "b/tiny/results.csv").read_bytes()
    assert (tmp_path / "a/tiny/per_image.csv").read_bytes() == (tmp_path / "b/tiny/per_image.csv").read_bytes()


def test_another_attack_or_defense_changes_no_other_row(tiny_npz: Path, tmp_path: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["patch-shuffle"], ["blind", "as-released"]), tmp_path / "a")
    tiny_run(tiny_plan(tiny_npz, ["none", "patch-shuffle"], ["key-holder", "as-released", "blind", "memorization"]),
             tmp_path / "b")
    small, large = (path.read_text().splitlines() for path in sorted(tmp_path.glob("*/tiny/results.csv")))
    assert len(small) == 3
    assert set(small) <= set(large)


def test_the_same_command_computes_nothing_again(tiny_npz: Path, tmp_path: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none"], BASIC)
    first, _ = tiny_run(plan, tmp_path)
    before = (tmp_path / "tiny/results.csv").read_bytes()
    again, observer = tiny_run(plan, tmp_path)
    assert sum(first.computed.values()) > 0
    assert again.computed == {}
    assert (observer.kept, observer.rows) == (3, [])
    assert (tmp_path / "tiny/results.csv").read_bytes() == before


def test_each_shared_artefact_is_computed_once(tiny_npz: Path, tmp_path: Path) -> None:
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none", "constant", "patch-shuffle"],
                                   [*BASIC, JIGSAW, "memorization"],
                                   score={"groups": ["ssim", "identification", "recognition", "task"]}), tmp_path)
    assert result.computed["split"] == 1
    assert result.computed["judge"] == 1
    # One release a defense and the plain one, whose victim is that of `none`.
    assert result.computed["release"] == 4
    assert result.computed["victim"] == 3 * (1 + 1)
    # The blind attack's guess for SSIM is the floor's own; then the floor's for identification, and jigsaw's network.
    assert result.computed["prior"] == 3
    assert result.computed["floor"] == 1


@pytest.mark.parametrize("kind", ["split", "keys", "release", "start", "victim", "view", "prior", "attack", "floor",
                                  "score"])
def test_a_damaged_artefact_is_made_again(tiny_npz: Path, tmp_path: Path, kind: str) -> None:
    plan = tiny_plan(tiny_npz, ["block-scrambling"], ["blind", "memorization"])
    tiny_run(plan, tmp_path)
    before = (tmp_path / "tiny/results.csv").read_bytes()
    for file in (tmp_path / ".store" / kind).glob("*/data.safetensors"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    again, _ = tiny_run(plan, tmp_path, fresh=True)
    assert again.computed[kind] >= 1
    assert (tmp_path / "tiny/results.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["row.json", "reconstruction.safetensors", "scores.safetensors"])
def test_a_damaged_cell_is_finished_again(tiny_npz: Path, tmp_path: Path, name: str) -> None:
    plan = tiny_plan(tiny_npz, ["none"], ["blind", "as-released"])
    tiny_run(plan, tmp_path)
    before = (tmp_path / "tiny/results.csv").read_bytes()
    (file, *_) = sorted((tmp_path / "tiny" / "cells").glob(f"*/{name}"))
    file.write_bytes(file.read_bytes()[:-7])
    _, observer = tiny_run(plan, tmp_path)
    assert len(observer.rows) == 1
    assert (tmp_path / "tiny/results.csv").read_bytes() == before


FAULTS = {
    "Raises": ("raise ValueError('no idea')", "no idea"),
    "TooFew": ("return Reconstruction(torch.zeros(3, *view.image_shape))", "exactly 4 images"),
    "Nan": ("return Reconstruction(torch.full((4, *view.image_shape), float('nan')))", "not finite"),
    "OutOfRange": ("return Reconstruction(torch.full((4, *view.image_shape), 2.0))", "[0, 1]"),
    "Nothing": ("return None", "must return a Reconstruction"),
    "Cheats": ("return Reconstruction(view.keys)", "does not grant 'key'"),
    "Exits": ("os._exit(3)", "status 3"),
    "Killed": ("os.kill(os.getpid(), 9)", "signal 9"),
    "Hangs": ("import time; time.sleep(600)", "limit of 8 seconds"),
    "Floods": ("[print('x' * 99999) for _ in range(500)]; raise ValueError('wet')", "wet"),
    "Grows": ("x = [torch.ones(2**26) for _ in range(10)]; import time; time.sleep(60)", "memory"),
}


def test_a_failing_attack_is_a_row_with_its_reason_and_the_others_go_on(tiny_npz: Path, tmp_path: Path) -> None:
    body = "".join(
        f"\n@dataclass(frozen=True)\nclass {name}(Attack):\n    requires = frozenset({{'images'}})\n"
        f"    default_threat = 'ciphertext-only'\n    def run(self, view, priors, rng):\n"
        f"        print('hello from {name}', flush=True)\n        {code}\n" for name, (code, _) in FAULTS.items())
    file = plugin(tmp_path, body)
    tiny_run(tiny_plan(tiny_npz, ["none"], ["as-released"]), tmp_path)  # what is shared must not meet the limit
    plan = tiny_plan(tiny_npz, ["none"], ["as-released", *(f"{file}:{name}" for name in FAULTS)],
                     limits={"seconds": 8, "memory_mib": 1500})
    result, _ = tiny_run(plan, tmp_path, "processes")
    rows = table(tmp_path).set_index("attack")
    assert rows.loc["as-released", "ssim"] == 1
    for name, (_, reason) in FAULTS.items():
        row: Any = rows.loc[f"my_attack.py:{name}"]
        expected = {"Hangs": "timeout", "Killed": "killed", "Grows": "killed"}.get(name, "failed")
        assert row.status == expected, name
        assert reason in row.reason
        log = result.folder / "cells" / next(r["cell"] for r in result.rows if r["attack"].endswith(name)) / "log.txt"
        assert f"hello from {name}" in log.read_text()
        assert log.stat().st_size < 2**20


def test_a_failing_defense_fails_its_cells_only(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
class Broken(PerImageDefense):
    def encrypt(self, images, key, rng):
        return images * 3
""", "broken.py")
    tiny_run(tiny_plan(tiny_npz, ["none", f"{file}:Broken"], BASIC), tmp_path)
    rows = table(tmp_path)
    assert rows.status.value_counts().to_dict() == {"ok": 3, "failed": 3}
    assert rows[rows.status == "failed"].reason.str.contains("outside \\[0, 1\\]").all()


def test_a_chain_takes_the_outer_estimate_further(tiny_npz: Path, tmp_path: Path) -> None:
    chain = {"use": "memorization", "then": JIGSAW}
    tiny_run(tiny_plan(tiny_npz, ["patch-shuffle"], ["memorization", chain, JIGSAW]), tmp_path)
    rows = table(tmp_path).set_index("attack")
    assert rows.loc["memorization+jigsaw", "status"] == "ok"
    # The weights hold the release bit by bit, so the chain solves the same puzzles as jigsaw on the release.
    assert rows.loc["memorization+jigsaw", "release_psnr"] == 60
    assert rows.loc["memorization", "ssim"] < rows.loc["memorization+jigsaw", "ssim"]


def test_a_prior_is_trained_once_for_all_defenses(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
@dataclass(frozen=True)
class Mean(Prior):
    needs = frozenset({"public"})
    def train(self, view, rng):
        try:
            view.release
        except Exception as error:
            assert type(error).__name__ == "NotGranted"
        else:
            raise AssertionError("a prior sees no more than it needs")
        return {"mean": view.public.pixels.mean(0)}

@dataclass(frozen=True)
class UsesMean(Attack):
    requires = frozenset({"public", "images"})
    default_threat = "ciphertext-only"
    def priors(self, view):
        return {"mean": Mean()}
    def run(self, view, priors, rng):
        return Reconstruction(priors["mean"]["mean"].expand(view.n_targets, -1, -1, -1))
""")
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none", "mixup", "block-scrambling"], [f"{file}:UsesMean"]), tmp_path)
    assert set(table(tmp_path).status) == {"ok"}
    assert result.computed["prior"] == 1 + 1  # the floor and the mean
    timings = pd.read_csv(next(tmp_path.glob("**/timings.csv")))
    assert list(timings.columns) == ["cell", "prior", "attack", "score"]
    assert timings.prior.nunique() == 1  # what the shared one took stands in every cell
    assert (timings[["prior", "attack", "score"]] > 0).all(axis=None)


def test_where_files_lie_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    body = """
@dataclass(frozen=True)
class Grey(Attack):
    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    def run(self, view, priors, rng):
        return Reconstruction(torch.full((view.n_targets, *view.image_shape), 0.5) + 0.1 * torch.rand(1, generator=rng))
"""
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        data = folder / "tiny.npz"
        data.write_bytes(tiny_npz.read_bytes())
        tiny_run(tiny_plan(data, ["none"], [f"{plugin(folder, body)}:Grey", "as-released"]), folder)
    assert (tmp_path / "a/tiny/results.csv").read_bytes() == (tmp_path / "b/tiny/results.csv").read_bytes()


def test_an_edited_plug_in_or_data_set_is_run_again(tiny_npz: Path, tmp_path: Path) -> None:
    body = """
@dataclass(frozen=True)
class Grey(Attack):
    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    def run(self, view, priors, rng):
        return Reconstruction(torch.full((view.n_targets, *view.image_shape), 0.5))
"""
    file = plugin(tmp_path, body)
    first, _ = tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Grey", "as-released"]), tmp_path)
    plugin(tmp_path, body.replace("0.5", "0.9"))
    second, observer = tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Grey", "as-released"]), tmp_path)
    assert [row["attack"] for row in observer.rows] == ["my_attack.py:Grey"]
    assert first.rows[0]["ssim"] != second.rows[0]["ssim"]
    assert first.rows[1] == second.rows[1]


def test_two_runs_do_not_share_a_folder(tiny_npz: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "tiny").mkdir()
    with (tmp_path / "tiny" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run"):
            tiny_run(tiny_plan(tiny_npz, ["none"], ["blind"]), tmp_path)


SUITE = """
schema = 1
name = "tiny"
targets = 4
dataset = [{ use = "npz:tiny.npz", private = 24, public = 40, test = 12 }]
defense = [{ use = "none" }, { use = "patch-shuffle" }]
attack = [
    { use = "my_attack.py:Slow", gate = "GATE", mark = 0.1 }, { use = "my_attack.py:Slow", gate = "GATE", mark = 0.2 },
    { use = "as-released" }, { use = "memorization" },
]
victim = { epochs = 1 }
score = { groups = ["ssim", "task"] }
"""
SLOW = """
@dataclass(frozen=True)
class Slow(Attack):
    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    gate: str
    mark: float = 0.0
    def run(self, view, priors, rng):
        import pathlib, time
        while not pathlib.Path(self.gate).exists():
            time.sleep(0.05)
        return Reconstruction(torch.full((view.n_targets, *view.image_shape), self.mark))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_stopped_run_goes_on_and_ends_like_an_undisturbed_one(tiny_npz: Path, tmp_path: Path,
                                                                command_line: Run) -> None:
    plugin(tmp_path, SLOW)
    gate = tmp_path / "gate"  # half of the cells wait until it is there
    (tmp_path / "tiny.toml").write_text(SUITE.replace("GATE", str(gate)))
    gate.touch()

    command = ["run", str(tmp_path / "tiny.toml"), "--output"]
    assert command_line(*command, str(tmp_path / "whole"), "--engine", "inline")[0] == 0
    gate.unlink()
    cells = tmp_path / "cut" / "tiny" / "cells"
    process = subprocess.Popen([sys.executable, "-m", "ppbench", *command, str(tmp_path / "cut"), "--jobs", "6"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(cells.glob("*/row.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    finished = {file: file.stat().st_mtime_ns for file in cells.glob("*/row.json")}
    assert 2 <= len(finished) <= 4
    gate.touch()
    code, _, errors = command_line(*command, str(tmp_path / "cut"), "--engine", "inline")
    assert code == 0
    assert f"{len(finished)} of 8 cells are finished already" in errors
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    for name in ("results.csv", "per_image.csv"):
        assert (tmp_path / "cut/tiny" / name).read_bytes() == (tmp_path / "whole/tiny" / name).read_bytes()


def test_a_release_without_partners_is_scored_as_a_set(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
class Synthetic(Defense):
    "Release noise, of which nobody knows whom it stands for."
    partnered = False
    def protect(self, private, keys, rng):
        return Release(torch.rand(private.pixels.shape, generator=rng), private.labels, None)
""", "synthetic.py")
    tiny_run(tiny_plan(tiny_npz, [f"{file}:Synthetic"], [*BASIC, "memorization"]), tmp_path)
    rows = table(tmp_path).set_index("attack")
    assert rows.aligned.astype(str).str.lower().to_dict() == {
        "blind": "true", "key-holder": "false", "as-released": "false", "memorization": "false"}
    assert rows.loc["memorization", "release_psnr"] == 60
    assert rows.loc["memorization", "leakage_ssim"] < 0


def test_the_readme_attack_runs_on_every_built_in_defense(tiny_npz: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    file = tmp_path / "my_attack.py"
    file.write_text(text.partition("```python\n")[2].partition("```")[0])
    defenses = ["none", "constant", "block-scrambling", "patch-shuffle", "mixup"]
    tiny_run(tiny_plan(tiny_npz, defenses, [f"{file}:MyAttack"]), tmp_path)
    rows = table(tmp_path).set_index("defense")
    assert set(rows.status) == {"ok"}
    assert rows.loc["none", "ssim"] == 1


def test_two_files_of_one_name_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    body = "\nclass A(Attack):\n    requires = frozenset()\n    default_threat = 'ciphertext-only'\n" \
           "    def run(self, view, priors, rng):\n        return None\n"
    files = []
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        files.append(plugin(tmp_path / version, f"{body}# {version}\n"))
    with pytest.raises(UserError, match=r"two different files are given as my_attack\.py:A"):
        tiny_plan(tiny_npz, ["none"], [f"{file}:A" for file in files])


def test_the_victims_own_code_is_part_of_the_plan(tiny_npz: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from ppbench.sources import code_digest

    net = "import torch\ndef small(num_classes):\n    return torch.nn.Sequential(torch.nn.Flatten(), " \
          "torch.nn.LazyLinear(num_classes))\n"
    file = tmp_path / "tiny_nets_of_mine.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    prints = []
    for text in (net, f"{net}# another version\n"):
        file.write_text(text)
        code_digest.cache_clear()
        plan = tiny_plan(tiny_npz, ["none"], ["blind"], victim={"model": "tiny_nets_of_mine:small"})
        prints.append(plan.fingerprint(plan.cells[0]))
    assert prints[0] != prints[1]

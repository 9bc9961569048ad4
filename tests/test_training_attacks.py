"""Runs with a malicious trainer who adds images to the training set."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import plugin, tiny_plan, tiny_run

ABUSE = {"use": "memorization", "encoding": "abuse", "side": 4, "inputs": 200}  # of 3 classes: one bit an input
ADDS = """
@dataclass(frozen=True)
class Adds(TrainingAttack):
    requires = frozenset({"model", "training", "public"})
    default_threat = "malicious-trainer"
    def more(self, release, classes, rng):
        from ppbench.data import Images
        return MORE
    def run(self, view, priors, rng):
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape))
"""


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tiny" / "results.csv").set_index("attack")


def test_what_is_added_is_learnt_and_the_honest_victim_stands_beside_it(tiny_npz: Path, tmp_path: Path) -> None:
    victim = {"epochs": 60, "batch": 20, "kwargs": {"width": 16, "grid": 4}}
    tiny_run(tiny_plan(tiny_npz, ["none"], [ABUSE, "memorization", "blind"], victim=victim), tmp_path)
    rows = table(tmp_path)
    one, other = (rows[rows.index == "memorization"].iloc[k] for k in (0, 1))
    assert one.note.startswith("abuse: capacity 1 images; 3 beyond")
    assert one.task_accuracy_honest == other.task_accuracy_honest
    scores = pd.read_csv(tmp_path / "tiny" / "per_image.csv")
    mine = scores[scores.cell == one.cell].reset_index()
    assert mine.psnr[0] > mine.psnr[1:].max() + 4  # one target of four fits


def test_clients_cannot_be_given_more(tiny_npz: Path, tmp_path: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["none"], [ABUSE, "blind"], victim={"clients": 2, "epochs": 1}), tmp_path)
    rows = table(tmp_path)
    assert rows.status["memorization"] == "failed"
    assert "set clients = 1" in rows.reason["memorization"]
    assert rows.status["blind"] == "ok"


@pytest.mark.parametrize(("more", "words"), [
    ("release.images", "it must return Images"),
    ("Images(release.images[..., :8], release.labels, release.labels)", "must have the released shape"),
    ("Images(release.images.double(), release.labels, release.labels)", "not finite float32"),
    ("Images(release.images * float('nan'), release.labels, release.labels)", "not finite float32"),
    ("Images(release.images, release.labels + 1, release.labels)", "from 0 to 2"),
])
def test_what_is_added_is_held_to_the_contract(tiny_npz: Path, tmp_path: Path, more: str, words: str) -> None:
    path = plugin(tmp_path, ADDS.replace("MORE", more))
    attack: dict[str, Any] = {"use": f"{path}:Adds"}
    tiny_run(tiny_plan(tiny_npz, ["none"], [attack]), tmp_path)
    (reason,) = table(tmp_path).reason
    assert words in reason

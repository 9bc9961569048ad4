"""What the built-in suite must show, held against a finished `ppbench run` (its folder in PPBENCH_PHOTOS_RUN)."""

import csv
import os
from pathlib import Path

import pytest
from built_in_run import ATTACKS, DEFENSES, YARDSTICKS

from ppbench.perceptual import find_trunk

Rows = dict[tuple[str, str], dict[str, str]]


def read(name: str) -> Rows:
    folder = os.environ.get("PPBENCH_PHOTOS_RUN")
    if folder is None:
        pytest.skip("PPBENCH_PHOTOS_RUN names no finished run of the built-in suite")
    with (Path(folder) / name).open() as file:
        return {(row["defense"], row["attack"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read("results.csv")


def test_every_cell_is_scored(rows: Rows) -> None:
    assert set(rows) == {(defense, attack) for defense in DEFENSES for attack in (*YARDSTICKS, *ATTACKS)}
    assert {row["status"] for row in rows.values()} == {"ok"}
    for row in rows.values():
        assert row["ssim"]
        assert row["task_accuracy"]
        assert row["lpips"] or (isinstance(find_trunk("squeeze"), str) and "LPIPS weights" in row["note"])


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_beats_the_floor_on_none(rows: Rows, attack: str) -> None:
    assert float(rows["none", attack]["leakage_ssim_low"]) > 0
    if attack in ("jigsaw", "vit-inverter", "memorization"):
        assert float(rows["none", attack]["ssim"]) >= 0.95
    verdicts = read("verdicts.csv")
    assert all(verdicts[defense, attack]["admissible"] == "yes" for defense in DEFENSES)
    assert "misses-ceiling-on-none" not in verdicts["none", attack]["flags"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_beats_the_floor_on_constant(rows: Rows, attack: str) -> None:
    assert float(rows["constant", attack]["leakage_ssim_low"]) <= 0
    assert float(rows["constant", attack]["leakage_lpips_low"] or 0) <= 0
    assert float(rows["constant", attack]["leakage_identification_low"] or 0) <= 0


@pytest.mark.parametrize("defense", ["block-scrambling", "patch-shuffle", "none"])
def test_the_key_undoes_a_cipher(rows: Rows, defense: str) -> None:
    assert float(rows[defense, "key-holder"]["ssim"]) > 0.9999


def test_the_thumbnail_in_mixup_leaks(rows: Rows) -> None:
    assert float(rows["mixup", "vit-inverter"]["leakage_ssim_low"]) > 0.3


def test_a_shuffle_of_pixels_under_one_key_falls_to_statistics_and_the_jigsaw(rows: Rows) -> None:
    assert float(rows["block-scrambling", "jigsaw"]["leakage_ssim_low"]) > 0.9
    assert float(rows["block-scrambling", "jigsaw"]["piece_neighbour"]) > 0.9


def test_patch_shuffle_falls_to_the_jigsaw(rows: Rows) -> None:
    assert float(rows["patch-shuffle", "jigsaw"]["leakage_ssim_low"]) > 0.2

"""A run killed at any moment goes on where it was, ends like an undisturbed one, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_data import small_npz

HERE = Path(__file__).parent
KILLS = 20


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Kill a run twenty times; see killed_runs.py."""
    folder = tmp_path_factory.mktemp("kills")
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, str(HERE / "killed_runs.py"), str(folder), str(small_npz(folder)),
                           str(KILLS)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_kills_hit_a_run_at_different_moments(report: dict[str, Any]) -> None:
    assert report["killed"] == KILLS
    assert len({(i, state) for i, run in enumerate(report["runs"]) for state in run["states"]}) > KILLS / 2
    assert report["again"] == [{}, 6]  # an undisturbed run has nothing to do again


@pytest.mark.slow
def test_every_run_ends_like_an_undisturbed_one(report: dict[str, Any]) -> None:
    assert report["tables"]["results.csv"].count(",ok,") == 6
    for run in report["runs"]:
        assert run["through"]
        assert run["tables"] == report["tables"]


@pytest.mark.slow
def test_nothing_finished_is_computed_again(report: dict[str, Any]) -> None:
    for run in report["runs"]:
        assert run["lost"] == []  # every finished file stays the file it was
        assert run["twice"] == []  # every artefact is published once, every row is made once


@pytest.mark.slow
def test_nothing_half_done_is_left(report: dict[str, Any]) -> None:
    assert [run["scratch"] for run in report["runs"]] == [[] for _ in report["runs"]]
    assert report["survivors"] == 0


@pytest.mark.slow
def test_workers_end_with_their_run_even_where_a_plug_in_holds_the_interpreter(report: dict[str, Any]) -> None:
    assert report["ends"]

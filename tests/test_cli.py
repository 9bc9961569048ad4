"""The command line end to end: what a user types, sees and finds on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import Run

from ppbench.cli import cli


def run(*arguments: str) -> str:
    found = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_list_names_every_plug_in_with_its_parameters() -> None:
    text = run("list")
    for name in ("photos", "faces", "npz", "none", "block-scrambling", "bn-synthesis", "jigsaw", "memorization",
                 "malicious-trainer"):
        assert f"  {name}" in text
    tree = json.loads(run("list", "attacks", "--json"))
    jigsaw = next(one for one in tree["attacks"] if one["name"] == "jigsaw")
    assert jigsaw["facts"]["requires"] == "algorithm, images"
    assert "restarts" in jigsaw["params"]


def test_list_and_help_do_not_import_torch() -> None:
    code = ("import sys; from click.testing import CliRunner; from ppbench.cli import cli\n"
            "for a in (['list'], ['run', '--help'], ['jigsaw', '--help']):\n"
            "    assert CliRunner().invoke(cli, a).exit_code == 0\n"
            "print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_a_real_run_in_processes(tmp_path: Path, command_line: Run) -> None:
    (tmp_path / "short.toml").write_text('schema = 1\nname = "photos"\n[score]\ngroups = ["ssim", "lpips"]\n')
    command = ["run", str(tmp_path / "short.toml"),
               "--dataset", "faces,size=32,private=40,public=60,test=40",
               "--defense", "none", "--defense", "patch-shuffle,patch=8", "--attack", "as-released",
               "--attack", "jigsaw,steps=20",
               "--output", str(tmp_path)]
    found = subprocess.run([sys.executable, "-m", "ppbench", *command], check=True, capture_output=True, text=True)
    (folder,) = tmp_path.glob("photos-*")
    rows = pd.read_csv(folder / "results.csv").set_index(["defense", "attack"])
    assert list(rows.status) == ["ok"] * 4
    assert rows.loc[("patch-shuffle", "jigsaw"), "ssim"] > rows.loc[("patch-shuffle", "as-released"), "ssim"]
    assert "patch-shuffle" in found.stdout
    assert "[4/4]" in found.stderr
    assert len(list((folder / "grids").glob("*.png"))) == 2
    assert "4 of 4 cells are finished already" in command_line(*command)[2]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_command_that_still_loads_its_libraries(tmp_path: Path) -> None:
    """The server of workers, which hears it too, says nothing."""
    command = [sys.executable, "-m", "ppbench", "run", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted; the same command goes on where this one stopped\n")
    assert not list(tmp_path.iterdir())


def test_other_flags_go_to_another_folder(tmp_path: Path, tiny_npz: Path) -> None:
    data = f"npz:{tiny_npz},private=20,public=30,test=10"
    (tmp_path / "photos.toml").write_text('schema = 1\nname = "photos"\n[score]\ngroups = ["ssim"]\n')
    for attack in ("blind", "as-released", "blind"):
        run("run", str(tmp_path / "photos.toml"), "--dataset", data, "--defense", "constant", "--attack", attack,
            "--output", str(tmp_path / "runs"), "--engine", "inline")
    folders = list((tmp_path / "runs").glob("photos-*"))
    assert len(folders) == 2


def test_a_dry_run_lists_the_cells_and_writes_nothing(tmp_path: Path) -> None:
    text = run("run", "--dry-run", "--output", str(tmp_path / "runs"), "--threat", "ciphertext-only")
    assert "49 cells" in text
    assert "lacks key" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("suite", ["photos"])
def test_built_in_suites_are_found_by_name(suite: str, tmp_path: Path) -> None:
    assert "49 cells" in run("run", suite, "--dry-run", "--output", str(tmp_path))

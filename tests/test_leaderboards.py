"""The committed suites: each is valid, and runs on the real data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REAL

SUITES = Path(__file__).parents[1] / "leaderboards" / "suites"


def checked(suite: Path) -> str:
    """Return what a dry run says: names, parameters, shapes and data are all checked."""
    command = [sys.executable, "-m", "ppbench", "run", str(suite), "--dry-run", "--output", str(suite.parent / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


CELLS = {"cifar10-small": 49, "faces": 90, "ladder": 112, "mixup": 12, "people": 12, "regimes": 160, "shuffle": 8,
         "unkeyed": 100, "victims": 9}


def test_every_suite_is_known() -> None:
    assert sorted(CELLS) == sorted(path.stem for path in SUITES.glob("*.toml"))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suites beside the real images."""
    root = tmp_path_factory.mktemp("leaderboards")
    shutil.copytree(SUITES, root / "leaderboards" / "suites")
    (root / "data").mkdir()
    subprocess.run([sys.executable, str(REAL / "data" / "unpack.py"), str(root / "data")], check=True,
                   env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True)
    return root / "leaderboards" / "suites"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "data" / "unpack.py").is_file(), reason="no CIFAR-10 in PPBENCH_DATA")
@pytest.mark.parametrize("name", CELLS)
def test_a_suite_can_run_on_the_real_images(copied: Path, name: str) -> None:
    text = checked(copied / f"{name}.toml")
    assert f"{CELLS[name]} cells" in text
    assert "not-applicable" not in text

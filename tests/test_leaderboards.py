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


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "data" / "unpack.py").is_file(), reason="no CIFAR-10 in PPBENCH_DATA")
def test_cifar10_small_runs_on_the_real_images(tmp_path: Path) -> None:
    suite = tmp_path / "leaderboards" / "suites" / "cifar10-small.toml"
    suite.parent.mkdir(parents=True)
    shutil.copy(SUITES / suite.name, suite)
    (tmp_path / "data").mkdir()
    subprocess.run([sys.executable, str(REAL / "data" / "unpack.py"), str(tmp_path / "data")], check=True,
                   env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True)
    text = checked(suite)
    assert "49 cells" in text
    assert "not-applicable" not in text
    ladder = suite.with_name("ladder.toml")
    shutil.copy(SUITES / ladder.name, ladder)
    assert "112 cells" in checked(ladder)
    mixup = suite.with_name("mixup.toml")
    shutil.copy(SUITES / mixup.name, mixup)
    assert "12 cells" in checked(mixup)

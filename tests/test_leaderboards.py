"""The committed suites: each is valid, and runs on the real data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REAL, Run

ROOT = Path(__file__).parents[1]
SUITES = ROOT / "leaderboards" / "suites"
SHORT = """
import sys
from importlib import import_module
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ppbench.resolve import make_plan
from ppbench.suite import read_suite, validate
for suite in map(Path, sys.argv[2:]):
    tables = import_module(f"_{suite.stem}").brief(read_suite(suite))
    print(len(make_plan(validate(tables, suite.name), suite.parent).cells))
"""  # what benchmarks make of suites with --quick
BRIEF = {"mixup": 6, "shuffle": 2, "regimes": 2}


CELLS = {"cifar10-small": 49, "faces": 100, "ladder": 112, "membership": 27, "memorization": 42, "mixup": 12,
         "people": 12, "quality": 14, "regimes": 160, "shuffle": 10, "unkeyed": 100, "updates": 270, "victims": 9}


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
def test_a_suite_can_run_on_the_real_images(copied: Path, name: str, command_line: Run) -> None:
    """What a dry run checks: names, parameters, shapes and data."""
    code, text, errors = command_line("run", str(copied / f"{name}.toml"), "--dry-run")
    assert code == 0, errors
    assert f"{CELLS[name]} cells" in text
    assert "not-applicable" not in text


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "data" / "unpack.py").is_file(), reason="no CIFAR-10 in PPBENCH_DATA")
def test_the_short_form_that_a_benchmark_makes_of_a_suite_can_run(copied: Path) -> None:
    command = [sys.executable, "-c", SHORT, str(ROOT / "benchmarks"), *(str(copied / f"{name}.toml") for name in BRIEF)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(map(int, done.stdout.split())) == list(BRIEF.values())

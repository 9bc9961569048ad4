"""Shared by all tests: a tiny data set, plans over it, and where the real data lies."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppbench.cli import main
from ppbench.plan import Plan
from ppbench.resolve import make_plan
from ppbench.runner import Result, RunOptions, run
from ppbench.suite import validate

torch.set_num_threads(1)  # as the engines do; more threads contend and change float results
Run = Callable[..., tuple[int, str, str]]
REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / ".." / "shared"))


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU without bfloat16 emulate it."""
    monkeypatch.setattr("ppbench.device._cpu_has_bfloat16", lambda: True)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let children hear SIGINT: where tests run in the background of a shell, it is ignored, and they inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Silent:
    """An observer that only remembers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.kept = 0

    def begin(self, cells: int, kept: int) -> None:
        self.kept = kept

    def watch(self, now: Callable[[], str]) -> None:
        pass

    def row(self, cell: Any, row: dict[str, Any], seconds: float) -> None:
        self.rows.append(row)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process; return exit code, stdout and stderr."""

    def run_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ppbench", *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        return code, *capsys.readouterr()

    return run_it


@pytest.fixture
def tiny_npz(tmp_path: Path) -> Path:
    """Write 120 smooth 16 x 16 colour images of 3 classes, in MedMNIST's key convention."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((120, 3, 4, 4)))
    smooth = torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic", align_corners=True).clamp(0, 1)
    images = (smooth.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    labels = np.arange(120) % 3
    path = tmp_path / "tiny.npz"
    np.savez(path, train_images=images[:90], train_labels=labels[:90], test_images=images[90:],
             test_labels=labels[90:])
    return path


def tiny_plan(npz: Path, defenses: list[str], attacks: list[Any], **more: Any) -> Plan:
    """Make a plan over the tiny data set that runs in a second or two."""
    tables = {
        "name": "tiny", "targets": 4,
        "dataset": [{"use": f"npz:{npz}", "private": 24, "public": 40, "test": 12}],
        "defense": [{"use": name} for name in defenses],
        "attack": [attack if isinstance(attack, dict) else {"use": attack} for attack in attacks],
        "victim": {"epochs": 1}, "score": {"groups": ["ssim", "psnr", "task"]},  # the rest trains a judge for seconds
        **more,
    }
    return make_plan(validate(tables, "test"), npz.parent)


def tiny_run(plan: Plan, output: Path, engine: str = "inline", **more: Any) -> tuple[Result, Silent]:
    """Run a plan and return what came out and what the observer saw."""
    observer = Silent()
    return run(plan, RunOptions(output, engine, **more), observer), observer


def plugin(folder: Path, body: str, name: str = "my_attack.py") -> Path:
    """Write a file plug-in with the usual imports."""
    head = ("import os\nfrom dataclasses import dataclass\nimport torch\nfrom torch import Tensor\n"
            "from ppbench.attack import Attack, CraftingAttack, Prior, Reconstruction, TrainingAttack\n"
            "from ppbench.defense import Defense, PerImageDefense, Release\n")
    path = folder / name
    path.write_text(head + body)
    return path

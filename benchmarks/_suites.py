"""Rows of a committed suite, whole or in small."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _real import ROOT
from _table import Figure
from torch import Tensor

from ppbench.display import Terminal
from ppbench.resolve import make_plan
from ppbench.results import Row
from ppbench.runner import RunOptions, run
from ppbench.suite import read_suite, validate

Tables = dict[str, Any]
GENERATOR = "encoder.head.weight"
"""A tensor that no other prior holds."""


@dataclass(frozen=True)
class Results:
    """What a suite came to.

    Attributes:
        rows: of what was applicable.
        timings: by cell, the seconds of training priors (`prior`), of the `attack` and of scoring (`score`), but for
            floors.
        computed: how many artefacts of a kind were made.
        generators: how many GANs the store holds.
        per_image: a line a cell and target, in the order of the targets.
    """

    rows: list[Row]
    timings: dict[str, dict[str, float]]
    computed: Mapping[str, int]
    generators: int
    per_image: pd.DataFrame

    def scores(self, row: Row, column: str) -> Tensor:
        """Return a row's scores by target."""
        return torch.tensor(self.per_image.loc[self.per_image["cell"] == row["cell"], column].to_list())


def made(output: Path, kind: str, holding: str = "") -> int:
    """Count the artefacts of a kind in a run's store, or those that hold a tensor of some name."""
    found = [path for path in (output / ".store" / kind).glob("*") if path.is_dir()]
    return sum(not holding or any(holding.encode() in file.read_bytes() for file in path.iterdir()) for path in found)


def scored(name: str, row: Row, ssim: str = "") -> list[Figure]:
    """Return what was measured of SSIM, LPIPS and identification; `ssim` says beside the first what is known of it."""
    shown = {"ssim": "ssim", "lpips": "lpips", "identification": f"identification among {row.get('gallery') or 0:,}"}
    return [Figure(name, figure, row[column], ssim if column == "ssim" else "") for column, figure in shown.items()
            if row.get(column) is not None]


def rows_of(name: str, brief: Callable[[Tables], Tables] | None = None) -> list[Row]:
    """Return the rows alone of `results_of`."""
    return results_of(name, brief).rows


def results_of(name: str, brief: Callable[[Tables], Tables] | None = None) -> Results:
    """Run `leaderboards/suites/NAME.toml`, or go on with it in runs/; in a scratch folder where `brief` shortens it.

    Raises:
        SystemExit: a cell came to nothing; says why.
    """
    suite = ROOT / "leaderboards" / "suites" / f"{name}.toml"
    tables = read_suite(suite)
    plan = make_plan(validate(brief(tables) if brief else tables, suite.name), suite.parent)
    with tempfile.TemporaryDirectory() as scratch, Terminal() as terminal:
        output = Path(scratch) if brief else ROOT / "runs"
        jobs = max(1, (os.cpu_count() or 1) // plan.limits.threads)
        found = run(plan, RunOptions(output, jobs=jobs), terminal)
        timings = pd.read_csv(output / plan.name / "timings.csv", dtype={"cell": str}).set_index("cell")
        generators = made(output, "prior", GENERATOR)
        per_image = pd.read_csv(output / plan.name / "per_image.csv", dtype={"cell": str})
    for row in found.rows:
        if row["status"] not in ("ok", "not-applicable"):
            raise SystemExit(f"{name}: {row['attack']} on {row['defense']} {row['status']}: {row['reason']}")
    return Results([row for row in found.rows if row["status"] == "ok"], timings.to_dict("index"), found.computed,
                   generators, per_image)

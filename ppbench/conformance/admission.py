"""The gate: an attack must beat the blind guess where nothing is hidden, or its failure elsewhere means nothing."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ppbench.conformance.attack_bench import AttackBench
from ppbench.conformance.subject import Subject
from ppbench.plan import Cell
from ppbench.resolve import make_plan
from ppbench.results import Row
from ppbench.runner import RunOptions, run
from ppbench.suite import validate
from ppbench.verdicts import REFERENCE

METRICS = ("ssim", "lpips", "identification")  # what can be measured on photos; the last trains a judge
ZERO = 1e-6


def admission(bench: AttackBench, options: RunOptions | None = None) -> Iterator[str]:
    """Run one real cell on the defense `none`, and read its row.

    An attack that shows a class is not held against images: photographs have no people to be found again.

    Args:
        bench: the attack.
        options: how and where the cell is run; unless given, in processes of its own, and nothing is kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = options or RunOptions(Path(folder), jobs=1)
        row: Row = {}
        for metric in ("auc",) if bench.accuses else METRICS:
            scored = _row(bench.subject, options, metric)
            row |= {name: value for name, value in scored.items() if value is not None}
            if row["status"] == "ok" and bench.attack.shows == "class":
                return
            clear = row["status"] != "ok" or bench.attack.role == "floor" or _shows_one(row)
            if clear or _beats_floor(row):
                break
    yield from _verdict(row, bench.attack.role)


def _verdict(row: Row, role: str) -> Iterator[str]:
    if row["status"] != "ok":
        yield f"on {REFERENCE!r} the cell ends as {row['status']} ({row['reason']}): let it run there"
        return
    if role == "floor":
        if abs(row["leakage_ssim"]) > ZERO:
            yield (f"its role is floor, but on {REFERENCE!r} its leakage is {row['leakage_ssim']:.3f}: return the "
                   "blind guess")
    elif _shows_one(row):
        yield "it returns one image for all targets although their releases differ: use what it sees of each"
    elif not _beats_floor(row):
        lows = ", ".join(f"{row[low]:.3f} ({metric})" for metric in (*METRICS, "auc")
                         if row.get(low := _low(metric)) is not None)
        yield (f"on {REFERENCE!r} it does not beat the blind guess: the 95 % interval of its leakage begins at {lows}: "
               "make it work there first")


def _beats_floor(row: Row) -> bool:
    """Say whether the leakage by any of them is above 0 by more than its interval, as the run's own verdict does."""
    lows = [row.get(_low(metric)) for metric in (*METRICS, "auc")]
    return any(low is not None and low > 0 for low in lows)  # NaN: no


def _shows_one(row: Row) -> bool:
    return "same-output" in row.get("flags", "").split()


def _low(metric: str) -> str:
    return f"leakage_{metric}_low"


def _row(subject: Subject, options: RunOptions, metric: str) -> Row:
    # whose images were used shows where they were learnt by heart
    size, much = ({"private": 160}, {"epochs": 20}) if metric == "auc" else ({"private": 48}, {"epochs": 2})
    tables: dict[str, Any] = {
        "name": f"admission-{metric}", "targets": 16, "victim": much,
        "score": {"groups": [] if metric == "auc" else [metric]},
        "dataset": [{"use": "photos", "public": 128, "test": 16, **size}],
        "defense": [{"use": REFERENCE}],
        "attack": [{"use": subject.use, **subject.ref.params}],
    }
    return run(make_plan(validate(tables, "the admission gate"), options.output), options, _Unseen()).rows[0]


class _Unseen:
    """Watches a run and says nothing."""

    def begin(self, cells: int, kept: int) -> None:
        """The run starts."""

    def watch(self, now: Callable[[], str]) -> None:
        """Nobody asks."""

    def row(self, cell: Cell, row: Row, seconds: float) -> None:
        """The cell became a row."""

"""A run: plan -> cells -> rows; what is finished is kept, what fails becomes a row, and the rest goes on."""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ppbench.cell import make_row
from ppbench.engine.gate import CELL
from ppbench.engine.inline import Inline
from ppbench.engine.job import Engine
from ppbench.engine.processes import Processes
from ppbench.files import write_atomic
from ppbench.flow import Flow
from ppbench.plan import Cell, Plan
from ppbench.precheck import check_data
from ppbench.results import Row
from ppbench.rundir import (
    check_writable,
    copy_plugins,
    finished,
    forget_joined,
    locked,
    write_grids,
    write_per_candidate,
    write_per_image,
    write_tables,
    write_verdicts,
)
from ppbench.store import Store
from ppbench.verdicts import Verdict


@dataclass(frozen=True)
class RunOptions:
    """How and where a plan is run.

    Attributes:
        output: folder of runs; the run goes to `<output>/<plan.name>`.
        engine: `processes` or `inline`.
        jobs: jobs at once.
        fresh: forget what was finished (artefacts of the store are still used where nothing changed).
    """

    output: Path
    engine: str = "processes"
    jobs: int = 2
    fresh: bool = False


@dataclass(frozen=True)
class Result:
    """A run's folder, rows in plan order, how many artefacts of each kind were computed, and verdicts by cell."""

    folder: Path
    rows: list[Row]
    computed: dict[str, int]
    kept: int
    verdicts: dict[str, Verdict]


class Observer(Protocol):
    """Is told how a run goes on."""

    def begin(self, cells: int, kept: int) -> None:
        """The run starts; `kept` cells were finished before."""

    def watch(self, now: Callable[[], str]) -> None:
        """`now()` says what runs, and how far it is."""

    def row(self, cell: Cell, row: Row, seconds: float) -> None:
        """A cell became a row."""


def run(plan: Plan, options: RunOptions, observer: Observer) -> Result:
    """Run a plan, or what is left of it.

    Raises:
        UserError: bad input, found before any cell is computed, or the folder is in use or cannot be written.
    """
    folder = options.output / plan.name
    check_writable(folder)
    with locked(folder):
        files = copy_plugins(plan, folder)
        engine: Engine = Inline() if options.engine == "inline" else Processes(options.jobs)
        flow = Flow(plan, Store(options.output / ".store"), engine, files)
        observer.watch(flow.now)
        try:
            return asyncio.run(_run(plan, folder, flow, observer, options.fresh))
        finally:
            engine.close()


def check(plan: Plan) -> None:
    """Check a plan against its data, as `run` does before the first cell; nothing is kept.

    Raises:
        UserError: a data set, defense or victim does not serve.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(check_data(plan, Flow(plan, Store(Path(scratch)), Inline(), {})))


async def _run(plan: Plan, folder: Path, flow: Flow, observer: Observer, fresh: bool) -> Result:
    await check_data(plan, flow)
    if fresh:
        shutil.rmtree(folder / "cells", ignore_errors=True)
    write_atomic(folder / "plan.json", json.dumps(plan.as_json(), indent=1).encode())
    done = finished(plan, folder)
    observer.begin(len(plan.cells), len(done))
    waiting = [cell for cell in plan.cells if cell.id not in done]
    kept = len(done)

    async def finish(place: int, cell: Cell) -> None:
        CELL.set(place)
        start = time.monotonic()
        done[cell.id] = await make_row(plan, cell, folder, flow)
        observer.row(cell, done[cell.id]["row"], time.monotonic() - start)
        write_tables(plan, folder, done)

    write_tables(plan, folder, done)
    forget_joined(folder)
    async with asyncio.TaskGroup() as group:
        for place, cell in enumerate(waiting):
            group.create_task(finish(place, cell))
    rows = [done[cell.id]["row"] for cell in plan.cells]
    write_per_image(plan, folder, done)
    write_per_candidate(plan, folder, done)
    verdicts = write_verdicts(plan, folder, done)
    await write_grids(plan, folder, flow, done)
    return Result(folder, rows, dict(flow.computed), kept, verdicts)

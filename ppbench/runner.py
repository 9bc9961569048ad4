"""A run: plan -> cells -> rows; what is finished is kept, what fails becomes a row, and the rest goes on."""

import asyncio
import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ppbench import codec
from ppbench.attack import Reconstruction
from ppbench.data import Shape, Split
from ppbench.defense import Defense
from ppbench.engine.gate import CELL
from ppbench.engine.inline import Inline
from ppbench.engine.job import Engine
from ppbench.engine.processes import Processes
from ppbench.errors import UserError
from ppbench.flow import Flow, StageFailed
from ppbench.grids import Column, draw_grid
from ppbench.judge import SMALLEST as JUDGED
from ppbench.metrics import SSIM_WINDOW
from ppbench.plan import Cell, DatasetPlan, Plan, label
from ppbench.plugins import build, is_file
from ppbench.results import FINISHED, PER_IMAGE_COLUMNS, Row, base_row, read_row, to_csv, write_row
from ppbench.score import Sheet
from ppbench.seeding import seeded
from ppbench.stages import Protected, Unprotected
from ppbench.store import Artefact, Store, file_digest, json_digest, write_atomic
from ppbench.victim import check_fits, start

LOG_END = 64 * 1024


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
    """A run's folder and rows in plan order, and how many artefacts of each kind were computed."""

    folder: Path
    rows: list[Row]
    computed: dict[str, int]
    kept: int


class Observer(Protocol):
    """Is told how a run goes on."""

    def begin(self, cells: int, kept: int) -> None:
        """The run starts; `kept` cells were finished before."""

    def stage(self, kind: str, begins: bool) -> None:
        """A stage begins or ends."""

    def row(self, cell: Cell, row: Row, seconds: float) -> None:
        """A cell became a row."""


def run(plan: Plan, options: RunOptions, observer: Observer) -> Result:
    """Run a plan, or what is left of it.

    Raises:
        UserError: bad input, found before any cell is computed, or the folder is in use or cannot be written.
    """
    folder = options.output / plan.name
    _check_writable(folder)
    with _locked(folder):
        files = _copy_plugins(plan, folder)
        engine: Engine = Inline() if options.engine == "inline" else Processes(options.jobs)
        flow = Flow(plan, Store(options.output / ".store"), engine, files)
        flow.on_stage = observer.stage
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
        asyncio.run(_check_data(plan, Flow(plan, Store(Path(scratch)), Inline(), {})))


async def _run(plan: Plan, folder: Path, flow: Flow, observer: Observer, fresh: bool) -> Result:
    await _check_data(plan, flow)
    if fresh:
        shutil.rmtree(folder / "cells", ignore_errors=True)
    write_atomic(folder / "plan.json", json.dumps(plan.as_json(), indent=1).encode())
    found = {cell.id: read_row(_row_file(folder, cell), plan.fingerprint(cell)) for cell in plan.cells}
    done = {cell_id: content for cell_id, content in found.items()
            if content is not None and content["row"]["status"] in FINISHED and _intact(folder, content)}
    observer.begin(len(plan.cells), len(done))
    waiting = [cell for cell in plan.cells if cell.id not in done]
    kept = len(done)

    async def finish(place: int, cell: Cell) -> None:
        CELL.set(place)
        start = time.monotonic()
        done[cell.id] = await _cell(plan, cell, folder, flow)
        observer.row(cell, done[cell.id]["row"], time.monotonic() - start)
        _write_tables(plan, folder, done)

    _write_tables(plan, folder, done)
    async with asyncio.TaskGroup() as group:
        for place, cell in enumerate(waiting):
            group.create_task(finish(place, cell))
    rows = [done[cell.id]["row"] for cell in plan.cells]
    _write_per_image(plan, folder, done)
    await _grids(plan, folder, flow, done)
    return Result(folder, rows, dict(flow.computed), kept)


async def _check_data(plan: Plan, flow: Flow) -> None:
    """Load every data set, and hold defenses and victim against its images, before the first cell."""
    seen = {json.dumps([cell.dataset.identity(), cell.seed], sort_keys=True): cell for cell in plan.cells}
    shapes: dict[str, tuple[Shape, int]] = {}
    for cell in seen.values():
        try:
            info = (await flow.split(cell.dataset, cell.seed)).info
        except StageFailed as failure:
            if failure.status == "bad-input":
                raise UserError(failure.reason) from None
            raise UserError(f"the data set {cell.dataset.label} cannot be loaded: {failure.reason}") from None
        channels, height, width = info["shape"]
        shapes[_key(cell.dataset)] = ((channels, height, width), info["classes"])
    for cell in plan.cells:
        shape, classes = shapes[_key(cell.dataset)]
        defense: Defense = build(cell.defense.ref)
        try:
            defense.check(shape)
        except UserError as error:
            raise UserError(f"{label(cell.defense.ref)} on {cell.dataset.label}: {error}") from error
    for shape, classes in set(shapes.values()):
        _check_shape(plan, shape, classes)


def _check_shape(plan: Plan, shape: Shape, classes: int) -> None:
    """Hold scores and victim against images of a shape."""
    smallest = {"ssim": SSIM_WINDOW, "identification": JUDGED, "recognition": JUDGED}
    for group in plan.score.groups:
        if min(shape[1:]) < smallest.get(group, 1):
            name = "SSIM" if group == "ssim" else group
            raise UserError(f"{name} needs images of at least {smallest[group]} pixels, but these are {shape[1]} x "
                            f"{shape[2]}: choose a larger size, or leave {group} out of the score groups")
    for recipe in {json_digest(asdict(cell.victim)): cell.victim for cell in plan.cells}.values():
        with seeded(0):
            model = start(recipe, Unprotected(), None, shape, classes)
            check_fits(model, model.build(), torch.zeros(1, *shape), torch.tensor([classes - 1]))


def _key(dataset: DatasetPlan) -> str:
    return json.dumps(dataset.identity(), sort_keys=True)


async def _cell(plan: Plan, cell: Cell, folder: Path, flow: Flow) -> dict[str, Any]:
    """Make one cell's row, whatever happens, and write it."""
    row = base_row(plan, cell)
    artefacts: dict[str, str] = {}
    timings: dict[str, float] = {}
    home = folder / "cells" / cell.id
    if cell.missing:
        row |= {"status": "not-applicable", "missing": " ".join(cell.missing),
                "reason": f"{cell.threat.name} does not grant {', '.join(cell.missing)}"}
    else:
        try:
            found, outer = await flow.reconstruction(cell)
            sheet = await flow.sheet(cell, found, outer)
            accuracies = await _accuracies(plan, cell, flow)
            row |= _scored(plan, cell, found, outer, sheet) | accuracies
            row["status"] = "ok"
            timings = {"attack": found.seconds, "score": sheet.seconds}
            artefacts = {"reconstruction": found.sha256, "scores": sheet.sha256}
            write_atomic(home / "reconstruction.safetensors", found.path.read_bytes())
            write_atomic(home / "scores.safetensors", sheet.path.read_bytes())
            (home / "log.txt").unlink(missing_ok=True)
        except StageFailed as failure:
            stage = "" if failure.stage == "attack" else f"{failure.stage}: "
            status = "failed" if failure.status == "bad-input" else failure.status
            row |= {"status": status, "reason": f"{stage}{failure.reason}"}
            if failure.log:
                write_atomic(home / "log.txt", _bounded(failure.log).encode())
    write_row(_row_file(folder, cell), plan.fingerprint(cell), row, artefacts, timings)
    return {"fingerprint": plan.fingerprint(cell), "row": row, "artefacts": artefacts, "timings": timings}


async def _accuracies(plan: Plan, cell: Cell, flow: Flow) -> Row:
    """Return task accuracy on this release, without the training attack, and on unprotected images."""
    if "task" not in plan.score.groups:
        return {}
    honest = (await flow.victim(cell)).info["accuracy"]
    reached = honest
    if cell.attack.trains:
        reached = (await flow.victim(cell, cell.attack.refs[0])).info["accuracy"]
    plain = (await flow.plain_victim(cell)).info["accuracy"]
    return {"task_accuracy": reached, "task_accuracy_honest": honest, "task_accuracy_plain": plain}


def _scored(plan: Plan, cell: Cell, found: Artefact, outer: Artefact | None, scored: Artefact) -> Row:
    sheet = codec.load(Sheet, scored.path)
    result = codec.load(Reconstruction, found.path)
    shape = list(sheet.shown.shape[1:])
    floors = {name.removesuffix("_floor_method"): text for name, text in sheet.texts.items()
              if name.endswith("_floor_method")}
    notes = [result.note] if result.note else []
    if outer is not None and (note := codec.load(Reconstruction, outer.path).note):
        notes.insert(0, note)
    return {**sheet.values, **{name: text for name, text in sheet.texts.items() if name.endswith("_def")},
            "n_targets": plan.targets, "aligned": sheet.aligned, "recon_of": result.of,
            "image_shape": "x".join(map(str, shape)), "note": "; ".join([*notes, *sheet.notes]),
            "gallery": int(sheet.values["gallery"]) if "gallery" in sheet.values else None,
            "floor_method": "; ".join(f"{metric}: {method}" for metric, method in floors.items()),
            "artefact": found.sha256}


def _bounded(log: str) -> str:
    """Keep both ends of a long log."""
    if len(log) <= 2 * LOG_END:
        return log
    return f"{log[:LOG_END]}\n[... {len(log) - 2 * LOG_END} characters dropped ...]\n{log[-LOG_END:]}"


async def _grids(plan: Plan, folder: Path, flow: Flow, done: dict[str, Any]) -> None:
    """Draw one picture a data set, defense and seed from the cells that were scored."""
    groups: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        if done[cell.id]["row"]["status"] == "ok":
            groups.setdefault(json_digest([cell.dataset.identity(), cell.defense.identity(), cell.seed]), []
                              ).append(cell)
    names: dict[str, int] = {}
    for cells in groups.values():
        first = cells[0]
        split = codec.load(Split, (await flow.split(first.dataset, first.seed)).path)
        protected = codec.load(Protected, (await flow.release(first)).path)
        columns = [Column(cell.attack.label, cell.threat.name, done[cell.id]["row"], _sheet(folder, cell).shown)
                   for cell in cells]
        name = f"{first.dataset.label}_{label(first.defense.ref)}_seed{first.seed}".replace(":", "-")
        names[name] = names.get(name, 0) + 1
        suffix = f"_{names[name]}" if names[name] > 1 else ""
        title = f"{label(first.defense.ref)} on {first.dataset.label}"
        picture = draw_grid(title, split.private.pixels[: plan.targets], protected.release.images[: plan.targets],
                            protected.release.source is not None, columns)
        write_atomic(folder / "grids" / f"{name}{suffix}.png", picture)


def _sheet(folder: Path, cell: Cell) -> Sheet:
    return codec.load(Sheet, folder / "cells" / cell.id / "scores.safetensors")


def _write_per_image(plan: Plan, folder: Path, done: dict[str, Any]) -> None:
    """Write every target's scores, one line a cell and target."""
    lines: list[dict[str, Any]] = []
    for cell in plan.cells:
        row = done[cell.id]["row"]
        if row["status"] == "ok":
            scores = {name: values.tolist() for name, values in _sheet(folder, cell).per_image.items()}
            names = {name: row[name] for name in ("cell", "dataset", "defense", "attack", "threat", "seed")}
            lines += [{**names, "target": i, **{name: values[i] for name, values in scores.items()}}
                      for i in range(plan.targets)]
    write_atomic(folder / "per_image.csv", to_csv(lines, PER_IMAGE_COLUMNS))


def _write_tables(plan: Plan, folder: Path, done: dict[str, Any]) -> None:
    """Rewrite the tables from the rows there are, in plan order."""
    finished = [done[cell.id] for cell in plan.cells if cell.id in done]
    write_atomic(folder / "results.csv", to_csv(content["row"] for content in finished))
    columns = ("cell", "attack", "score")
    write_atomic(folder / "timings.csv", to_csv(
        ({"cell": content["row"]["cell"], **content["timings"]} for content in finished), columns))


def _row_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / cell.id / "row.json"


def _intact(folder: Path, content: dict[str, Any]) -> bool:
    """Say whether the reconstruction and the scores that a row speaks of are still the same."""
    if content["row"]["status"] != "ok":
        return True
    home = folder / "cells" / content["row"]["cell"]
    try:
        return all(file_digest(home / f"{name}.safetensors") == digest
                   for name, digest in content["artefacts"].items())
    except OSError:
        return False


def _copy_plugins(plan: Plan, folder: Path) -> dict[str, str]:
    """Copy file plug-ins into the run, so that an edit in mid-run changes nothing; return where each copy lies."""
    copies: dict[str, str] = {}
    refs = [ref for cell in plan.cells for ref in (cell.dataset.ref, cell.defense.ref, *cell.attack.refs)]
    for ref in refs:
        if ref.file and is_file(ref.name) and ref.file not in copies:
            source = Path(ref.file)
            target = folder / "plugins" / f"{file_digest(source)[:12]}-{source.name}"
            write_atomic(target, source.read_bytes())
            copies[ref.file] = str(target.resolve())
    return copies


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"the output folder {str(folder)!r} cannot be written: {error.strerror or error}; choose "
                        "another with --output") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; the lock falls with the process, however it ends."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is working in {str(folder)!r}: wait for it, or choose another --name"
                            ) from None
        yield

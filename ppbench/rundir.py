"""The run directory: who may write to it, what of it is believed, and its tables and pictures."""

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ppbench import codec
from ppbench.data import Split
from ppbench.errors import UserError
from ppbench.files import file_digest, write_atomic
from ppbench.flow import Flow
from ppbench.grids import Column, draw_grid
from ppbench.plan import Cell, Plan, label
from ppbench.plugins import is_file
from ppbench.results import PER_CANDIDATE_COLUMNS, PER_IMAGE_COLUMNS, Row, read_row, to_csv
from ppbench.roc import draw_roc
from ppbench.score import Sheet
from ppbench.stages.values import Protected
from ppbench.store import json_digest
from ppbench.verdicts import COLUMNS as VERDICT_COLUMNS
from ppbench.verdicts import Verdict, judge_rows, verdict_line

Contents = dict[str, Any]
"""What a row.json holds: `row`, `artefacts`, `timings`."""


def check_writable(folder: Path) -> None:
    """Make the run's folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"the output folder {str(folder)!r} cannot be written: {error.strerror or error}; choose "
                        "another with --output") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; the lock falls with the process, however it ends.

    Raises:
        UserError: another run holds it.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is working in {str(folder)!r}: wait for it, or choose another --name"
                            ) from None
        for remains in folder.rglob(".*.tmp"):  # of a run that was killed
            remains.unlink(missing_ok=True)
        yield


def copy_plugins(plan: Plan, folder: Path) -> dict[str, str]:
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


def home(folder: Path, cell: Cell) -> Path:
    """Return the folder of a cell."""
    return folder / "cells" / cell.id


def finished(plan: Plan, folder: Path) -> dict[str, Contents]:
    """Return what is finished already, by cell: rows of this very plan whose files are whole."""
    found = {cell.id: read_row(home(folder, cell) / "row.json", plan.fingerprint(cell)) for cell in plan.cells}
    return {cell_id: content for cell_id, content in found.items()
            if content is not None and _final(content["row"]) and _intact(folder, content)}


def _final(row: Row) -> bool:
    """Say whether running the cell again could only give the same row.

    A missing capability is final; a missing file of weights, say, is not.
    """
    return row["status"] == "ok" or (row["status"] == "not-applicable" and bool(row.get("missing")))


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


def write_tables(plan: Plan, folder: Path, done: Mapping[str, Contents]) -> None:
    """Rewrite the tables from the rows there are, in plan order."""
    contents = [done[cell.id] for cell in plan.cells if cell.id in done]
    write_atomic(folder / "results.csv", to_csv(content["row"] for content in contents))
    columns = ("cell", "prior", "attack", "score")
    write_atomic(folder / "timings.csv", to_csv(
        ({"cell": content["row"]["cell"], **content["timings"]} for content in contents), columns))


def forget_joined(folder: Path) -> None:
    """Remove what is only made when all rows are there: an earlier plan's would stand beside the new rows."""
    for name in ("verdicts.csv", "per_image.csv", "per_candidate.csv"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "grids", ignore_errors=True)


def write_per_image(plan: Plan, folder: Path, done: Mapping[str, Contents]) -> None:
    """Write every target's scores, one line a cell and target."""
    lines: list[dict[str, Any]] = []
    for cell in plan.cells:
        row = done[cell.id]["row"]
        if row["status"] == "ok" and not cell.attack.accuses:
            lines += _lines(row, "target", _sheet(folder, cell).per_image, plan.targets)
    write_atomic(folder / "per_image.csv", to_csv(lines, PER_IMAGE_COLUMNS))


def write_per_candidate(plan: Plan, folder: Path, done: Mapping[str, Contents]) -> None:
    """Write every candidate's score, where membership was told; no file where it was not."""
    lines: list[dict[str, Any]] = []
    for cell in plan.cells:
        row = done[cell.id]["row"]
        if row["status"] == "ok" and cell.attack.accuses:
            lines += _lines(row, "candidate", _sheet(folder, cell).per_candidate, row["candidates"])
    if lines:
        write_atomic(folder / "per_candidate.csv", to_csv(lines, PER_CANDIDATE_COLUMNS))


def _lines(row: Row, what: str, scores: Mapping[str, Tensor], count: int) -> list[dict[str, Any]]:
    values = {name: found.tolist() for name, found in scores.items()}
    names = {name: row[name] for name in ("cell", "dataset", "defense", "attack", "threat", "seed")}
    return [{**names, what: i, **{name: found[i] for name, found in values.items()}} for i in range(count)]


def write_verdicts(plan: Plan, folder: Path, done: Mapping[str, Contents]) -> dict[str, Verdict]:
    """Join the rows with one another, and write and return what each is worth, by cell."""
    rows = {cell.id: done[cell.id]["row"] for cell in plan.cells}

    def scores(cell: Cell) -> Tensor | None:
        return _sheet(folder, cell).per_image.get("ssim") if rows[cell.id]["status"] == "ok" else None

    verdicts = judge_rows(plan.cells, rows, scores)
    lines = (verdict_line(cell, rows[cell.id], verdicts[cell.id]) for cell in plan.cells)
    write_atomic(folder / "verdicts.csv", to_csv(lines, VERDICT_COLUMNS))
    return verdicts


async def write_grids(plan: Plan, folder: Path, flow: Flow, done: Mapping[str, Contents]) -> None:
    """Draw one picture a data set, defense and seed from the cells that were scored."""
    groups: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        if done[cell.id]["row"]["status"] == "ok":
            groups.setdefault(json_digest([cell.dataset.identity(), cell.defense.identity(), cell.seed]), []
                              ).append(cell)
    names: dict[Path, int] = {}
    for cells in groups.values():
        first = cells[0]
        name = f"{first.dataset.label}_{label(first.defense.ref)}_seed{first.seed}".replace(":", "-")
        title = f"{label(first.defense.ref)} on {first.dataset.label}"
        if first.attack.accuses:
            curves = [(_described(cell), _sheet(folder, cell).per_candidate) for cell in cells]
            write_atomic(_unique(folder / "grids" / f"{name}_roc.png", names), draw_roc(title, curves))
            continue
        split = codec.load(Split, (await flow.split(first.dataset, first.seed)).path)
        protected = codec.load(Protected, (await flow.release(first)).path)
        columns = [Column(cell.attack.label, cell.threat.name, done[cell.id]["row"], _sheet(folder, cell).shown)
                   for cell in cells]
        picture = draw_grid(title, split.private.pixels[: plan.targets], protected.release.images[: plan.targets],
                            protected.release.source is not None, columns)
        write_atomic(_unique(folder / "grids" / f"{name}.png", names), picture)


def _described(cell: Cell) -> str:
    params = (f"{name} {value}" for ref in cell.attack.refs for name, value in ref.params.items())
    return ", ".join([cell.attack.label, *params])


def _unique(path: Path, names: dict[Path, int]) -> Path:
    """Number a file where there is one of its name; `names` counts them."""
    names[path] = names.get(path, 0) + 1
    return path.with_stem(f"{path.stem}_{names[path]}") if names[path] > 1 else path


def _sheet(folder: Path, cell: Cell) -> Sheet:
    return codec.load(Sheet, home(folder, cell) / "scores.safetensors")

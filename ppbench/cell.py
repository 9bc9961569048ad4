"""One cell, from its plan to its row."""

from pathlib import Path

from ppbench import codec
from ppbench.attack import Membership, Reconstruction
from ppbench.files import write_atomic
from ppbench.flow import Flow, StageFailed
from ppbench.plan import Cell, Plan
from ppbench.results import Row, base_row, write_row
from ppbench.rundir import Contents, home
from ppbench.score import Sheet
from ppbench.store import Artefact

LOG_END = 64 * 1024


async def make_row(plan: Plan, cell: Cell, folder: Path, flow: Flow) -> Contents:
    """Make one cell's row, whatever happens, and write it."""
    row = base_row(plan, cell)
    artefacts: dict[str, str] = {}
    timings: dict[str, float] = {}
    own = home(folder, cell)
    if cell.missing:
        row |= {"status": "not-applicable", "missing": " ".join(cell.missing),
                "reason": f"{cell.threat.name} does not grant {', '.join(cell.missing)}"}
    else:
        try:
            attacked = await flow.reconstruction(cell)
            found, outer = attacked.reconstruction, attacked.outer
            sheet = await (flow.accusation(cell, found) if cell.attack.accuses else flow.sheet(cell, found, outer))
            row |= (await flow.release(cell)).info["guarantee"]
            accuracies = await _accuracies(plan, cell, flow)
            scored = _accused(found, sheet) if cell.attack.accuses else _scored(plan, cell, found, outer, sheet)
            row |= accuracies | scored | {"note": "; ".join(filter(None, [scored["note"], accuracies.get("note")]))}
            row["status"] = "ok"
            timings = {"prior": attacked.learning, "attack": attacked.seconds, "score": sheet.seconds}
            artefacts = {"reconstruction": found.sha256, "scores": sheet.sha256}
            write_atomic(own / "reconstruction.safetensors", found.path.read_bytes())
            write_atomic(own / "scores.safetensors", sheet.path.read_bytes())
            (own / "log.txt").unlink(missing_ok=True)
        except StageFailed as failure:
            stage = "" if failure.stage == "attack" else f"{failure.stage}: "
            status = "failed" if failure.status == "bad-input" else failure.status
            row |= {"status": status, "reason": f"{stage}{failure.reason}"}
            (own / "log.txt").unlink(missing_ok=True)  # of an earlier try
            if failure.log:
                write_atomic(own / "log.txt", _bounded(failure.log).encode())
    write_row(own / "row.json", plan.fingerprint(cell), row, artefacts, timings)
    return {"fingerprint": plan.fingerprint(cell), "row": row, "artefacts": artefacts, "timings": timings}


async def _accuracies(plan: Plan, cell: Cell, flow: Flow) -> Row:
    """Return task accuracy on this release, without the training attack, and on unprotected images."""
    if "task" not in plan.score.groups:
        return {}
    honest = await flow.victim(cell)
    reached = await flow.victim(cell, cell.attack.refs[0]) if cell.attack.trains else honest
    plain = await flow.plain_victim(cell)
    adapted = (await flow.start(cell)).info["adapted"]
    warning = honest.info["warning"]
    return {"task_accuracy": reached.info["accuracy"], "task_accuracy_honest": honest.info["accuracy"],
            "task_accuracy_plain": plain.info["accuracy"], "victim_adapted": adapted,
            "epsilon_update": honest.info["epsilon_update"], "epsilon_training": honest.info["epsilon_training"],
            "note": f"victim: {warning}" if warning else ""}


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
            "flags": " ".join(sheet.flags) if cell.attack.role == "attack" else "", "artefact": found.sha256}


def _accused(found: Artefact, scored: Artefact) -> Row:
    sheet, note = codec.load(Sheet, scored.path), codec.load(Membership, found.path).note
    counts = {name: int(sheet.values[name]) for name in ("candidates", "canaries") if name in sheet.values}
    return {**sheet.values, **counts, **sheet.texts, "note": "; ".join(filter(None, [note, *sheet.notes])),
            "artefact": found.sha256}


def _bounded(log: str) -> str:
    """Keep both ends of a long log."""
    if len(log) <= 2 * LOG_END:
        return log
    return f"{log[:LOG_END]}\n[... {len(log) - 2 * LOG_END} characters dropped ...]\n{log[-LOG_END:]}"

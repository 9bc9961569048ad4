"""Rows: the columns of results.csv (schema 1), and how a finished cell is written and read back."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ppbench import __version__
from ppbench.accusation import COLUMNS as RATED
from ppbench.files import write_atomic
from ppbench.plan import Cell, Plan, label
from ppbench.quality import METRICS, SETS
from ppbench.store import json_digest
from ppbench.suspect import interval_condition

SCHEMA = 1
COLUMNS: tuple[str, ...] = (
    # identity
    "schema", "cell", "dataset", "dataset_params", "defense", "defense_params", "attack", "attack_params", "threat",
    "threat_params", "victim", "victim_params", "seed",
    # state
    "status", "missing", "reason", "note", "flags",
    # protocol
    "n_targets", "aligned", "recon_of", "image_shape", "key_scope", "clients", "quantise",
    "intervals_conditional_on",
    # scores
    "ssim", "ssim_low", "ssim_high", "psnr", "lpips", "identification", "identification_feature", "gallery",
    "recognition", "verification", "verification_plain", "ssim_worst", "lpips_worst", "release_ssim", "release_psnr",
    "piece_direct", "piece_neighbour", "piece_largest", "piece_perfect", "piece_cheaper",
    # membership
    "candidates", "canaries",
    *(f"{prefix}{name}{end}" for prefix in ("", "canary_") for name in ("auc", *RATED.values())
      for end in ("", "_low", "_high")),
    # quality
    *(column for name in METRICS for column in (name, f"{name}_floor")), "brisque_plain",
    # floors
    "ssim_floor", "lpips_floor", "identification_floor", "identification_feature_floor", "recognition_floor",
    "verification_floor",
    "floor_method",
    # leakage
    "leakage_ssim", "leakage_ssim_low", "leakage_ssim_high", "leakage_lpips", "leakage_lpips_low",
    "leakage_lpips_high", "leakage_identification", "leakage_identification_low", "leakage_identification_high",
    "leakage_verification", "leakage_verification_low", "leakage_verification_high",
    "leakage_auc", "leakage_auc_low", "leakage_auc_high",
    # utility
    "task_accuracy", "task_accuracy_honest", "task_accuracy_plain", "victim_adapted", "epsilon_update",
    "epsilon_training", "epsilon_release", "delta_release",
    # meaning
    "ssim_def", "psnr_def", "lpips_def", "identification_def", "identification_feature_def",
    "recognition_def", "verification_def", "piece_def",
    "quality_def", "membership_def",
    # origin
    "ppbench", "version_torch", "version_torchvision", "version_timm", "device", "threads", "defense_code",
    "attack_code", "artefact",
)
PER_IMAGE_COLUMNS: tuple[str, ...] = (
    "cell", "dataset", "defense", "attack", "threat", "seed", "target", "ssim", "psnr", "lpips", "identification",
    "identification_feature", "recognition", "verification", "release_ssim", "release_psnr", "ssim_floor",
    "lpips_floor", "identification_floor", "piece_direct", "piece_neighbour", "piece_largest", "piece_perfect",
    "piece_cheaper", *(name for name in METRICS if name not in SETS),
)

PER_CANDIDATE_COLUMNS = ("cell", "dataset", "defense", "attack", "threat", "seed", "candidate", "score", "member",
                         "canary")

Row = dict[str, Any]


def base_row(plan: Plan, cell: Cell) -> Row:
    """Return the columns that follow from the plan alone."""
    environment = plan.environment
    return {
        "schema": SCHEMA, "cell": cell.id, "dataset": cell.dataset.label,
        "dataset_params": _compact(cell.dataset.described()), "defense": label(cell.defense.ref),
        "defense_params": _compact(cell.defense.ref.params), "attack": cell.attack.label,
        "attack_params": _compact([ref.params for ref in cell.attack.refs] if len(cell.attack.refs) > 1
                                  else cell.attack.refs[0].params),
        "threat": cell.threat.name, "threat_params": _compact(cell.threat.settings()), "victim": cell.victim.model,
        "victim_params": _compact({name: value for name, value in asdict(cell.victim).items() if name != "model"}),
        "seed": cell.seed, "n_targets": None if cell.attack.accuses else plan.targets,
        "key_scope": cell.defense.key_scope,
        "clients": cell.defense.clients, "quantise": cell.defense.quantise,
        "intervals_conditional_on": interval_condition(cell.defense.key_scope, _keys_of_targets(plan, cell)),
        "ppbench": __version__,
        **{f"version_{name}": environment["versions"][name] for name in ("torch", "torchvision", "timm")},
        "device": environment["device"], "threads": plan.limits.threads, "defense_code": cell.defense.ref.code[:12],
        "attack_code": "+".join(ref.code[:12] for ref in cell.attack.refs),
    }


def _keys_of_targets(plan: Plan, cell: Cell) -> int:
    """Return how many keys the targets were protected with; of clients only those that count on 4 targets."""
    scope, clients = cell.defense.key_scope, cell.defense.clients
    return {"global": 1, "client": min(clients, plan.targets // 4), "image": plan.targets}.get(scope or "", 0)


def write_row(path: Path, fingerprint: str, row: Row, artefacts: Mapping[str, str],
              timings: Mapping[str, float]) -> None:
    """Write a finished cell's row.json, whole or not at all."""
    content: dict[str, Any] = {"fingerprint": fingerprint, "row": row, "artefacts": dict(artefacts),
                               "timings": dict(timings)}
    content["digest"] = json_digest(content)
    write_atomic(path, json.dumps(content, indent=1).encode())


def read_row(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what `write_row` wrote; None if it is absent, damaged, or of another plan."""
    try:
        content = json.loads(path.read_text())
        digest = content.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if digest != json_digest(content) or content["fingerprint"] != fingerprint:
        return None
    found: dict[str, Any] = content
    return found


def to_csv(rows: Iterable[Row], columns: tuple[str, ...] = COLUMNS) -> bytes:
    """Write rows as CSV: stable column order, six decimals, empty = not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6f}"
    if not isinstance(value, str):
        return str(value)
    # A carriage return in a plug-in's message would end the row: Python's writer does not quote it.
    text = "".join(char if char.isprintable() else " " for char in value).strip()
    # A spreadsheet runs cells that begin like a formula; text of a plug-in must not be run.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

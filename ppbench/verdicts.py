"""Verdicts: what a row is worth beside the other rows of its run. They never change results.csv.

An attack that does not beat the floor on the defense `none` is broken or too weak: what it fails to do elsewhere says
nothing about a defense. Such a cell is `inadmissible`: listed, never ranked, never evidence.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ppbench.plan import Cell, label
from ppbench.results import Row
from ppbench.seeding import derive_seed, generator
from ppbench.stats import Interval, paired_difference_interval
from ppbench.store import json_digest

REFERENCE = "none"
"""The defense on which every attack must show that it works."""
METRICS = ("ssim", "lpips", "identification", "verification", "auc")
COLUMNS = (
    "cell", "dataset", "defense", "attack", "threat", "seed", "status", "role", "admissible", "admissible_by", "why",
    "ssim", "leakage_ssim", "none_ssim", "none_ssim_drop", "none_ssim_drop_low", "none_ssim_drop_high",
    "key_holder_ssim", "flags",
)

_NO_REFERENCE = "the run has no cell of this attack on"

Scores = Callable[[Cell], Tensor | None]
"""A cell's SSIM of every target; None where it was not measured."""


@dataclass(frozen=True)
class Verdict:
    """What a row is worth.

    Attributes:
        admissible: `yes`, `no`, or empty where the run cannot tell.
        by: the metrics in which the attack beats the floor on `none` by more than its interval.
        why: one sentence where it is not `yes`.
        none_ssim: what the same attack reaches on `none`.
        drop: that minus the SSIM here, with its 95 % interval, paired over the targets.
        key_holder_ssim: the ceiling: the best SSIM of whoever holds the key of this defense.
        flags: what makes the row suspect, its own flags first.
    """

    admissible: str
    by: tuple[str, ...] = ()
    why: str = ""
    none_ssim: float | None = None
    drop: tuple[float, Interval] | None = None
    key_holder_ssim: float | None = None
    flags: tuple[str, ...] = ()

    @property
    def untried(self) -> bool:
        """Say whether this is an attack of which the run does not show that it works."""
        return self.admissible == "" and self.why.startswith(_NO_REFERENCE)

    def ranks(self, metric: str) -> bool:
        """Say whether the row may be ranked, and be evidence, by a metric."""
        return self.admissible == "yes" and metric in self.by


def judge_rows(cells: Sequence[Cell], rows: Mapping[str, Row], scores: Scores) -> dict[str, Verdict]:
    """Join the rows of a run.

    Args:
        cells: the plan's.
        rows: cell id -> row.
        scores: SSIM of every target, for differences between cells.

    Returns:
        cell id -> verdict.
    """
    references = {_tried(cell): cell for cell in reversed(cells) if _is_reference(cell)}
    ceilings = _ceilings(cells, rows)
    chains = _best_chains(cells, rows)
    return {cell.id: _verdict(cell, rows, references.get(_tried(cell)), ceilings.get(_attacked(cell)),
                              chains.get(_chain(cell)), scores) for cell in cells}


def verdict_line(cell: Cell, row: Row, verdict: Verdict) -> Row:
    """Return one line of verdicts.csv."""
    line = {name: row.get(name) for name in ("cell", "dataset", "defense", "attack", "threat", "seed", "status", "ssim",
                                             "leakage_ssim")}
    line |= {"role": cell.attack.role, "admissible": verdict.admissible, "admissible_by": " ".join(verdict.by),
             "why": verdict.why, "none_ssim": verdict.none_ssim, "key_holder_ssim": verdict.key_holder_ssim,
             "flags": " ".join(verdict.flags)}
    if verdict.drop is not None:
        mean, interval = verdict.drop
        line |= {"none_ssim_drop": mean, "none_ssim_drop_low": interval.low, "none_ssim_drop_high": interval.high}
    return line


def _verdict(cell: Cell, rows: Mapping[str, Row], reference: Cell | None, ceiling: float | None,
             best_chain: Row | None, scores: Scores) -> Verdict:
    row, on_none = rows[cell.id], None if reference is None else rows[reference.id]
    by = tuple(metric for metric in METRICS if on_none is not None and _beats_floor(on_none, metric))
    admissible, why = _admission(cell, row, on_none, by)
    flags = [*row.get("flags", "").split()]
    if on_none is not None and _misses_ceiling(cell, on_none):
        flags.append("misses-ceiling-on-none")
    if best_chain is not None and _below_floor(best_chain) and cell.attack.role == "attack":
        flags.append("best-chain-below-floor")
    drop = None
    if reference is not None and reference.id != cell.id:
        drop = _drop(scores(reference), scores(cell), cell)
    return Verdict(admissible, by, why, None if on_none is None else on_none.get("ssim"), drop, ceiling, tuple(flags))


def _admission(cell: Cell, row: Row, on_none: Row | None, by: tuple[str, ...]) -> tuple[str, str]:
    if cell.attack.role != "attack":
        return "", f"a yardstick ({cell.attack.role}), not an attack"
    if row["status"] == "not-applicable":
        return "", "not applicable"
    if on_none is None:
        return "", f"{_NO_REFERENCE} {REFERENCE!r}: add that defense"
    if "same-output" in on_none.get("flags", "").split():
        return "no", f"on {REFERENCE!r} the attack returns one image for all targets"
    if on_none["status"] != "ok":
        return "no", f"the attack is {on_none['status']} on {REFERENCE!r}"
    if not any(on_none.get(f"leakage_{metric}") is not None for metric in METRICS):
        return "", "no leakage was measured: add ssim, lpips, identification or verification to the score groups"
    if not by:
        return "no", f"on {REFERENCE!r} the attack does not beat the floor by more than its interval"
    return "yes", ""


def _beats_floor(row: Row, metric: str) -> bool:
    low = row.get(f"leakage_{metric}_low")
    return row["status"] == "ok" and low is not None and low > 0  # NaN (a single target): no


def _misses_ceiling(cell: Cell, on_none: Row) -> bool:
    ceiling, reached = cell.attack.ceiling, on_none.get("ssim_high")
    own = cell.threat.name == cell.attack.default_threat
    if ceiling is None or not own or on_none["status"] != "ok" or reached is None:
        return False
    return on_none["ssim"] < ceiling and not reached >= ceiling


def _below_floor(row: Row) -> bool:
    high = row.get("leakage_ssim_high")
    return high is not None and not math.isnan(high) and high < 0


def _drop(on_none: Tensor | None, here: Tensor | None, cell: Cell) -> tuple[float, Interval] | None:
    if on_none is None or here is None:
        return None
    rng = generator(derive_seed(cell.seed, "drop"))
    return float((on_none - here).double().mean()), paired_difference_interval(on_none, here, rng)


def _is_reference(cell: Cell) -> bool:
    return label(cell.defense.ref) == REFERENCE and not cell.defense.ref.params


def _tried(cell: Cell) -> str:
    """Name what is tried, the defense apart."""
    return json_digest([cell.dataset.identity(), [ref.identity for ref in cell.attack.refs],
                        [cell.threat.name, cell.threat.settings()], asdict(cell.victim), cell.seed])


def _attacked(cell: Cell) -> str:
    """Name what is attacked."""
    return json_digest([cell.dataset.identity(), cell.defense.identity(), asdict(cell.victim), cell.seed])


def _chain(cell: Cell) -> str:
    """Name what all chains share that begin with the same attack."""
    return json_digest([_attacked(cell), cell.attack.refs[0].identity, cell.threat.name, cell.threat.settings()])


def _ceilings(cells: Sequence[Cell], rows: Mapping[str, Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    for cell in cells:
        value = rows[cell.id].get("ssim")
        if cell.attack.role == "ceiling" and value is not None:
            found[_attacked(cell)] = max(value, found.get(_attacked(cell), -1.0))
    return found


def _best_chains(cells: Sequence[Cell], rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return, for every attack and the chains that begin with it, the row of the most leakage."""
    found: dict[str, Row] = {}
    for cell in cells:
        row = rows[cell.id]
        if row.get("leakage_ssim") is not None:
            best: Any = found.get(_chain(cell), row)
            found[_chain(cell)] = row if row["leakage_ssim"] >= best["leakage_ssim"] else best
    return found

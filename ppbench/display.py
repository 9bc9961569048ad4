"""What a person sees on the terminal: progress with time left, then the matrix."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ppbench.plan import Cell
from ppbench.results import Row


class Terminal:
    """Shows a run: a bar on a terminal, one plain line a row otherwise."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal
        self._running: dict[str, int] = {}
        self._total = self._done = 0
        self._progress = Progress(TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                                  TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True),
                                  TextColumn("{task.fields[now]}", style="dim"), console=self.console)
        self._task: Any = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def begin(self, cells: int, kept: int) -> None:
        """Start to count."""
        self._total, self._done = cells, kept
        if kept:
            self.console.print(f"{kept} of {cells} cells are finished already")
        if self.live:
            self._progress.start()
            self._task = self._progress.add_task("cells", total=cells, completed=kept, now="")

    def stage(self, kind: str, begins: bool) -> None:
        """Show which stages run."""
        self._running[kind] = self._running.get(kind, 0) + (1 if begins else -1)
        if self._task is not None:
            now = " ".join(kind if n == 1 else f"{n} {kind}" for kind, n in self._running.items() if n > 0)
            self._progress.update(self._task, now=now)

    def row(self, cell: Cell, row: Row, seconds: float) -> None:
        """Show a finished cell."""
        self._done += 1
        text = f"[{self._done}/{self._total}] {cell}: {outcome(row)}"
        self.console.print(text, markup=False, soft_wrap=True)
        if self._task is not None:
            self._progress.update(self._task, completed=self._done)


def outcome(row: Row) -> str:
    """Say in a few words what became of a cell."""
    if row["status"] != "ok":
        return f"{row['status']} ({row.get('reason', '')})"
    parts = [f"{name.upper()} {row[name]:.3f}" for name in ("ssim", "lpips") if row.get(name) is not None]
    if (leakage := row.get("leakage_ssim")) is not None:
        parts.append(f"leakage {leakage:.0%}")
    return ", ".join(parts) or "ok"


def print_matrix(rows: Sequence[Row]) -> None:
    """Print defenses x attacks: SSIM and the leakage it means, beside task accuracy."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    blocks: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row["dataset"], row["seed"]), []).append(row)
    for (dataset, seed), block in blocks.items():
        attacks = list(dict.fromkeys(_column(row, block) for row in block))
        console.print(f"\n{dataset}, seed {seed}: SSIM (leakage: 0 % = best blind guess, 100 % = the original; "
                      "* = matched by an assignment)", soft_wrap=True)
        table = Table(show_lines=True)
        table.add_column("defense", no_wrap=True)
        table.add_column("task\naccuracy", justify="right")
        for attack in attacks:
            table.add_column(attack.replace(" / ", "\n").replace("-", "-\n"), justify="right")
        for defense, params in dict.fromkeys((row["defense"], row["defense_params"]) for row in block):
            mine = {_column(row, block): row for row in block
                    if (row["defense"], row["defense_params"]) == (defense, params)}
            accuracies = (row.get("task_accuracy_honest") for row in mine.values())
            accuracy = next((found for found in accuracies if found is not None), None)
            table.add_row(defense if params == "{}" else f"{defense} {params}",
                          "" if accuracy is None else f"{accuracy:.1%}",
                          *(_entry(mine.get(attack)) for attack in attacks))
        console.print(table)


def _column(row: Row, block: Sequence[Row]) -> str:
    several = len({other["threat"] for other in block if other["attack"] == row["attack"]}) > 1
    return f"{row['attack']} / {row['threat']}" if several else str(row["attack"])


def _entry(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return "n/a" if row["status"] == "not-applicable" else str(row["status"])
    if row.get("ssim") is None:
        return "ok"
    leakage = row.get("leakage_ssim")
    mark = "" if row["aligned"] == "true" else "*"
    return f"{row['ssim']:.3f}{mark}" + ("" if leakage is None else f"\n{leakage:.0%}")

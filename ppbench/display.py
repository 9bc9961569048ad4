"""What a person sees on the terminal: progress with time left, then the matrix."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ppbench.plan import Cell
from ppbench.results import Row
from ppbench.verdicts import Verdict


class _Now(ProgressColumn):
    """What runs, and how far it is."""

    max_refresh = 0.5

    def __init__(self, terminal: "Terminal") -> None:
        super().__init__()
        self.terminal = terminal

    def render(self, task: Task) -> Text:
        """Ask anew at every refresh."""
        return Text(self.terminal.now(), style="dim")


class Terminal:
    """Shows a run: a bar on a terminal, one plain line a row otherwise."""

    def __init__(self) -> None:
        self.now: Callable[[], str] = lambda: ""
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal
        self._total = self._done = 0
        self._progress = Progress(TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                                  TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True),
                                  _Now(self), console=self.console)
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
            self._task = self._progress.add_task("cells", total=cells, completed=kept)

    def watch(self, now: Callable[[], str]) -> None:
        """Take a function that says what runs."""
        self.now = now

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
    parts = [f"{name.upper()} {row[name]:.3f}" for name in ("ssim", "lpips", "auc") if row.get(name) is not None]
    if row.get("auc") is not None:
        parts += [f"{kind}{row[column]:.1%} found at 1 % false alarms" for kind, column in
                  (("", "tpr_at_fpr_1pct"), ("canaries ", "canary_tpr_at_fpr_1pct")) if row.get(column) is not None]
    if (leakage := row.get("leakage_ssim")) is not None:
        parts.append(f"leakage {leakage:.0%}")
    return ", ".join(parts) or "ok"


def print_matrix(rows: Sequence[Row], verdicts: Mapping[str, Verdict]) -> None:
    """Print defenses x attacks: SSIM and the leakage it means, beside task accuracy and the worst case."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    blocks: dict[str, list[Row]] = {}
    datasets = _names(rows, ("dataset",), ("dataset_params",))
    for row, dataset in zip(rows, datasets, strict=True):
        blocks.setdefault(f"{dataset}, seed {row['seed']}", []).append(row)
    for title, block in blocks.items():
        console.print(f"\n{title}: SSIM (leakage: 0 % = best blind guess, 100 % = the original; "
                      "* = matched by an assignment)", soft_wrap=True)
        console.print(_matrix(block, verdicts))
    attacks = _names(rows, ("attack",), ("threat", "attack_params", "threat_params", "dataset", "seed"))
    named = [(attack, verdicts[row["cell"]]) for attack, row in zip(attacks, rows, strict=True)]
    for line in dict.fromkeys(f"{attack} ({verdict.why})" for attack, verdict in named if verdict.admissible == "no"):
        console.print(f"inadmissible: {line}; its rows say nothing about a defense", soft_wrap=True)
    for line in dict.fromkeys(f"{attack}: {verdict.why}" for attack, verdict in named if verdict.untried):
        console.print(f"not ranked: {line}", soft_wrap=True)
    conditions: dict[str, dict[str, None]] = {}
    for row in rows:
        conditions.setdefault(str(row["intervals_conditional_on"]), {})[str(row["defense"])] = None
    for condition, defenses in conditions.items():
        console.print(f"95 % intervals over targets, conditional on {condition}: {', '.join(defenses)}", soft_wrap=True)


def _matrix(block: Sequence[Row], verdicts: Mapping[str, Verdict]) -> Table:
    deployed = ("defense_params", "key_scope", "clients", "quantise", "victim", "victim_params")
    defenses = _names(block, ("defense",), deployed)
    attacks = _names(block, ("attack",), ("threat", "attack_params", "threat_params"))
    entries = dict(zip(zip(defenses, attacks, strict=True), block, strict=True))
    table = Table(show_lines=True)
    table.add_column("defense")
    table.add_column("task\naccuracy", justify="right")
    table.add_column("worst\ncase", justify="right")
    for attack in dict.fromkeys(attacks):
        table.add_column(attack.replace("-", "-\n").replace(" ", "\n"), justify="right")
    for defense in dict.fromkeys(defenses):
        mine = [entries.get((defense, attack)) for attack in dict.fromkeys(attacks)]
        found = (row.get("task_accuracy_honest") for row in mine if row)
        accuracies = [accuracy for accuracy in found if accuracy is not None]
        table.add_row(defense, f"{accuracies[0]:.1%}" if accuracies else "", _worst(mine, verdicts),
                      *(_entry(row, verdicts) for row in mine))
    return table


def _worst(mine: Sequence[Row | None], verdicts: Mapping[str, Verdict]) -> str:
    """Show the most leakage that an admissible attack reached."""
    found = [row["leakage_ssim"] for row in mine
             if row and row.get("leakage_ssim") is not None and verdicts[row["cell"]].ranks("ssim")]
    return f"{max(found):.0%}" if found else ""


def _names(rows: Sequence[Row], columns: tuple[str, ...], details: tuple[str, ...]) -> list[str]:
    """Name each row's component, adding one detail after the other where a name would stand for several."""
    full = [tuple(str(row[name]) for name in (*columns, *details)) for row in rows]
    names = [" ".join(str(row[name]) for name in columns) for row in rows]
    for detail in details:
        meant: dict[str, set[tuple[str, ...]]] = {}
        for name, identity in zip(names, full, strict=True):
            meant.setdefault(name, set()).add(identity)
        spread = {name: {str(row[detail]) for row, mine in zip(rows, names, strict=True) if mine == name}
                  for name in meant}
        names = [f"{name} {row[detail]}" if len(meant[name]) > 1 and len(spread[name]) > 1 else name
                 for name, row in zip(names, rows, strict=True)]
    return names


def _entry(row: Row | None, verdicts: Mapping[str, Verdict]) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return "n/a" if row["status"] == "not-applicable" else str(row["status"])
    if row.get("auc") is not None:
        return f"AUC {row['auc']:.3f}\n{row['leakage_auc']:.0%}"
    if row.get("ssim") is None:
        return "ok"
    leakage = row.get("leakage_ssim")
    mark = "" if row["aligned"] == "true" else "*"
    second = "inadmissible" if verdicts[row["cell"]].admissible == "no" else "" if leakage is None else f"{leakage:.0%}"
    return f"{row['ssim']:.3f}{mark}" + (f"\n{second}" if second else "")

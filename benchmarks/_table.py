"""What every benchmark prints: figures beside their targets, with the machine and the versions."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "ppbench")


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        case: what was measured.
        figure: its name and unit.
        value: as measured.
        target: what it should be, in words, say "<= 0.5"; empty = for information.
        met: whether it is; None = for information.
    """

    case: str
    figure: str
    value: float
    target: str = ""
    met: bool | None = None


def options(description: str) -> argparse.Namespace:
    """Read --quick and --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller form, at most 2 minutes on 2 cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return parser.parse_args()


def refuse(why: str) -> NoReturn:
    """End with a sentence that names the fix, and exit code 2."""
    print(why, file=sys.stderr)
    sys.exit(2)


def at_most(case: str, figure: str, value: float, most: float) -> Figure:
    """Return a figure that should not exceed a value."""
    return Figure(case, figure, value, f"<= {most:g}", value <= most)


def at_least(case: str, figure: str, value: float, least: float) -> Figure:
    """Return a figure that should reach a value."""
    return Figure(case, figure, value, f">= {least:g}", value >= least)


def equal(case: str, figure: str, value: float, wanted: float) -> Figure:
    """Return a figure that should be just so."""
    return Figure(case, figure, value, f"= {wanted:g}", value == wanted)


def show(title: str, figures: Sequence[Figure], json_file: Path | None) -> None:
    """Print the table, and write it as JSON where asked."""
    table = Table(title=title)
    for column in ("case", "figure", "value", "target", "met"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in figures:
        met = "" if row.met is None else "yes" if row.met else "NO"
        table.add_row(row.case, row.figure, f"{row.value:.4g}", row.target, met)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {versions}")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in figures], indent=1) + "\n")

"""What a check says: nothing, sentences that each name a fault and its fix, or why there was nothing to check."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ppbench.errors import ContractError, NotGranted, UserError
from ppbench.flow import StageFailed

B = TypeVar("B")
Check = Callable[[B], Iterable[str]]
FIRST = ("keys drawn", "training", "crafting", "queries", "contract", "query")
"""Checks without which the others mean little."""
PLAIN = (ContractError, NotGranted, UserError, StageFailed)  # their message is a whole sentence


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        check: its name.
        findings: one sentence a fault; none = passed.
        skipped: why the check did not apply; empty = it did.
    """

    check: str
    findings: tuple[str, ...] = ()
    skipped: str = ""


class Skipped(Exception):
    """Raised by a check that has nothing to hold the plug-in to."""


def not_quick(bench: object) -> Iterable[str]:
    """Stand in for a check that takes processes of its own."""
    raise Skipped("left out by --quick")


def examine(checks: Mapping[str, Check[B]], bench: B) -> Iterator[Outcome]:
    """Run checks one after another; what a plug-in raises is a finding of the check that called it.

    Where one of `FIRST` finds a fault, those after it are skipped: they would only say it again.
    """
    broken = ""
    for name, check in checks.items():
        if broken:
            yield Outcome(name, skipped=f"mend first what the check `{broken}` found")
            continue
        findings: list[str] = []
        try:
            for finding in check(bench):
                findings.append(finding)
        except Skipped as reason:
            yield Outcome(name, tuple(findings), "" if findings else str(reason))
            continue
        except (Exception, SystemExit) as error:
            findings.append(sentence(error))
        broken = name if name in FIRST and findings else ""
        yield Outcome(name, tuple(dict.fromkeys(findings)))


def sentence(error: BaseException) -> str:
    """Say in one sentence what was raised, and where."""
    text = " ".join(str(error).split())
    if isinstance(error, PLAIN):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"it raises {type(error).__name__}: {text[:300] or 'no message'} ({Path(last.filename).name}:{last.lineno})"

"""Leakage by how much is known, by suite `ladder`: from nothing over k known pairs to an oracle."""

import math

from _regimes import described
from _suites import rows_of
from _table import Figure

from ppbench.results import Row

SCORES = ("leakage_ssim", "leakage_identification")


def ladder(quick: bool) -> list[Figure]:
    """Run the suite (or go on with it); left out of the quick form, which has a rung of `regimes`."""
    return [] if quick else [figure for row in rows_of("ladder") for figure in figures(row)]


def figures(row: Row) -> list[Figure]:
    """Return a row's leakage."""
    name = f"ladder, {described(row)}: {row['attack']}, {row['threat']}"
    return [Figure(name, score, row.get(score, math.nan)) for score in SCORES]

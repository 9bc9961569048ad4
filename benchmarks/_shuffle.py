"""What hides in an order: how shuffled patches come back, by suite `shuffle`."""

import json

from _suites import Tables, rows_of
from _table import Figure, at_least

from ppbench.results import Row

FOUND = 0.9  # of pieces of 8 pixels, among 10,000
BRIEFLY = 0.4  # among 400, after a tenth of the training


def puzzles(quick: bool) -> list[Figure]:
    """Run the suite (or go on with it), and hold what the transformer finds against the promise."""
    rows = rows_of("shuffle", brief if quick else None)
    return [figure for row in rows for figure in figures(row, quick)]


def brief(tables: Tables) -> Tables:
    """Cut the suite down to some seconds' work: patches of 8 pixels."""
    tables["dataset"] = [table | {"private": 400, "public": 800} for table in tables["dataset"]]
    for table in tables["attack"]:
        if "steps" in table:
            table |= {"steps": 110, "width": 64, "depth": 2, "batch": 48}
    attacks = [table for table in tables["attack"] if table["use"] in ("jigsaw", "vit-inverter")]
    score = tables["score"] | {"groups": ["ssim", "identification"]}
    return tables | {"targets": 100, "defense": tables["defense"][:1], "attack": attacks, "score": score}


def figures(row: Row, quick: bool) -> list[Figure]:
    """Return a row's scores."""
    patch = json.loads(row["defense_params"]).get("patch", 4)
    name = f"patch-shuffle, patch {patch}: {row['attack']}"
    found = [Figure(name, figure, row[figure]) for figure in ("ssim", "lpips") if figure in row]
    if row["attack"] != "vit-inverter" or patch != 8:
        return [*found, Figure(name, "identification", row["identification"])]
    return [*found, at_least(name, "identification", row["identification"], BRIEFLY if quick else FOUND)]

"""What hides in an order: how shuffled patches come back, by suite `shuffle`."""

import json

from _suites import Results, Tables, results_of
from _table import Figure, at_least

from ppbench.results import Row
from ppbench.seeding import generator
from ppbench.stats import paired_difference_interval

FOUND = 0.9  # of pieces of 8 pixels, among 10,000
BRIEFLY = 0.4  # among 400, after a tenth of the training


def puzzles(quick: bool) -> list[Figure]:
    """Run the suite (or go on with it), and hold what the transformer finds against the promise."""
    results = results_of("shuffle", brief if quick else None)
    return [figure for row in results.rows for figure in figures(row, quick)] + refined(results)


def refined(results: Results) -> list[Figure]:
    """Say what the jigsaw solver gains where a network tells it where pieces belong, image by image, with interval."""
    found, alone = [], {row["defense_params"]: row for row in results.rows
                        if row["attack"] == "jigsaw" and not _helped(row)}
    for row in filter(_helped, results.rows):
        both = [results.scores(one, "ssim") for one in (row, alone[row["defense_params"]])]
        low, high = paired_difference_interval(both[0], both[1], generator(0))
        found.append(Figure(f"{_named(row)}, over jigsaw alone", "ssim gained", float((both[0] - both[1]).mean()),
                            f"interval {low:.4f} to {high:.4f}"))
    return found


def brief(tables: Tables) -> Tables:
    """Cut the suite down to some seconds' work: patches of 8 pixels."""
    tables["dataset"] = [table | {"private": 400, "public": 800} for table in tables["dataset"]]
    small = {"jigsaw": {"steps": 25}, "vit-inverter": {"steps": 110, "width": 64, "depth": 2, "batch": 48}}
    for table in tables["attack"]:
        table |= small.get(table["use"], {})
    attacks = [table for table in tables["attack"]
               if table["use"] in ("jigsaw", "vit-inverter") and not table.get("place_steps")]
    score = tables["score"] | {"groups": ["ssim", "identification"]}
    return tables | {"targets": 100, "defense": tables["defense"][:1], "attack": attacks, "score": score}


def figures(row: Row, quick: bool) -> list[Figure]:
    """Return a row's scores."""
    name, among = _named(row), f"identification among {row['gallery']:,}"
    found = [Figure(name, figure, row[figure]) for figure in ("ssim", "lpips") if figure in row]
    if row["attack"] != "vit-inverter" or _patch(row) != 8:
        return [*found, Figure(name, among, row["identification"])]
    return [*found, at_least(name, among, row["identification"], BRIEFLY if quick else FOUND)]


def _named(row: Row) -> str:
    helped = " with the places of a network" if _helped(row) else ""
    return f"patch-shuffle, patch {_patch(row)}: {row['attack']}{helped}"


def _helped(row: Row) -> bool:
    return bool(json.loads(row["attack_params"]).get("place_steps"))


def _patch(row: Row) -> int:
    return int(json.loads(row["defense_params"]).get("patch", 4))

"""Learned attacks beside all others, regime by regime, by suites `regimes` and `unkeyed`; and what each cell costs."""

import json
import math
from collections.abc import Mapping

from _suites import Tables, results_of, scored
from _table import Figure, at_least, equal

from ppbench.results import Row

LEARNED = ("thumbnail", "vit-inverter", "unet-inverter")
ROUNDING = 0.01  # by which an attack that stands on the linear estimate may fall below it on other images
# SSIM, Qi et al. 2022 (arXiv 2205.12041): inverse transformation network and GAN, on their set of 32 x 32 images
PUBLISHED = {("unet-inverter", "vit-cipher"): 0.117, ("unet-inverter", "le"): 0.407, ("unet-inverter", "etc"): 0.529,
             ("unet-inverter", "ele"): 0.001, ("gan-inversion", "vit-cipher"): 0.043, ("gan-inversion", "le"): 0.774,
             ("gan-inversion", "ele"): 0.021}
PUBLISHED_BLOCK = 4
OWN_KEYS = "ciphertext-only"
BRIEF = {"steps": 20, "batch": 16, "width": 16, "depth": 1}


def regimes(quick: bool) -> list[Figure]:
    """Run the suites (or go on with them), and hold what is learned against the linear estimate."""
    found = []
    for name in ("regimes",) if quick else ("regimes", "unkeyed"):
        results = results_of(name, brief if quick else None)
        linear = {_deployed(row): row["ssim"] for row in results.rows if row["attack"] == "linear"}
        for row in results.rows:
            found += figures(row, linear.get(_deployed(row), math.nan), results.timings[row["cell"]])
    return found + [generators(defenses) for defenses in ((4,) if quick else (2, 4))]


def generators(defenses: int) -> Figure:
    """Count the generators that are trained for so many defenses."""
    def few(tables: Tables) -> Tables:
        tables["dataset"] = [table | {"private": 20, "public": 40, "test": 10} for table in tables["dataset"]]
        attack = {"use": "gan-inversion", "steps": 2, "prior_steps": 2}
        return tables | {"targets": 4, "defense": tables["defense"][:defenses], "attack": [attack], "threat": [],
                         "score": {"groups": ["psnr"]}}

    return equal(f"gan-inversion against {defenses} defenses", "generators trained",
                 results_of("regimes", few).generators, 1)


def brief(tables: Tables) -> Tables:
    """Cut a suite down to half a minute's work: one defense, learned attacks of a few steps, without LPIPS."""
    tables["dataset"] = [table | {"private": 100, "public": 200} for table in tables["dataset"]]
    attacks = [table for table in tables["attack"] if table["use"] in ("linear", "unet-inverter")]
    for table in attacks:
        if "steps" in table:
            table |= BRIEF
        if "threats" in table:
            table["threats"] = ["known-plaintext-all"]
    score = tables["score"] | {"groups": ["ssim"]}
    return tables | {"targets": 50, "defense": tables["defense"][:1], "attack": attacks, "score": score}


def figures(row: Row, linear: float, timings: Mapping[str, float]) -> list[Figure]:
    """Return a row's scores and seconds; those of networks beside what is known of them."""
    name = f"{described(row)}: {row['attack']}, {row['threat']}"
    published = PUBLISHED.get((row["attack"], _preset(row)))
    found = scored(name, row, f"published: {published:g}" if published is not None else "")
    if row["attack"] in LEARNED and not str(row["note"]).startswith("degenerate"):  # where it is the release itself
        found.append(at_least(name, "ssim over that of linear", row["ssim"] - linear, -ROUNDING))
    return [*found, Figure(name, "seconds of training", timings["prior"]),
            Figure(name, "seconds of attack", timings["attack"])]


def _preset(row: Row) -> str:
    """Name the cipher of a row that stands beside published ones: keys of one's own, against one key; else nothing."""
    params = json.loads(row["defense_params"])
    here = row["defense"] == "block-scrambling" and params.get("block", 4) == PUBLISHED_BLOCK
    if row["threat"] != OWN_KEYS or row["key_scope"] != "global" or not here:
        return ""
    return str(params.get("preset", "vit-cipher"))


def described(row: Row) -> str:
    """Name a row's defense, its parameters, and how far a key is reused."""
    params = " ".join(f"{name} {value}" for name, value in json.loads(row["defense_params"]).items())
    return ", ".join(filter(None, [row["defense"], params, f"a key for every {row['key_scope']}"
                                   if row["key_scope"] in ("image", "client") else ""]))


def _deployed(row: Row) -> tuple[str, str, str, str]:
    return row["defense"], row["defense_params"], row["key_scope"], row["threat"]

"""What averaging leaves: estimates of mixed images by suite `mixup`, beside the linear one."""

import json
import math

from _real import cifar10
from _suites import Tables, rows_of, scored
from _table import Figure, at_least
from torch.nn.functional import avg_pool2d, interpolate

from ppbench.metrics import identification, ssim
from ppbench.results import Row

PROMISED = {4: 0.85, 8: 0.70}  # SSIM by side of the patch
FOUND = 0.99  # among some 10,000
LEARNED = ("thumbnail", "unet-inverter")
BEATEN = 0.001  # SSIM, by which what is learned must exceed the linear estimate
SHOWN = 1000  # images of which bilinear thumbnails are made


def mixtures(quick: bool) -> list[Figure]:
    """Run the suite (or go on with it), and hold what is learned against the promise and the linear estimate."""
    rows = rows_of("mixup", brief if quick else None)
    linear = {row["defense_params"]: row["ssim"] for row in rows if row["attack"] == "linear"}
    found = [figure for patch in PROMISED for figure in bilinear(patch)]
    return found + [figure for row in rows for figure in figures(row, linear[row["defense_params"]], quick)]


def bilinear(patch: int) -> list[Figure]:
    """Enlarge the patches' means, which every release holds: what anyone sees without an attack, of test images."""
    gallery, _ = cifar10("test")
    images = gallery[:SHOWN]
    made = interpolate(avg_pool2d(images, patch), images.shape[2:], mode="bilinear")
    name = f"mixup, patch {patch}: bilinear thumbnail of {len(images):,} test images"
    return [Figure(name, "ssim", float(ssim(made, images).mean())),
            Figure(name, f"identification among {len(gallery):,}", float(identification(made, gallery).mean()))]


def brief(tables: Tables) -> Tables:
    """Cut the suite down to half a minute's work: one patch size, without the judge."""
    tables["dataset"] = [table | {"private": 200, "public": 400} for table in tables["dataset"]]
    for table in tables["attack"]:
        if table.get("steps"):
            table |= {"steps": 20, "width": 16, "depth": 2, "batch": 16}
    limits = tables["limits"] | {"threads": 1}
    return tables | {"targets": 32, "limits": limits, "defense": tables["defense"][:1],
                     "score": tables["score"] | {"groups": ["ssim"]}}


def figures(row: Row, linear: float, quick: bool) -> list[Figure]:
    """Return a row's scores; in full those of networks are held against what is promised."""
    patch = json.loads(row["defense_params"]).get("patch", 4)
    learned = row["attack"] in LEARNED and json.loads(row["attack_params"]).get("steps") != 0
    name = f"mixup, patch {patch}: {row['attack']}" + (", learned" if learned else "")
    if not learned:
        return scored(name, row)
    found = [at_least(name, "ssim over that of linear", row["ssim"] - linear, 0 if quick else BEATEN)]
    if quick:
        return [*scored(name, row), *found]
    return [at_least(name, "ssim", row["ssim"], PROMISED[patch]), Figure(name, "lpips", row.get("lpips", math.nan)),
            at_least(name, f"identification among {row['gallery']:,}", row["identification"], FOUND), *found]

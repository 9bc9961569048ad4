"""Scoring: the only place, beside the defense itself, that sees both a reconstruction and the private images."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppbench.attack import Reconstruction
from ppbench.codec import Tensors
from ppbench.defense import Pieces, Release, resize
from ppbench.floors import PERFECT, Floors
from ppbench.judge import FEATURE_DEFINITION, RECOGNITION_DEFINITION
from ppbench.matching import Order
from ppbench.metrics import IDENTIFICATION_DEFINITION, PSNR_DEFINITION, SSIM_DEFINITION, SSIM_WINDOW, psnr, ssim
from ppbench.perceptual import Lpips
from ppbench.puzzle import PUZZLE_DEFINITION, puzzle_scores
from ppbench.quality import METRICS, SETS, quality_definition
from ppbench.scorers import Yardstick, mean_of, scorers
from ppbench.seeding import spawn
from ppbench.stats import mean_interval, ratio_interval
from ppbench.suspect import flags
from ppbench.verifier import VERIFICATION_DEFINITION


@dataclass(frozen=True)
class Truth:
    """What the scorer holds a reconstruction against.

    Attributes:
        yardstick: the targets, and what is measured.
        release: what was released.
        floors: what blind guesses score.
        order: how the estimates stand to the targets.
        pieces: what the defense does to square blocks; None = it has none.
    """

    yardstick: Yardstick
    release: Release
    floors: Floors
    order: Order
    pieces: Pieces | None = None


@dataclass(frozen=True)
class Sheet:
    """The scores of one cell.

    Attributes:
        values: column -> figure; absent = not measured.
        texts: column -> text: definitions, floor methods.
        notes: why something was not measured.
        per_image: column -> `[n_targets]`.
        aligned: `true`, `false` (matched by one assignment) or `within N` (in batches of N).
        flags: what is suspect about the reconstruction.
        shown: `[n_targets, C, H, W]`: the estimates, fitted to the private shape and matched to the targets.
        per_candidate: where membership is told: `score`, `member` and `canary`, `[N]` each.
    """

    values: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    per_image: Tensors = field(default_factory=dict)
    aligned: str = "true"
    shown: Tensor = field(default_factory=lambda: torch.empty(0))
    per_candidate: Tensors = field(default_factory=dict)


def score(truth: Truth, found: Reconstruction, outer: Reconstruction | None, rng: torch.Generator) -> Sheet:
    """Score a reconstruction, and beside each figure the floor that a blind guess reaches on the same targets.

    Args:
        truth: private images, release and what calibrates the figures.
        found: the attack's (or the chain's inner attack's) reconstruction.
        outer: in a chain, the outer attack's estimate of the released images.
        rng: for the bootstrap.
    """
    yardstick, groups, private = truth.yardstick, truth.yardstick.settings.groups, truth.yardstick.private
    released = outer or (found if found.of == "released" else None)
    fitted = resize(found.images, (private.shape[1], private.shape[2], private.shape[3]))
    estimates = truth.order.matched(fitted, private)
    sheet = Sheet(aligned=str(truth.order), shown=estimates, texts=_floor_methods(truth.floors),
                  flags=flags(found, truth.release.images[: yardstick.targets], chained=outer is not None))
    measured = scorers(yardstick, truth.order.aligned)
    sheet.notes.extend([measured.lpips] if isinstance(measured.lpips, str) else [])
    sheet.notes.extend(measured.reasons)
    if "recognition" in groups and not yardstick.known:
        sheet.notes.append("recognition: not measured, as public images show none of the targets' classes")
    for name, plain in measured.plain.items():
        sheet.values[f"{name}_plain"] = mean_of(name, plain)
        alone = int(plain.isnan().sum()) if name == "verification" else 0
        if alone:
            sheet.notes.append(f"{name}: {alone} of {yardstick.targets} targets have no other photo")
    for name, scorer in measured.by_column.items():
        per_image = scorer(estimates).double()
        sheet.values[name] = mean_of(name, per_image)
        if name not in SETS:
            sheet.per_image[name] = per_image
        if name in METRICS:  # a picture's quality has a floor, but what is above it is not called leakage
            sheet.values[f"{name}_floor"] = mean_of(name, truth.floors.scores[name])
        elif name in truth.floors.scores:
            perfect = measured.plain.get(name, torch.full_like(per_image, PERFECT.get(name, math.nan)))
            _calibrate(sheet, name, per_image, truth.floors.scores[name], perfect, spawn(rng))
    if "identification" in groups:
        sheet.values["gallery"] = yardstick.gallery_size
    _spread(sheet, spawn(rng))
    if "pieces" in groups and found.images.shape == private.shape:
        _score_pieces(truth.pieces, estimates, private, sheet)
    if released is not None:
        _score_release(truth, released, sheet)
    _define(sheet, measured.lpips)
    return sheet


def _floor_methods(floors: Floors) -> dict[str, str]:
    return {f"{name}_floor_method": method for name, method in floors.methods.items()}


def _calibrate(sheet: Sheet, name: str, per_image: Tensor, floor: Tensor, perfect: Tensor,
               rng: torch.Generator) -> None:
    """Add the floor and, for metrics of which the originals' own scores are known, the leakage with its interval."""
    sheet.per_image[f"{name}_floor"] = floor
    sheet.values[f"{name}_floor"] = mean_of(name, floor)
    measured = ~(per_image + floor + perfect).isnan()
    gained, possible = (per_image - floor)[measured], (perfect - floor)[measured]
    if not measured.any() or (name in PERFECT and possible.mean() == 0):
        return
    if name not in PERFECT and not mean_interval(possible, spawn(rng)).low > 0:
        sheet.notes.append(f"{name}: no leakage, as originals do not clearly beat the floor")
        return
    sheet.values[f"leakage_{name}"] = float(gained.mean() / possible.mean())
    sheet.values[f"leakage_{name}_low"], sheet.values[f"leakage_{name}_high"] = ratio_interval(gained, possible, rng)


def _spread(sheet: Sheet, rng: torch.Generator) -> None:
    """Add intervals over targets and the worst image, which an average hides."""
    if "ssim" in sheet.per_image:
        sheet.values["ssim_low"], sheet.values["ssim_high"] = mean_interval(sheet.per_image["ssim"], rng)
        sheet.values["ssim_worst"] = float(sheet.per_image["ssim"].max())
    if "lpips" in sheet.per_image:
        sheet.values["lpips_worst"] = float(sheet.per_image["lpips"].min())


def _score_pieces(pieces: Pieces | None, estimates: Tensor, private: Tensor, sheet: Sheet) -> None:
    """Add how much of a puzzle was put together, where blocks were moved and estimates are made of them.

    Where only some are, the others count as nothing.
    """
    if pieces is None or not pieces.moved:
        return
    found = puzzle_scores(estimates, private, pieces)
    made = int((~found["piece_direct"].isnan()).sum())
    if made:
        sheet.per_image.update(found)
        sheet.values.update({name: float(scores.nan_to_num().mean()) for name, scores in found.items()})
    if 0 < made < len(estimates):
        sheet.notes.append(f"pieces: {len(estimates) - made} of {len(estimates)} estimates are not made of the blocks")


def _score_release(truth: Truth, found: Reconstruction, sheet: Sheet) -> None:
    """Add how well the released images came back, before anything is undone."""
    released = truth.release.images[: truth.yardstick.targets]
    estimates = Order(found.aligned, found.within).matched(found.images, released)
    sheet.per_image["release_psnr"] = psnr(estimates, released)
    sheet.values["release_psnr"] = float(sheet.per_image["release_psnr"].mean())
    if "ssim" in truth.yardstick.settings.groups and min(released.shape[2:]) >= SSIM_WINDOW:
        sheet.per_image["release_ssim"] = ssim(estimates, released)
        sheet.values["release_ssim"] = float(sheet.per_image["release_ssim"].mean())


def _define(sheet: Sheet, lpips: Lpips | str | None) -> None:
    """Pin what every figure means."""
    definitions: dict[str, Any] = {"ssim": SSIM_DEFINITION, "psnr": PSNR_DEFINITION,
                                   "identification": IDENTIFICATION_DEFINITION,
                                   "identification_feature": FEATURE_DEFINITION,
                                   "recognition": RECOGNITION_DEFINITION,
                                   "verification": VERIFICATION_DEFINITION}
    for name, definition in definitions.items():
        if name in sheet.values:
            sheet.texts[f"{name}_def"] = definition
    if isinstance(lpips, Lpips):
        sheet.texts["lpips_def"] = lpips.definition
    if METRICS.keys() & sheet.values.keys():
        sheet.texts["quality_def"] = quality_definition()
    if "piece_direct" in sheet.values:
        sheet.texts["piece_def"] = PUZZLE_DEFINITION

"""Scoring: the only place, beside the defense itself, that sees both a reconstruction and the private images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppbench.attack import Reconstruction
from ppbench.calibrate import UNORDERED_DRAWS, Guesses, draw_like, unordered_floor
from ppbench.codec import Tensors
from ppbench.data import Images, Split
from ppbench.defense import Pieces, Release, resize
from ppbench.judge import FEATURE_DEFINITION, RECOGNITION_DEFINITION, Judge
from ppbench.matching import assign
from ppbench.metrics import (
    IDENTIFICATION_DEFINITION,
    PSNR_DEFINITION,
    SSIM_DEFINITION,
    SSIM_WINDOW,
    identification,
    identification_unordered,
    psnr,
    ssim,
)
from ppbench.perceptual import Lpips, Net, Trunk, find_trunk
from ppbench.puzzle import PUZZLE_DEFINITION, puzzle_scores
from ppbench.seeding import spawn
from ppbench.stats import mean_interval, ratio_interval
from ppbench.suspect import flags
from ppbench.verifier import VERIFICATION_DEFINITION, Album, Verifier

PERFECT: dict[str, float] = {"ssim": 1.0, "lpips": 0.0, "identification": 1.0}


@dataclass(frozen=True)
class ScoreSettings:
    """What is measured, and how.

    Attributes:
        groups: `ssim`, `psnr`, `lpips`, `identification`, `recognition`, `verification`, `pieces`.
        lpips_trunk: LPIPS's network.
        distractors: gallery images beside the targets, or all there are.
    """

    groups: list[str]
    lpips_trunk: Net = "squeeze"
    distractors: int = 1000


@dataclass(frozen=True)
class Truth:
    """What the scorer holds a reconstruction against.

    Attributes:
        images: the split; the targets are its first private images.
        release: what was released.
        targets: how many private images are scored.
        labels_known: the adversary knows the targets' labels.
        guesses: metric -> best blind guesses.
        judge: weights of the classifier trained on public images.
        verifier: weights of the network that tells people apart.
        pieces: what the defense does to square blocks; None = it has none.
    """

    images: Split
    release: Release
    targets: int
    labels_known: bool
    guesses: Mapping[str, Guesses]
    judge: Tensors | None
    verifier: Tensors | None = None
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
    """

    values: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    per_image: Tensors = field(default_factory=dict)
    aligned: str = "true"
    shown: Tensor = field(default_factory=lambda: torch.empty(0))


def score(truth: Truth, found: Reconstruction, outer: Reconstruction | None, settings: ScoreSettings,
          rng: torch.Generator) -> Sheet:
    """Score a reconstruction, and beside each figure the floor that a blind guess reaches on the same targets.

    Args:
        truth: private images, release and what calibrates the figures.
        found: the attack's (or the chain's inner attack's) reconstruction.
        outer: in a chain, the outer attack's estimate of the released images.
        settings: what is measured.
        rng: for the bootstrap and the unordered floor.
    """
    private = truth.images.private[: truth.targets].pixels
    released = outer or (found if found.of == "released" else None)
    aligned, within = _order(truth, found, outer)
    estimates = resize(found.images, (private.shape[1], private.shape[2], private.shape[3]))
    if not aligned:
        estimates = estimates[assign(estimates, private, within)]
    lpips = _lpips(settings)
    sheet = Sheet(aligned="true" if aligned else f"within {within}" if within else "false", shown=estimates,
                  flags=flags(found, truth.release.images[: truth.targets], chained=outer is not None))
    if isinstance(lpips, str):
        sheet.notes.append(lpips)
    scorers = _scorers(truth, private, aligned, settings, lpips if isinstance(lpips, Lpips) else None)
    if "recognition" in settings.groups and not _known(truth):
        sheet.notes.append("recognition: not measured, as public images show none of the targets' classes")
    best: dict[str, Tensor] = {}
    if "verification" in settings.groups and truth.verifier is not None:
        album = _album(truth.verifier, truth)
        best["verification"] = album.plain
        scorers["verification"] = album.verified
        sheet.values["verification_plain"] = _mean("verification", album.plain)
        alone = int(album.plain.isnan().sum())
        if alone:
            sheet.notes.append(f"verification: {alone} of {truth.targets} targets have no other photo")
    floors = _floors(truth, private, aligned, within, scorers, spawn(rng), sheet)
    for name, scorer in scorers.items():
        per_image = scorer(estimates).double()
        sheet.per_image[name] = per_image
        sheet.values[name] = _mean(name, per_image)
        if name in floors:
            perfect = best.get(name, torch.full_like(per_image, PERFECT.get(name, math.nan)))
            _calibrate(sheet, name, per_image, floors[name], perfect, spawn(rng))
    if "identification" in scorers:
        others = len(truth.images.private) - truth.targets + len(truth.images.test)
        sheet.values["gallery"] = truth.targets + min(settings.distractors, others)
    _spread(sheet, spawn(rng))
    if "pieces" in settings.groups and found.images.shape == private.shape:
        _score_pieces(truth.pieces, estimates, private, sheet)
    if released is not None:
        _score_release(truth, released, settings, sheet)
    _define(sheet, settings, lpips)
    return sheet


def _order(truth: Truth, found: Reconstruction, outer: Reconstruction | None) -> tuple[bool, int | None]:
    """Say whether estimate i is of target i, all along the chain; otherwise within which batches it may stand."""
    if (found.of == "released" or outer is not None) and truth.release.source is None:
        return False, None
    links = [link for link in (outer, found) if link is not None and not link.aligned]
    if not links:
        return True, None
    widths = [link.within for link in links]
    return False, None if None in widths else max(width for width in widths if width is not None)


def _lpips(settings: ScoreSettings) -> Lpips | str | None:
    if "lpips" not in settings.groups:
        return None
    trunk = find_trunk(settings.lpips_trunk)
    return Lpips(trunk) if isinstance(trunk, Trunk) else trunk


Scorer = Callable[[Tensor], Tensor]


def _scorers(truth: Truth, private: Tensor, aligned: bool, settings: ScoreSettings,
             lpips: Lpips | None) -> dict[str, Scorer]:
    """Return, for each column, the function from aligned estimates to one score a target."""
    scorers: dict[str, Scorer] = {}
    if "ssim" in settings.groups:
        scorers["ssim"] = lambda x: ssim(x, private)
    if "psnr" in settings.groups:
        scorers["psnr"] = lambda x: psnr(x, private)
    if lpips is not None:
        distance = lpips.against(private)
        scorers["lpips"] = lambda x: distance(x).detach()
    if "identification" in settings.groups:
        retrieve = identification if aligned else identification_unordered
        gallery = _gallery(truth, settings)
        scorers["identification"] = lambda x: retrieve(x, gallery)
        if truth.judge is not None:
            judge = Judge(truth.judge)
            features = judge.features(gallery)
            scorers["identification_feature"] = lambda x: retrieve(judge.features(x), features)
    if "recognition" in settings.groups and truth.judge is not None and _known(truth):
        seer, labels = Judge(truth.judge), truth.images.private.labels[: truth.targets]
        scorers["recognition"] = lambda x: (seer.predict(x) == labels).double()
    return scorers


def _gallery(truth: Truth, settings: ScoreSettings) -> Tensor:
    """Return the targets, then the distractors: other private images and test images, none of the public ones."""
    others = torch.cat([truth.images.private.pixels[truth.targets:], truth.images.test.pixels])
    return torch.cat([truth.images.private.pixels[: truth.targets], others[: settings.distractors]])


def _known(truth: Truth) -> bool:
    """Say whether public images, from which the judge learns, show any of the targets' classes."""
    return bool(torch.isin(truth.images.private.labels[: truth.targets], truth.images.public.labels).any())


def _mean(name: str, per_image: Tensor) -> float:
    """Average over the targets; for `verification` over those that have another photo."""
    return float(per_image.nanmean() if name == "verification" else per_image.mean())


def _album(verifier: Tensors, truth: Truth) -> Album:
    """Return all photos of private people: private ones, the targets first, and test images."""
    parts = (truth.images.private, truth.images.test)
    photos = Images(*(torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "labels", "ids")))
    return Album(Verifier(verifier), photos, truth.targets)


def _floors(truth: Truth, private: Tensor, aligned: bool, within: int | None, scorers: Mapping[str, Scorer],
            rng: torch.Generator, sheet: Sheet) -> dict[str, Tensor]:
    """Score the best blind guesses on the targets by the same protocol as the attack.

    For an unordered outcome the floor is the better of two: the best blind guess, which can be returned in any
    order, and as many public images, both assigned as the estimates are.
    """
    labels = truth.images.private.labels[: truth.targets] if truth.labels_known else None
    floors: dict[str, Tensor] = {}
    for metric, guesses in truth.guesses.items():
        if metric in scorers:
            guess = guesses.knowing(labels)
            images = guess.for_targets(labels, truth.targets, truth.images.public)
            if not aligned:
                images = images[assign(images, private, within)]
            floors[metric] = scorers[metric](images).double()
            sheet.texts[f"{metric}_floor_method"] = guess.method
            if "verification" in scorers:  # a blind guess may look like somebody
                passed = scorers["verification"](images).double()
                if "verification" not in floors or _better("verification", passed, floors["verification"]):
                    floors["verification"] = passed
                    sheet.texts["verification_floor_method"] = guess.method
    # What the judge sees in a blind guess says little: its floor is public images, of the label where it is known.
    measured = [name for name in (*PERFECT, "identification_feature", "recognition", "verification")
                if name in scorers]
    floored = [name for name in measured if name not in floors or name == "verification"] if aligned else measured
    draws = _aligned_floor if aligned else unordered_floor
    drawn = draws(truth.images.public, labels, private, {name: scorers[name] for name in floored}, rng, within)
    for name, floor in drawn.items():
        if name not in floors or _better(name, floor, floors[name]):
            floors[name] = floor
            sheet.texts[f"{name}_floor_method"] = f"random public images{'' if aligned else ', assigned'}"
    return floors


def _aligned_floor(public: Images, labels: Tensor | None, targets: Tensor, scores: Mapping[str, Scorer],
                   rng: torch.Generator, within: int | None) -> dict[str, Tensor]:
    """Score public images, drawn for each target, averaged over as many draws as the unordered floor takes."""
    sums = {name: torch.zeros(len(targets), dtype=torch.float64) for name in scores}
    for _ in range(UNORDERED_DRAWS):
        drawn = draw_like(public, labels, len(targets), rng).pixels
        for name, scorer in scores.items():
            sums[name] += scorer(drawn).double()
    return {name: total / UNORDERED_DRAWS for name, total in sums.items()}


def _better(name: str, one: Tensor, other: Tensor) -> bool:
    better = _mean(name, one) > _mean(name, other)
    return better != (name == "lpips")


def _calibrate(sheet: Sheet, name: str, per_image: Tensor, floor: Tensor, perfect: Tensor,
               rng: torch.Generator) -> None:
    """Add the floor and, for metrics of which the originals' own scores are known, the leakage with its interval."""
    sheet.per_image[f"{name}_floor"] = floor
    sheet.values[f"{name}_floor"] = _mean(name, floor)
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


def _score_release(truth: Truth, found: Reconstruction, settings: ScoreSettings, sheet: Sheet) -> None:
    """Add how well the released images came back, before anything is undone."""
    released = truth.release.images[: truth.targets]
    estimates = found.images
    if not found.aligned:
        estimates = estimates[assign(estimates, released, found.within)]
    sheet.per_image["release_psnr"] = psnr(estimates, released)
    sheet.values["release_psnr"] = float(sheet.per_image["release_psnr"].mean())
    if "ssim" in settings.groups and min(released.shape[2:]) >= SSIM_WINDOW:
        sheet.per_image["release_ssim"] = ssim(estimates, released)
        sheet.values["release_ssim"] = float(sheet.per_image["release_ssim"].mean())


def _define(sheet: Sheet, settings: ScoreSettings, lpips: Lpips | str | None) -> None:
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
    if "piece_direct" in sheet.values:
        sheet.texts["piece_def"] = PUZZLE_DEFINITION

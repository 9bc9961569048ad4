"""A small data set, and the scorer's sheet of an estimate of its targets."""

import torch
from torch import Tensor

from ppbench.attack import Reconstruction
from ppbench.calibrate import Guesses, fit_guesses
from ppbench.data import Images, Split
from ppbench.defense import Pieces, Release
from ppbench.floors import floors
from ppbench.matching import Link, order_of
from ppbench.score import Sheet, Truth, score
from ppbench.scorers import ScoreSettings, Yardstick
from ppbench.seeding import generator

TARGETS = 6
GROUPS = ["ssim", "psnr", "identification"]


def images(count: int, seed: int) -> Images:
    """Smooth random colour images of three classes that differ in brightness."""
    rng = generator(seed)
    labels = torch.arange(count) % 3
    coarse = torch.rand(count, 3, 4, 4, generator=rng)
    pixels = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear") * 0.6
    return Images(pixels + 0.13 * labels[:, None, None, None], labels, torch.arange(count))


SPLIT = Split(images(10, 0), images(24, 1), images(5, 2), 3)
PRIVATE = SPLIT.private.pixels[:TARGETS]
GUESSES = {"ssim": fit_guesses("ssim", SPLIT.public, 3, generator(0)),
           "identification": fit_guesses("identification", SPLIT.public, 3, generator(1))}
RELEASE = Release(SPLIT.private.pixels, SPLIT.private.labels, torch.arange(10))


def sheet_of(found: Reconstruction, outer: Reconstruction | None = None, groups: list[str] | None = None,
             distractors: int = 1000, split: Split = SPLIT, guesses: dict[str, Guesses] | None = None,
             labels_known: bool = True, judge: dict[str, Tensor] | None = None,
             verifier: dict[str, Tensor] | None = None, release: Release = RELEASE,
             pieces: Pieces | None = None) -> Sheet:
    """Score an estimate by the scorer's protocol."""
    yardstick = Yardstick(split, TARGETS, ScoreSettings(groups or GROUPS, distractors=distractors), judge, verifier)
    order = order_of(release.source is not None, link(found), link(outer) if outer else None)
    blind = floors(yardstick, order, GUESSES if guesses is None else guesses, labels_known, generator(1))
    return score(Truth(yardstick, release, blind, order, pieces), found, outer, generator(2))


def link(found: Reconstruction) -> Link:
    """Say how an estimate stands to the targets."""
    return Link(found.of, found.aligned, found.within)

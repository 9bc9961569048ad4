"""Sets of images to be cut into pieces, solved and scored; the scored ones are never learnt from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _real import SHARED, cifar10
from PIL import Image
from torch import Tensor

from ppbench.attacks._boards import Boards, board_costs
from ppbench.attacks._seam_prior import SeamPrior
from ppbench.attacks._solving import Solver
from ppbench.attacks._states import States, states_of
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.codec import Tensors
from ppbench.data import Images
from ppbench.defense import Pieces
from ppbench.puzzle import puzzle_scores
from ppbench.seeding import generator
from ppbench.view import Sealed, View

OFF = 13  # pixels that are cut off first: no seam lies on the 8-pixel grid of a photo's JPEG file then
SCORED = 100  # photos; the others are learnt from
SCORED_BY = ("piece_direct", "piece_neighbour", "piece_largest", "piece_perfect")


@dataclass(frozen=True)
class Outcome:
    """How well a set of puzzles was solved: means over its images.

    Attributes:
        direct: Dc.
        neighbour: Nc.
        largest: component.
        perfect: share.
        below: share of boards that cost less than the truth, by the solver's own costs: the costs misled it.
        above: share that cost more: it did not find the truth.
        seconds: an image, costs and search.
    """

    direct: float
    neighbour: float
    largest: float
    perfect: float
    below: float
    above: float
    seconds: float


def missing() -> list[Path]:
    """Return the folders that are needed and not there."""
    return [folder for folder in (SHARED / "data" / name for name in ("imagenet_sample", "jigsaw_cho432"))
            if not folder.is_dir()]


def photos(first: int, last: int, off: int = OFF, side: int = 224) -> Tensor:
    """Return photographs `[n, 3, side, side]`, cut out from `off` pixels on."""
    files = sorted((SHARED / "data" / "imagenet_sample").glob("*.jpg"))[first:last]
    found = [np.asarray(Image.open(file).convert("RGB").crop((off, off, off + side, off + side))) for file in files]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def cho() -> list[Tensor]:
    """Return the 20 images of Cho et al. (2010), each `[1, 3, H, W]`, 432 pieces of 28 pixels."""
    files = sorted((SHARED / "data" / "jigsaw_cho432").glob("*.webp"))
    found = [np.asarray(Image.open(file).convert("RGB")).copy() for file in files]
    return [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in found]


def learn(public: Tensor, pieces: Pieces, steps: int) -> tuple[Solver, float, Tensors]:
    """Learn what seams look like: a solver, the seconds that took, and what `SeamPrior` found."""
    rows = torch.arange(len(public))
    view = View(Sealed(granted=frozenset({"public"}), image_shape=(3, *public.shape[2:]),
                       released_shape=(3, *public.shape[2:]), n_targets=1, classes=1,
                       public=Images(public, rows * 0, rows)))
    prior = SeamPrior(pieces.size, steps, 48, 4e-3)
    start = time.perf_counter()
    found = prior.train(view, generator(0))
    return Solver(states=states_of(pieces, 3), net=prior.load(found, 3)), time.perf_counter() - start, found


def scrambled(images: Tensor, pieces: Pieces, states: States, rng: torch.Generator) -> tuple[Tensor, Boards]:
    """Shuffle the pieces of images and put each into a state: pieces `[N, P, C, s, s]`, and the boards that undo it."""
    grid = images.shape[2] // pieces.size, images.shape[3] // pieces.size
    blocks = cut(images, pieces.size)
    order = permutations(len(blocks), blocks.shape[1], rng)
    state = torch.randint(len(states), order.shape, generator=rng)
    given = states.put(permute_rows(blocks, order), state)
    place = order.argsort(1)
    undo = states.inverse[state].gather(1, place)
    return given, Boards(place.view(-1, *grid), undo.view(-1, *grid))


def solved(solver: Solver, sets: Sequence[Tensor], pieces: Pieces) -> Outcome:
    """Scramble images `[n, C, H, W]`, set by set, solve each on its own, and score."""
    rng, own, found, seconds, count = generator(0), generator(1), [], 0.0, 0
    for images in sets:
        given, truth = scrambled(images, pieces, solver.states, rng)
        grid = truth.pieces.shape[1], truth.pieces.shape[2]
        start = time.perf_counter()
        boards = solver.each(given, grid, own)
        seconds += time.perf_counter() - start
        estimates = join(solver.laid(given, boards), images.shape[1:])
        scores = puzzle_scores(estimates, images, pieces)
        gap = torch.cat([_gap(solver, given[rows], boards[rows], truth[rows])
                         for rows in torch.arange(len(images)).split(1)])
        found.append(torch.stack([*(scores[name] for name in SCORED_BY), (gap < -0.01).double(),
                                  (gap > 0.01).double()], 1))
        count += len(images)
    return Outcome(*torch.cat(found).nanmean(0).tolist(), seconds / count)


def _gap(solver: Solver, given: Tensor, boards: Boards, truth: Boards) -> Tensor:
    """Return how much more boards cost than the truth."""
    costs = solver.costs(given)
    return board_costs(costs, solver.states, boards) - board_costs(costs, solver.states, truth)


__all__ = ["SCORED", "SCORED_BY", "Outcome", "cho", "cifar10", "learn", "missing", "photos", "scrambled", "solved"]

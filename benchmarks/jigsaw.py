"""How much of shuffled images the jigsaw solver puts together, in how long, and beside others.

    python benchmarks/jigsaw.py [--quick] [--json FILE] [--gaps PYTHON]

PYTHON is a Python in which the peer is installed (pip install git+https://github.com/nemanja-m/gaps@78f982b); without
it, its rows are left out. data/cifar10.npz must be there (leaderboards/README.md), and in the folder named by
PPBENCH_DATA (default ../shared) data/imagenet_sample and data/jigsaw_cho432.

What is scored is never learnt from: the networks learn from CIFAR-10's training half and from the photos after the
first 100. Photos are cut out from pixel 13 on, so that no seam lies on the grid of their JPEG files; one row says how
much that matters. Solvers that are compared are given the same images, and the same costs (but the peer, which has its
own), and one thread each.

The quick form takes a tenth of the images and shorter training, and leaves out what takes longest.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _puzzles import SCORED, SCORED_BY, Outcome, cho, cifar10, learn, missing, photos, scrambled, solved
from _released import released
from _table import Figure, at_least, at_most, refuse, show
from torch import Tensor

from ppbench.attacks._solver import Search
from ppbench.attacks._solving import Solver
from ppbench.attacks._states import states_of
from ppbench.blocks import cut, join
from ppbench.codec import Tensors
from ppbench.defense import Pieces
from ppbench.puzzle import puzzle_scores
from ppbench.seeding import generator

THREADS = 2
TIMES_FASTER = 20  # than the peer
MANY = 500  # pieces of an image: its set is solved once only
NEVER = 1e9  # a piece costs more: nothing is exchanged
LINEAR = Search(restarts=0, effort=0, loops=0, linear=1, weak=NEVER)
GREEDY = Search(restarts=30, effort=10**9, patience=0, loops=0, weak=NEVER)


@dataclass(frozen=True)
class Row:
    """A set of images, and what should come back of it.

    Attributes:
        name: of the set.
        pieces: how it is cut.
        images: sets of one shape each.
        public: from whose seams a network learns; None = nothing is learnt.
        direct: Dc at least.
        neighbour: Nc at least.
        perfect: share at least.
        seconds: an image, at most.
        others: how many images other solvers of our own are given.
        peers: how many the peer is given.
    """

    name: str
    pieces: Pieces
    images: Sequence[Tensor]
    public: Tensor | None
    direct: float | None = None
    neighbour: float | None = None
    perfect: float | None = None
    seconds: float | None = None
    others: int = 0
    peers: int = 0


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller form, at most 2 minutes on 2 cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--gaps", type=Path, metavar="PYTHON", help="a Python in which gaps is installed")
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    if missing():
        refuse(f"{missing()[0]} is not there: name the folder of real images in PPBENCH_DATA")
    if asked.gaps is not None:
        check_peer(asked.gaps)
    found = []
    for figure in figures(asked.quick, asked.gaps):
        found.append(figure)
        print(f"{figure.case}: {figure.figure} {figure.value:.4g}", file=sys.stderr, flush=True)
    show("What the jigsaw solver puts together", found, asked.json)


def figures(quick: bool, gaps: Path | None) -> Iterator[Figure]:
    """Measure everything."""
    for row in rows(quick):
        solver = Solver(states=states_of(row.pieces, 3))
        if row.public is not None:
            solver, seconds, found = learn(row.public, row.pieces, 150 if quick else 1500)
            yield from of_seams(row, found, seconds)
        yield from compared(row, solver, gaps)
    yield from two_images(200 if quick else 1000)
    yield from released(quick)


def of_seams(row: Row, found: Tensors, seconds: float) -> Iterator[Figure]:
    """Tell what a network learnt, of images held out."""
    for how, recall, shares in zip(("measured", "learnt"), found["recall"], found["solved"], strict=True):
        yield Figure(f"{row.name}: held-out images", f"recall as {how}", float(recall))
        yield Figure(f"{row.name}: held-out images", f"neighbour as {how}", float(shares.mean()))
    yield Figure(f"{row.name}: held-out images", "training, seconds", seconds)


def rows(quick: bool) -> Iterator[Row]:
    """List the sets."""
    etc = Pieces(16, True, "kept", True, True, True)
    test, train = cifar10("test")[0], cifar10("train")[0][5000:]
    some = 100 if quick else 1000
    train = train[:some] if quick else train
    direct, beside, perfect = (.85, .9, .7) if quick else (.9, .93, .75)  # the short training helps little
    yield Row("CIFAR-10 test, 4 px", Pieces(4, True), [test[:some]], train, direct, beside, perfect, .15, 20,
              10 if quick else 60)
    yield Row("CIFAR-10 test, 8 px", Pieces(8, True), [test[:some]], train, .98, .995, .97, .02, 20, 20)
    plain, public = photos(0, 10 if quick else SCORED), None if quick else photos(SCORED, 250)
    yield Row("photos 224, 16 px", Pieces(16, True), [plain], public, .95, .97, .75, .5, 20, 2 if quick else 10)
    if quick:
        return
    yield Row("photos 224, 14 px", Pieces(14, True), [plain], public, .92, .96, .70, 1, 20, 6)
    yield Row("photos 224, 8 px", Pieces(8, True), [plain], public, .75, .87, .35, 5, 10, 1)
    yield Row("Cho 432, 28 px", Pieces(28, True), cho(), public, .97, .97, .70, .5, 20, 2)
    yield Row("photos 224, 16 px, all EtC states", etc, [plain[:50]], None, .85, .90, None, 5)
    grid, public = photos(0, SCORED, off=16), photos(SCORED, 250, off=16)
    yield Row("photos 224, 16 px, cut on the JPEG grid", Pieces(16, True), [grid], public, .95, .97, .75, .5)


def compared(row: Row, ours: Solver, gaps: Path | None) -> Iterator[Figure]:
    """Solve a set, as learnt and as measured, and a part of it by others."""
    measured = replace(ours, net=None)
    found = solved(ours, row.images, row.pieces)
    yield from of_outcome(row, found)
    if ours.net is not None and cut(row.images[0][:1], row.pieces.size).shape[1] < MANY:
        for name, value in vars(solved(measured, row.images, row.pieces)).items():
            if name in ("direct", "neighbour", "perfect", "below", "above"):
                yield Figure(f"{row.name}: costs as measured", name, value)
    torch.set_num_threads(1)
    if row.others:
        part = first(row.images, row.others)
        mine = solved(ours, part, row.pieces)
        for name, search in (("greedy, best of 30", GREEDY), ("LP alone", LINEAR)):
            yield from beside(row, name, mine, solved(replace(ours, search=search), part, row.pieces))
    if row.peers and gaps is not None:
        part = first(row.images, row.peers)
        mine, other = solved(ours, part, row.pieces), by_gaps(gaps, part, row.pieces)
        yield from beside(row, "gaps", mine, other, peer=True)
        yield at_least(f"{row.name}: gaps, same images", "times our seconds", other.seconds / mine.seconds,
                       TIMES_FASTER)
    torch.set_num_threads(THREADS)


def first(sets: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the first so many images, of one set or of sets of one each."""
    return [images[:count] for images in sets][:count]


def of_outcome(row: Row, found: Outcome) -> Iterator[Figure]:
    """Hold an outcome to its targets."""
    for name in ("direct", "neighbour", "perfect"):
        target = getattr(row, name)
        value = getattr(found, name)
        yield Figure(row.name, name, value) if target is None else at_least(row.name, name, value, target)
    for name in ("largest", "below", "above"):
        yield Figure(row.name, name, getattr(found, name))
    yield Figure(row.name, "seconds an image", found.seconds) if row.seconds is None else \
        at_most(row.name, "seconds an image", found.seconds, row.seconds)


def beside(row: Row, name: str, mine: Outcome, other: Outcome, peer: bool = False) -> Iterator[Figure]:
    """Put another solver beside ours on the same images; ours is held to a peer."""
    for figure in ("direct", "neighbour", "perfect"):
        value, theirs = getattr(mine, figure), getattr(other, figure)
        better = theirs < value or theirs == value == 1
        yield Figure(f"{row.name}: {name}, same images", figure, theirs,
                     f"< {value:.3f}, ours, or 1" if peer else f"{value:.3f}, ours", better if peer else None)
    yield Figure(f"{row.name}: {name}, same images", "seconds an image", other.seconds, f"{mine.seconds:.3g}, ours")


def check_peer(python: Path) -> None:
    """Leave with a sentence unless a Python has the peer."""
    try:
        subprocess.run([python, "-c", "import gaps.genetic_algorithm"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        refuse(f"{python} is no Python that has gaps: see --help")


def by_gaps(python: Path, sets: Sequence[Tensor], pieces: Pieces) -> Outcome:
    """Have the peer solve the puzzles that `solved` makes of the same images."""
    rng, found, seconds = generator(0), [], []
    for images in sets:
        given, _ = scrambled(images, pieces, Solver().states, rng)
        puzzles = join(given, images.shape[1:])
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder) / "puzzles.npz", Path(folder) / "out.npz"
            np.savez(file, images=(puzzles.permute(0, 2, 3, 1) * 255).round().byte().numpy(), size=pieces.size)
            subprocess.run([python, Path(__file__).with_name("_peer.py"), file, out], check=True)
            with np.load(out, allow_pickle=False) as made:
                estimates = torch.from_numpy(made["images"]).permute(0, 3, 1, 2).float() / 255
                seconds += made["seconds"].tolist()
        scores = puzzle_scores(estimates, images, pieces)
        found.append(torch.stack([scores[name] for name in SCORED_BY], 1))
    return Outcome(*torch.cat(found).mean(0).tolist(), 0.0, 0.0, sum(seconds) / len(seconds))


def two_images(count: int) -> Iterator[Figure]:
    """Solve pairs of images that were shuffled under one key."""
    images = cifar10("test")[0][:count]
    grid = 8, 8
    right: list[Tensor] = []
    for pair in images.split(2):
        order = torch.randperm(64, generator=generator(len(right)))
        blocks = cut(pair, 4)[:, order]
        board = Solver().together(blocks, grid, generator(0)).pieces.flatten()
        estimates = join(blocks[:, board], pair.shape[1:])
        right.append(puzzle_scores(estimates, pair, Pieces(4, True))["piece_direct"])
    yield at_least("two CIFAR images under one key, 4 px", "direct", float(torch.cat(right).mean()), .99)


if __name__ == "__main__":
    main()

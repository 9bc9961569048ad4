"""Learning seams from public images that the adversary cuts up, held to what is measured without learning."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppbench.attack import Prior
from ppbench.attacks._descent import Descent, copied, descend
from ppbench.attacks._pairs import held_out, learnt
from ppbench.attacks._seam_net import SeamNet, Seams, Sides, measured_at, shortlist, sides_of
from ppbench.attacks._seams import tables
from ppbench.attacks._solver import Search
from ppbench.attacks._solving import Solver
from ppbench.attacks._states import ABOVE, BELOW, LEFT, PLAIN, RIGHT, States
from ppbench.blocks import cut, join
from ppbench.codec import Tensors, under
from ppbench.defense import Pieces
from ppbench.minibatches import shuffled_passes
from ppbench.puzzle import puzzle_scores
from ppbench.seeding import generator, seeded
from ppbench.view import View

LOOKED_AT = 8  # seams at every side of a piece
_SEAMS = 2**22  # in what is learnt from
_HELD = 2**16  # in what decides
_BATCH = 320  # sides of pieces
_PIECES = 2**13  # in the puzzles that are solved to decide
_SEARCH = Search(effort=2**16)  # for each of them
_TABLE = 2**24  # entries of the tables of all seams that are held at a time
_TABLES = 2**28  # that are worked out at all


@dataclass(frozen=True)
class Questions:
    """Which of K pieces goes on at a side of a piece? Q of them.

    Attributes:
        sides: of the pieces of all images, in half precision.
        seams: `[Q, K]` their numbers.
        measured: `[Q, K, MEASURED]`, in half precision.
        answer: `[Q]` which of the K is right.
    """

    sides: Sides
    seams: Tensor
    measured: Tensor
    answer: Tensor

    def __len__(self) -> int:
        return len(self.answer)

    def at(self, rows: Tensor) -> "tuple[Seams, Tensor]":
        """Look at some: `Seams` of their K, one after the other, and the answers."""
        return self.sides.at(self.seams[rows].flatten(), self.measured[rows].flatten(0, 1)), self.answer[rows]


@dataclass(frozen=True)
class SeamPrior(Prior):
    """Train a network to find the true neighbours of the pieces of public images.

    Attributes:
        size: side of a piece in pixels.
        steps: optimiser steps.
        width: of the network.
        rate: highest learning rate.
    """

    needs = frozenset({"public"})
    size: int
    steps: int
    width: int
    rate: float

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return weights (`net.*`), `objective`, `recall` and `solved`, of images held out; of two or more pieces.

        `recall` `[2]` is the share of sides of pieces whose true neighbour costs least, `solved` `[2, n]` the share of
        neighbours that is found when n images are put together: as measured alone, and as learnt. Without a gain in
        the former there is nothing to solve: 0.
        """
        public = view.public.pixels.cpu()
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            net = SeamNet(view.image_shape[0], self.width)
            kept = asked(public[held_out(len(public))], self.size, PLAIN, _HELD)
            lessons = asked(public[learnt(len(public))], self.size, PLAIN, _SEAMS)
            chunks = torch.arange(len(kept)).split(_BATCH)

            def judge() -> float:
                with torch.no_grad():
                    return sum(float(loss_of(net, kept.at(rows))) * len(rows) for rows in chunks) / len(kept)

            order = shuffled_passes(len(lessons), min(_BATCH, len(lessons)), self.steps, own)
            course = descend(net, (varied(lessons.at(rows), own) for rows in order),
                             lambda some: loss_of(net, some), judge, Descent(self.steps, self.rate))
            net.eval()
            recall, solved = recalls(net, kept), torch.zeros(2, 1)
            if recall[1] > recall[0]:
                some = _few(public[held_out(len(public))], self.size)
                alike = int(torch.randint(2**62, (), generator=own))
                solved = torch.stack([neighbours(some, self.size, one, generator(alike)) for one in (None, net)])
        return {"objective": torch.tensor(course.losses), "recall": recall, "solved": solved} \
            | {f"net.{name}": value for name, value in copied(net).items()}

    def load(self, found: Tensors, channels: int) -> SeamNet | None:
        """Rebuild what `train` found; None where it puts together no more than what is measured, or by chance."""
        if not helps(found["solved"]):
            return None
        with seeded(0):
            net = SeamNet(channels, self.width)
        net.load_state_dict(under(found, "net."))
        return net.eval()


def asked(images: Tensor, size: int, states: States, most: int) -> Questions:
    """Ask for the true neighbour of every piece of images `[n, C, H, W]` among those that seem best, and it.

    Args:
        images: as many as give about `most` seams are looked at.
        size: of a piece.
        states: in which neighbours may be; the true one is as it was.
        most: seams.
    """
    grid = images.shape[2] // size, images.shape[3] // size
    count = grid[0] * grid[1]
    each = max(1, min(LOOKED_AT, (count - 1) * len(states)))
    entries = 4 * count**2 * len(states)
    images = images[: max(1, min(most // (4 * count * each), _TABLES // entries))]
    asker, direction, mate = _neighbours(grid)
    found: list[tuple[Tensor, ...]] = []
    together = max(1, _TABLE // entries)
    for first in range(0, len(images), together):
        pieces = cut(images[first:first + together], size)
        measured = tables(pieces, states)
        shape = measured.logs[0].shape
        n = torch.arange(len(pieces))[:, None]
        right = ((n * 4 + direction) * count + asker) * count * len(states) + mate * len(states)
        seams = shortlist(measured.combined(), each)[:, direction, asker]
        seams[..., -1] = torch.where((seams == right[..., None]).any(-1), seams[..., -1], right)
        answer = (seams == right[..., None]).long().argmax(-1)
        costs = measured_at(seams.flatten(), measured).reshape(*seams.shape, -1)
        found.append((sides_of(pieces, states).given.half(), (seams + first * math.prod(shape[1:])).flatten(0, 1),
                      costs.half().flatten(0, 1), answer.flatten()))
    given, seams, costs, answer = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Questions(Sides(given, states), seams, costs, answer)


def _neighbours(grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """List all pairs of neighbours on a board in order, seen from either: piece, direction, neighbour, each `[Q]`."""
    places = torch.arange(grid[0] * grid[1]).view(grid)
    across, down = (places[:, :-1].flatten(), places[:, 1:].flatten()), (places[:-1].flatten(), places[1:].flatten())
    pairs = [(*across, RIGHT), (across[1], across[0], LEFT), (*down, BELOW), (down[1], down[0], ABOVE)]
    return (torch.cat([one for one, _, _ in pairs]),
            torch.cat([torch.full_like(one, way) for one, _, way in pairs]),
            torch.cat([other for _, other, _ in pairs]))


def varied(some: tuple[Seams, Tensor], rng: torch.Generator) -> tuple[Seams, Tensor]:
    """Turn all seams upside down, exchange their colours and negate them, each at random: what is right stays so."""
    seams, answer = some
    here, there = seams.here, seams.there
    if torch.rand((), generator=rng) < 0.5:
        here, there = here.flip(2), there.flip(2)
    colours = torch.randperm(here.shape[1], generator=rng)
    here, there = here[:, colours], there[:, colours]
    if torch.rand((), generator=rng) < 0.3:
        here, there = 1 - here, 1 - there
    return Seams(here, there, seams.measured), answer


def loss_of(net: SeamNet, some: tuple[Seams, Tensor]) -> Tensor:
    """Return the cross entropy of the answers."""
    seams, answer = some
    return F.cross_entropy(net(seams).view(len(answer), -1), answer)


@torch.no_grad()
def recalls(net: SeamNet, kept: Questions) -> Tensor:
    """Return the shares of questions that measured costs alone answer rightly, and with the network's, `[2]`."""
    right = torch.zeros(2)
    for rows in torch.arange(len(kept)).split(_BATCH):
        seams, answer = kept.at(rows)
        measured = seams.measured[:, :2].sum(-1)
        for which, odds in enumerate((-measured, net(seams) - measured)):  # up to what the rivals have in common
            right[which] += (odds.view(len(answer), -1).argmax(-1) == answer).sum()
    return right / len(kept)


def neighbours(images: Tensor, size: int, net: SeamNet | None, rng: torch.Generator) -> Tensor:
    """Return the share of neighbours that is found when the pieces of images `[n, C, H, W]` are shuffled: `[n]`."""
    solver, pieces = Solver(_SEARCH, net=net), cut(images, size)
    boards = solver.each(pieces, (images.shape[2] // size, images.shape[3] // size), rng)
    found = join(solver.laid(pieces, boards), (images.shape[1], images.shape[2], images.shape[3]))
    return puzzle_scores(found, images, Pieces(size, True))["piece_neighbour"].float()


def helps(solved: Tensor) -> bool:
    """Say whether the second of two rows of shares `[2, n]` is the larger by more than the standard error."""
    gain = solved[1] - solved[0]
    return len(gain) > 1 and bool(gain.mean() > gain.std() / math.sqrt(len(gain)))


def _few(images: Tensor, size: int) -> Tensor:
    """Return the first images, with about so many pieces in all, but two where there are: one might gain by chance."""
    return images[: max(2, _PIECES // (images.shape[2] // size * (images.shape[3] // size)))]

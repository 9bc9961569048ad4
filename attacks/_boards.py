"""Jigsaw boards, and what they cost."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attacks._states import BELOW, RIGHT, States


@dataclass(frozen=True)
class Boards:
    """Which piece lies where.

    Attributes:
        pieces: `[N, H, W]` int64: the number of the piece at each place.
        states: `[N, H, W]` int64: the state it is put into.
    """

    pieces: Tensor
    states: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Boards":
        return Boards(self.pieces[rows], self.states[rows])


def in_order(count: int, grid: tuple[int, int]) -> Boards:
    """Return boards that leave the pieces where and as they are."""
    pieces = torch.arange(grid[0] * grid[1]).view(1, *grid).expand(count, -1, -1)
    return Boards(pieces, torch.zeros_like(pieces))


def stacked(boards: list[Boards]) -> Boards:
    """Join sets of boards of one grid."""
    return Boards(torch.cat([some.pieces for some in boards]), torch.cat([some.states for some in boards]))


def board_costs(costs: Tensor, states: States, boards: Boards) -> Tensor:
    """Add up the costs `[N, 4, P, P, S]` of all seams of one board a puzzle: `[N]`."""
    total = torch.zeros(len(costs))
    for direction, axis in ((RIGHT, 2), (BELOW, 1)):
        size = boards.pieces.shape[axis] - 1
        (one, how), (other, how2) = (tuple(part.narrow(axis, start, size) for part in (boards.pieces, boards.states))
                                     for start in (0, 1))
        puzzle = torch.arange(len(costs))[:, None, None]
        total = total + costs[puzzle, states.face[how, direction], one, other, states.relative[how, how2]].sum((1, 2))
    return total

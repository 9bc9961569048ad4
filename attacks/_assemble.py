"""Jigsaw assembly from pairwise costs: one compiled search a puzzle, as many at a time as there are threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppbench.attacks._solver import Effort, Puzzle, solve
from ppbench.blocks import permutations

Grid = tuple[int, int]


@dataclass(frozen=True)
class Search:
    """How hard to search; costs and bonuses are in units of the (log) costs.

    Attributes:
        restarts: boards that are grown at first, each from a random piece.
        rounds: boards at most that are bred from these, one after the other.
        patience: a puzzle whose best board has not improved for so many rounds is left as it is.
        kept: boards that breed.
        near: pieces that are tried beside another; all, where none of them is free.
        contact: bonus for each neighbour that a place already has, so that holes are filled before arms grow.
        noise: what is added at most, on average, to a piece's cost when it competes for a place.
        inherit: bonus at most for a pair of pieces for each parent that has it.
        weak: a piece that costs more where it lies is exchanged for another, where that lowers the total.
        draws: a board is broken at all seams as bad as the worst of at most so many that are drawn at random.
    """

    restarts: int = 16
    rounds: int = 500
    patience: int = 200
    kept: int = 16
    near: int = 12
    contact: float = 4.0
    noise: float = 1.0
    inherit: float = 4.0
    weak: float = 0.0
    draws: int = 8

    @property
    def effort(self) -> Effort:
        """The same for compiled code."""
        return Effort(self.restarts, self.rounds, self.patience, self.kept, self.contact, self.noise, self.inherit,
                      self.weak, self.draws)


def assemble(costs: Tensor, grid: Grid, rng: torch.Generator, search: Search | None = None) -> Tensor:
    """Find boards of low total cost.

    Args:
        costs: `[N, 2, P, P]` of N puzzles: of piece j to the right of i, and below i.
        grid: (rows, columns) of the boards; rows * columns = P.
        rng: drives the search; the same state gives the same boards.
        search: how hard to try.

    Returns:
        `[N, rows, columns]` int64: the number of the piece at each place.
    """
    count, _, pieces, _ = costs.shape
    if grid[0] * grid[1] != pieces:
        raise ValueError(f"{pieces} pieces do not fill {grid[0]} x {grid[1]} places")
    if pieces == 1:
        return torch.zeros(count, 1, 1, dtype=torch.int64)
    search = search or Search()
    # Ties go to the lowest number: in the given order that would favour the identity.
    orders = permutations(count, pieces, rng)
    seeds = torch.randint(1, 2**62, (count,), generator=rng)

    def solved(one: int) -> Tensor:
        order = orders[one]
        puzzle = _puzzle(costs[one].float()[:, order][:, :, order], grid, search.near)
        return order[torch.from_numpy(solve(puzzle, search.effort, np.uint64(int(seeds[one]))))]

    return torch.stack(_in_threads(solved, range(count)))


def _in_threads(solved: Callable[[int], Tensor], puzzles: Iterable[int]) -> list[Tensor]:
    threads = torch.get_num_threads()
    if threads == 1:
        return [solved(one) for one in puzzles]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(solved, puzzles))


def _puzzle(costs: Tensor, grid: Grid, near: int) -> Puzzle:
    """Lay out costs `[2, P, P]` for compiled code, with the best few pieces in each direction of each piece."""
    rivals = torch.stack([costs[0], costs[0].T, costs[1], costs[1].T])
    rivals.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    best = rivals.topk(min(near, costs.shape[1] - 1), dim=2, largest=False).indices
    return Puzzle(costs.contiguous().numpy(), best.contiguous().numpy(), *grid)

"""Jigsaw assembly from pairwise costs: one compiled search a puzzle, as many at a time as there are threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ppbench.attacks._solver import Puzzle, Search, solve
from ppbench.blocks import permutations

Grid = tuple[int, int]


def assemble(costs: Tensor, grid: Grid, rng: torch.Generator, search: Search | None = None) -> Tensor:
    """Find boards of low total cost.

    Args:
        costs: `[N, 2, P, P]` of N puzzles: of piece j to the right of i, and below i.
        grid: (rows, columns) of the boards; rows * columns = P.
        rng: drives the search; the same state gives the same boards.
        search: how hard to try.

    Returns:
        `[N, rows, columns]` int64: the number of the piece at each place.

    Raises:
        ValueError: the pieces do not fill the grid, or a cost is not finite.
    """
    count, _, pieces, _ = costs.shape
    if grid[0] * grid[1] != pieces:
        raise ValueError(f"{pieces} pieces do not fill {grid[0]} x {grid[1]} places")
    if not costs.isfinite().all():  # compiled code would look for a best piece for ever
        raise ValueError("costs must be finite")
    if pieces == 1:
        return torch.zeros(count, 1, 1, dtype=torch.int64)
    search = search or Search()
    # Ties go to the lowest number: in the given order that would favour the identity.
    orders = permutations(count, pieces, rng)
    seeds = torch.randint(1, 2**62, (count,), generator=rng)

    def solved(one: int) -> Tensor:
        order = orders[one]
        puzzle = _puzzle(costs[one].float()[:, order][:, :, order], grid, search.near)
        return order[torch.from_numpy(solve(puzzle, search, np.uint64(int(seeds[one]))))]

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

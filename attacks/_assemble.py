"""Jigsaw assembly from seam costs: one compiled search a puzzle, as many at a time as there are threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ppbench.attacks._boards import Boards, in_order, stacked
from ppbench.attacks._repair import repaired
from ppbench.attacks._seed_boards import seed_boards
from ppbench.attacks._solver import Puzzle, Search, solve
from ppbench.attacks._states import PLAIN, States
from ppbench.blocks import permutations

Grid = tuple[int, int]


def assemble(costs: Tensor, grid: Grid, rng: torch.Generator, search: Search | None = None,
             states: States | None = None, places: Tensor | None = None) -> Boards:
    """Find boards of low total cost.

    Args:
        costs: `[N, 4, P, P, S]` of N puzzles, see `_seams`.
        grid: (rows, columns) of the boards; rows * columns = P.
        rng: drives the search; the same state gives the same boards.
        search: how hard to try.
        states: of the pieces; None = one.
        places: `[N, P, P]` what each piece costs at each place, row by row; None = nothing.

    Raises:
        ValueError: the pieces do not fill the grid, or a cost is not finite.
    """
    count, pieces = costs.shape[0], costs.shape[2]
    if grid[0] * grid[1] != pieces:
        raise ValueError(f"{pieces} pieces do not fill {grid[0]} x {grid[1]} places")
    if not all(one.isfinite().all() for one in costs):  # compiled code would look for a best piece for ever
        raise ValueError("costs must be finite")
    if pieces == 1:
        return in_order(count, grid)
    search, states = search or Search(), states or PLAIN
    near = search.near or (8 if len(states) == 1 else 12)
    # Ties go to the lowest number: in the given order that would favour the identity.
    orders = permutations(count, pieces, rng)
    seeds = torch.randint(1, 2**62, (count,), generator=rng)

    def solved(one: int) -> Boards:
        order = orders[one]
        puzzle = _puzzle(costs[one], order, grid, near, states, None if places is None else places[one][order])
        board = solve(puzzle, search, seed_boards(puzzle, search), np.uint64(int(seeds[one])))
        nodes = torch.from_numpy(repaired(puzzle, board) if search.repair else board)
        return Boards(order[nodes >> states.bits][None], (nodes & ((1 << states.bits) - 1))[None])

    return stacked(_in_threads(solved, range(count)))


def _in_threads(solved: Callable[[int], Boards], puzzles: Iterable[int]) -> list[Boards]:
    threads = torch.get_num_threads()
    if threads == 1:
        return [solved(one) for one in puzzles]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(solved, puzzles))


def _puzzle(costs: Tensor, order: Tensor, grid: Grid, near: int, states: States, places: Tensor | None) -> Puzzle:
    """Lay out costs `[4, P, P, S]` of reordered pieces for compiled code, with the best few beside each piece."""
    ordered = torch.empty(costs.shape)
    best = []
    for direction in range(4):
        ordered[direction] = costs[direction][order][:, order]
        rivals = ordered[direction].clone()
        rivals.diagonal().fill_(torch.inf)
        found = rivals.flatten(1).topk(min(near, (costs.shape[1] - 1) * len(states)), dim=1, largest=False).indices
        best.append((found // len(states)) << states.bits | found % len(states))
    face, relative, product = (table.contiguous().numpy() for table in (states.face, states.relative, states.product))
    unary = np.empty((0, 0), np.float32) if places is None else places.float().contiguous().numpy()
    return Puzzle(ordered.numpy(), torch.stack(best).numpy(), face, relative, product, states.bits, unary, *grid)

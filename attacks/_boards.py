"""What a jigsaw board costs, and how much of it is right."""

import torch
from torch import Tensor


def board_costs(costs: Tensor, boards: Tensor) -> Tensor:
    """Add up the costs `[N, 2, P, P]` of all seams on boards `[N, R, H, W]`, R a puzzle: `[N, R]`."""
    puzzle = torch.arange(len(boards))[:, None, None, None]
    across = costs[puzzle, 0, boards[..., :-1], boards[..., 1:]].sum((2, 3))
    down = costs[puzzle, 1, boards[..., :-1, :], boards[..., 1:, :]].sum((2, 3))
    return across + down


def direct_score(boards: Tensor, truth: Tensor) -> Tensor:
    """Direct comparison: the share of places `[N]` with the right piece, boards and truth `[N, H, W]`.

    Give exchangeable pieces (exact copies) one number, and they count as the same.
    """
    return (boards == truth).double().mean((1, 2))


def neighbour_score(boards: Tensor, truth: Tensor) -> Tensor:
    """Neighbour comparison: the share of the true adjacent pairs `[N]` that the boards have, wherever they lie.

    1 for a single piece. Exchangeable pieces: as in `direct_score`.
    """
    base = int(torch.maximum(boards.max(), truth.max())) + 1
    shared = [_multiset_overlap(_pairs(boards, base, axis), _pairs(truth, base, axis), base * base)
              for axis in (1, 2)]
    rows, columns = truth.shape[1:]
    seams = rows * (columns - 1) + columns * (rows - 1)
    return (shared[0] + shared[1]) / seams if seams else torch.ones(len(boards), dtype=torch.float64)


def _pairs(boards: Tensor, base: int, axis: int) -> Tensor:
    size = boards.shape[axis] - 1
    return (boards.narrow(axis, 0, size) * base + boards.narrow(axis, 1, size)).flatten(1)


def _multiset_overlap(a: Tensor, b: Tensor, values: int) -> Tensor:
    def counts(of: Tensor) -> Tensor:
        return torch.zeros(len(of), values, dtype=torch.float64).scatter_add_(1, of, torch.ones(of.shape).double())

    return torch.minimum(counts(a), counts(b)).sum(1)

"""Parts of boards to begin a jigsaw search with: what a linear program, or loops of seams, put together.

Both work on pieces in one state only.
"""

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ppbench.attacks._solver import BELOW, RIGHT, Puzzle, Search, compiled

_ROUNDS = 3  # of the linear program; the largest part is kept
_EXACT = 1e-3  # places
_BEYOND = 2  # frames high and wide
_TRIED = 4  # best neighbours of a piece of which loops are made


def seed_boards(puzzle: Puzzle, search: Search) -> np.ndarray:
    """Return the parts that were asked for, `[R, rows, columns]` of nodes, -1 = nothing."""
    found = []
    if puzzle.bits == 0 and search.linear:
        found.append(linear_seed(puzzle))
    if puzzle.bits == 0 and search.loops:
        found.append(loop_seed(puzzle))
    boards = [board for board in found if (board >= 0).any()]
    return np.stack(boards) if boards else np.empty((0, puzzle.rows, puzzle.columns), np.int64)


def linear_seed(puzzle: Puzzle) -> np.ndarray:
    """Place pieces by a linear program (Yu, Russell & Agapito, "Solving jigsaw puzzles with linear programming", 2015).

    Pieces that are each other's best neighbour of those not refuted yet, and fit well, pull each other one place apart,
    in weighted least absolute deviations; what does not end up so is refuted, and the program is solved again.
    """
    pieces = puzzle.costs.shape[1]
    costs = {way: puzzle.costs[way, :, :, 0].astype(np.float64) for way in (RIGHT, BELOW)}
    for table in costs.values():
        np.fill_diagonal(table, np.inf)
    largest = np.full((puzzle.rows, puzzle.columns), -1, np.int64)
    for _ in range(_ROUNDS):
        seams = _best(costs)
        one, other, below = seams[:, 0], seams[:, 1], seams[:, 2] == BELOW
        weight = np.exp(-np.where(below, costs[BELOW][one, other], costs[RIGHT][one, other]))
        shift = np.stack([below, ~below], 1).astype(float)
        place = np.stack([_least_absolute(seams, shift[:, axis], weight, pieces) for axis in (0, 1)])
        off = np.abs(place[:, other] - place[:, one] - shift.T).max(0, initial=0)
        found = _largest(puzzle, seams[off < _EXACT], np.round(place).astype(np.int64))
        if (found >= 0).sum() > (largest >= 0).sum():
            largest = found
        wrong = seams[off >= _EXACT]
        if len(wrong) == 0:
            break
        for way in (RIGHT, BELOW):
            i, j = wrong[wrong[:, 2] == way, :2].T
            costs[way][i, j] = np.inf
    return largest


def loop_seed(puzzle: Puzzle) -> np.ndarray:
    """Join seams that close loops of four pieces, the cheapest loops first (after Son, Hays & Cooper, ECCV 2014)."""
    pieces = puzzle.costs.shape[1]
    most = min(_TRIED, puzzle.near.shape[2])
    right, below = puzzle.near[RIGHT, :, :most], puzzle.near[BELOW, :, :most]
    beside = np.zeros((2, pieces, pieces), bool)
    for table, near in zip(beside, (right, below), strict=True):
        np.put_along_axis(table, near, True, 1)
    i, a, b = (part.ravel() for part in np.indices((pieces, most, most)))
    j, k = right[i, a], below[i, b]
    loops = []
    for c in range(most):
        last = right[k, c]
        closed = beside[1, j, last] & (last != i) & (j != k)
        one, two, three, four = i[closed], j[closed], k[closed], last[closed]
        price = (puzzle.costs[RIGHT, one, two, 0] + puzzle.costs[BELOW, one, three, 0]
                 + puzzle.costs[RIGHT, three, four, 0] + puzzle.costs[BELOW, two, four, 0])
        loops.append((price, one, two, three, four))
    price, one, two, three, four = (np.concatenate(parts) for parts in zip(*loops, strict=True))
    order = np.argsort(price, kind="stable")
    ways = np.array([RIGHT, BELOW, RIGHT, BELOW])
    seams = np.stack([np.stack([one, one, three, two], 1), np.stack([two, three, four, four], 1),
                      np.broadcast_to(ways, (len(one), 4))], 2)[order].reshape(-1, 3)
    first = np.unique(seams, axis=0, return_index=True)[1]
    return _joined(puzzle, seams[np.sort(first)])


def _best(costs: dict[int, np.ndarray]) -> np.ndarray:
    """List pieces that are each other's best neighbour, where they fit well: (piece, other, direction) `[M, 3]`."""
    found = []
    for way, table in costs.items():
        own, other = np.arange(len(table)), table.argmin(1)
        good = (table.argmin(0)[other] == own) & (table[own, other] < 0)
        found.append(np.stack([own, other, np.full(len(own), way)], 1)[good])
    return np.concatenate(found)


def _least_absolute(seams: np.ndarray, shift: np.ndarray, weight: np.ndarray, pieces: int) -> np.ndarray:
    """Return positions `[pieces]` with the least weighted sum of |difference of two pieces - shift|."""
    count = len(seams)
    row, one = np.arange(count), np.ones(count)
    step = coo_array((np.concatenate([one, -one, -one, -one, one, -one]),
                      (np.concatenate([row, row, row, row + count, row + count, row + count]),
                       np.concatenate([seams[:, 1], seams[:, 0], row + pieces,
                                       seams[:, 1], seams[:, 0], row + pieces]))),
                     shape=(2 * count, pieces + count)).tocsr()
    bound = np.concatenate([shift, -shift]).astype(float)
    found = linprog(np.concatenate([np.zeros(pieces), weight]), step, bound, method="highs",  # type: ignore[call-overload]
                    bounds=np.broadcast_to([0, np.inf], (pieces + count, 2)))
    placed: np.ndarray = np.zeros(pieces) if found.x is None else found.x[:pieces]
    return placed


def _largest(puzzle: Puzzle, seams: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Lay the largest part that seams hold together, as far as it fits into the frame; `place` `[2, P]`."""
    board = np.full((puzzle.rows, puzzle.columns), -1, np.int64)
    if len(seams) == 0:
        return board
    pieces = place.shape[1]
    graph = coo_array((np.ones(len(seams)), (seams[:, 0], seams[:, 1])), shape=(pieces, pieces))
    part = connected_components(graph, directed=False)[1]
    mine = np.flatnonzero(part == np.bincount(part).argmax())
    return _framed(board, mine, place[:, mine])


def _framed(board: np.ndarray, pieces: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Lay pieces at their places, where the frame holds most of them; of two at one place the first stays."""
    rows, columns = board.shape
    place = place - place.min(1, keepdims=True)
    taken = np.zeros(np.maximum(place.max(1) + 1, board.shape), np.int64)
    taken[place[0], place[1]] = 1
    before = np.pad(taken, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    held = before[rows:, columns:] - before[:-rows, columns:] - before[rows:, :-columns] + before[:-rows, :-columns]
    top, left = np.unravel_index(int(held.argmax()), held.shape)
    row, column = place[0] - top, place[1] - left
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    first = np.unique(np.stack([row, column])[:, inside], axis=1, return_index=True)[1]
    kept = np.flatnonzero(inside)[first]
    board[row[kept], column[kept]] = pieces[kept]
    return board


def _joined(puzzle: Puzzle, seams: np.ndarray) -> np.ndarray:
    """Join pieces along seams `[M, 3]`, in order, unless two would lie at one place (Gallagher 2012)."""
    place, part = _grouped(seams, puzzle.rows, puzzle.columns)
    board = np.full((puzzle.rows, puzzle.columns), -1, np.int64)
    largest = np.flatnonzero(part == np.bincount(part).argmax())
    return _framed(board, largest, place[:, largest]) if len(largest) > 1 else board


@compiled
def _grouped(seams, rows, columns):  # type: ignore[no-untyped-def]
    """Return places `[2, P]` and the part that each of the P pieces belongs to, after joining parts along seams.

    A part may grow to `_BEYOND` times the frame's sides, so that a wrong piece does not keep many from their place.
    """
    pieces, rows, columns = rows * columns, _BEYOND * rows, _BEYOND * columns
    place, part = np.zeros((2, pieces), np.int64), np.arange(pieces)
    first, end = np.zeros((2, pieces), np.int64), np.zeros((2, pieces), np.int64)  # places that a part covers
    following, last = np.full(pieces, -1), np.arange(pieces)  # chains of the pieces of a part, from its number on
    size, shift = np.ones(pieces, np.int64), np.zeros(2, np.int64)
    taken = np.zeros((rows, columns), np.int64)  # by which merger
    for n in range(len(seams)):
        one, other = seams[n, 0], seams[n, 1]
        stay, move = part[one], part[other]
        if stay == move:
            continue
        shift[0], shift[1] = seams[n, 2] == BELOW, seams[n, 2] == RIGHT
        shift += place[:, one] - place[:, other]
        if size[stay] < size[move]:
            stay, move = move, stay
            shift = -shift
        low = np.minimum(first[:, stay], first[:, move] + shift)
        high = np.maximum(end[:, stay], end[:, move] + shift)
        if high[0] - low[0] >= rows or high[1] - low[1] >= columns:
            continue
        piece, free = stay, True
        while piece >= 0:
            taken[place[0, piece] - low[0], place[1, piece] - low[1]] = n + 1
            piece = following[piece]
        piece = move
        while piece >= 0 and free:
            free = taken[place[0, piece] + shift[0] - low[0], place[1, piece] + shift[1] - low[1]] != n + 1
            piece = following[piece]
        if not free:
            continue
        piece = move
        while piece >= 0:
            place[:, piece] += shift
            part[piece] = stay
            piece = following[piece]
        first[:, stay], end[:, stay] = low, high
        following[last[stay]], last[stay] = move, last[move]
        size[stay] += size[move]
    return place, part

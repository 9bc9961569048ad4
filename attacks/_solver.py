"""The jigsaw search, compiled: boards grown piece by piece, bred from one another, and mended by exchanges.

A board is a `[rows, columns]` array of piece numbers. It is grown on a canvas with one place of margin on every side
of all that the frame may still come to cover; places are numbered row by row, and P, the number of pieces, stands for
"no piece". The piece that goes down next is the one that fits best at any free place beside those that lie.

All of it stands in one file, as the compiler's cache does not see changes in others. One puzzle is solved by one
thread, without the interpreter's lock. Randomness comes from a state of 64 bits (xorshift, Marsaglia 2003).

Sources: the growth and the crossover of Sholomon, David & Netanyahu, "A genetic algorithm-based solver for very large
jigsaw puzzles" (CVPR 2013); boards broken at their weak seams and grown again, as in large neighbourhood search (Shaw
1998).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

RIGHT, LEFT, BELOW, ABOVE = 0, 1, 2, 3
_NEVER = 1e30  # above every cost
_SAME = 1e-4  # costs of boards nearer than this are rounding


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, once for all processes where a folder for that can be written."""
    made: Callable[..., Any]
    try:
        made = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no such folder
        made = njit(nogil=True)(function)
    return made


class Puzzle(NamedTuple):
    """What is to be solved.

    Attributes:
        costs: `[2, P, P]` float32: of piece j to the right of piece i, and below it.
        near: `[4, P, K]` int64: for each direction and piece the pieces that fit best there.
        rows: of the board.
        columns: of the board.
    """

    costs: np.ndarray
    near: np.ndarray
    rows: int
    columns: int


class Search(NamedTuple):
    """How hard to search; costs and bonuses are in units of the (log) costs.

    Attributes:
        restarts: boards that are grown at first, each from a random piece.
        rounds: boards at most that are bred from these, one after the other.
        patience: a puzzle whose best board has not improved for so many rounds is left as it is.
        kept: boards that breed.
        near: pieces that are tried beside another; all, where none of them is free.
        contact: bonus for each neighbour that a place already has, so that holes are filled before arms grow.
        noise: what is added to a piece's cost when it competes for a place; its mean is drawn anew for a board.
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


class Canvas(NamedTuple):
    """A board as it grows, and the places where it may grow on.

    Attributes:
        piece: `[places]` int64: what lies there; P = nothing.
        taken: `[P]` bool.
        box: `[4]` int64: first and last row and column that are taken.
        price: `[places]` float64 of the best piece at an open place.
        choice: `[places]` int64, that piece.
        heap_price: a binary heap of prices.
        heap_place: the places that these were for; outdated where `price` says otherwise.
    """

    piece: np.ndarray
    taken: np.ndarray
    box: np.ndarray
    price: np.ndarray
    choice: np.ndarray
    heap_price: np.ndarray
    heap_place: np.ndarray


class Kin(NamedTuple):
    """What a board may inherit.

    Attributes:
        mates: `[2, 4, P]` int64: who lies in each direction of each piece on two other boards; P = nobody.
        bonus: for a pair of pieces, for each of the two that has it; 0 = nothing is inherited.
    """

    mates: np.ndarray
    bonus: float


@compiled
def _uniform(state):  # type: ignore[no-untyped-def]
    """Return a random number in [0, 1)."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return (x >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def _seam(costs, direction, lying, piece):  # type: ignore[no-untyped-def]
    """Return the cost of a piece in a direction from one that lies."""
    if direction == RIGHT:
        return costs[0, lying, piece]
    if direction == LEFT:
        return costs[0, piece, lying]
    if direction == BELOW:
        return costs[1, lying, piece]
    return costs[1, piece, lying]


# --- growth ----------------------------------------------------------------------------------------------------

@compiled
def _worth(puzzle, kin, around, piece, noise, state):  # type: ignore[no-untyped-def]
    """Price a piece at a place with the neighbours `around` (in whose direction RIGHT, LEFT, ... the place lies)."""
    total = 0.0
    for direction in range(4):
        lying = around[direction]
        if lying < len(puzzle.near[0]):
            total += _seam(puzzle.costs, direction, lying, piece)
            if kin.bonus > 0:
                for one in range(2):
                    if kin.mates[one, direction, lying] == piece:
                        total -= kin.bonus
    if noise > 0:
        total -= noise * np.log(_uniform(state) + 1e-12)
    return total


@compiled
def _appraise(puzzle, canvas, kin, search, place, noise, state):  # type: ignore[no-untyped-def]
    """Find the best free piece for a place, among those near its neighbours, or else among all, and note it."""
    pieces, step = len(canvas.taken), 2 * puzzle.columns + 1
    around = (canvas.piece[place - 1], canvas.piece[place + 1], canvas.piece[place - step], canvas.piece[place + step])
    best, who, touching = _NEVER, -1, 0
    for direction in range(4):
        lying = around[direction]
        if lying == pieces:
            continue
        touching += 1
        near = puzzle.near[direction, lying]
        for k in range(len(near) + (2 if kin.bonus > 0 else 0)):
            piece = near[k] if k < len(near) else kin.mates[k - len(near), direction, lying]
            if piece == pieces or canvas.taken[piece]:
                continue
            worth = _worth(puzzle, kin, around, piece, noise, state)
            if worth < best:
                best, who = worth, piece
    if who < 0:
        for piece in range(pieces):
            if canvas.taken[piece]:
                continue
            worth = _worth(puzzle, kin, around, piece, 0.0, state)
            if worth < best:
                best, who = worth, piece
    canvas.price[place] = best - search.contact * touching
    canvas.choice[place] = who


@compiled
def _push(canvas, size, place):  # type: ignore[no-untyped-def]
    """Put an open place on the heap; return the heap's new size."""
    price, at = canvas.price[place], size
    while at > 0:
        above = (at - 1) >> 1
        if canvas.heap_price[above] <= price:
            break
        canvas.heap_price[at], canvas.heap_place[at] = canvas.heap_price[above], canvas.heap_place[above]
        at = above
    canvas.heap_price[at], canvas.heap_place[at] = price, place
    return size + 1


@compiled
def _pop(canvas, size):  # type: ignore[no-untyped-def]
    """Take the cheapest off the heap; return the heap's new size."""
    size -= 1
    price, place, at = canvas.heap_price[size], canvas.heap_place[size], 0
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and canvas.heap_price[below + 1] < canvas.heap_price[below]:
            below += 1
        if canvas.heap_price[below] >= price:
            break
        canvas.heap_price[at], canvas.heap_place[at] = canvas.heap_price[below], canvas.heap_place[below]
        at = below
    canvas.heap_price[at], canvas.heap_place[at] = price, place
    return size


@compiled
def _fits(puzzle, box, row, column):  # type: ignore[no-untyped-def]
    """Say whether a place leaves the board within its frame."""
    return (max(row, box[1]) - min(row, box[0]) < puzzle.rows
            and max(column, box[3]) - min(column, box[2]) < puzzle.columns)


@compiled
def _lay(canvas, step, place, piece):  # type: ignore[no-untyped-def]
    row, column = place // step, place % step
    canvas.piece[place] = piece
    canvas.taken[piece] = True
    canvas.box[0], canvas.box[1] = min(canvas.box[0], row), max(canvas.box[1], row)
    canvas.box[2], canvas.box[3] = min(canvas.box[2], column), max(canvas.box[3], column)


@compiled
def _grow(puzzle, canvas, kin, search, left, noise, state):  # type: ignore[no-untyped-def]
    """Put down the `left` pieces that are still free."""
    pieces, step = len(canvas.taken), 2 * puzzle.columns + 1
    size = 0
    for row in range(canvas.box[0] - 1, canvas.box[1] + 2):
        for column in range(canvas.box[2] - 1, canvas.box[3] + 2):
            place = row * step + column
            if canvas.piece[place] < pieces or not _fits(puzzle, canvas.box, row, column):
                continue
            if (canvas.piece[place - 1] < pieces or canvas.piece[place + 1] < pieces
                    or canvas.piece[place - step] < pieces or canvas.piece[place + step] < pieces):
                _appraise(puzzle, canvas, kin, search, place, noise, state)
                size = _push(canvas, size, place)
    while left > 0:
        price, place = canvas.heap_price[0], canvas.heap_place[0]
        size = _pop(canvas, size)
        if (canvas.piece[place] < pieces or price != canvas.price[place]
                or not _fits(puzzle, canvas.box, place // step, place % step)):
            continue
        if canvas.taken[canvas.choice[place]]:
            _appraise(puzzle, canvas, kin, search, place, noise, state)
            size = _push(canvas, size, place)
            continue
        _lay(canvas, step, place, canvas.choice[place])
        left -= 1
        for beside in (place - 1, place + 1, place - step, place + step):
            if canvas.piece[beside] == pieces and _fits(puzzle, canvas.box, beside // step, beside % step):
                _appraise(puzzle, canvas, kin, search, beside, noise, state)
                size = _push(canvas, size, beside)


# --- boards ----------------------------------------------------------------------------------------------------

@compiled
def _cost(costs, board):  # type: ignore[no-untyped-def]
    """Add up the seams of a board."""
    total = 0.0
    for row in range(board.shape[0]):
        for column in range(board.shape[1]):
            if column + 1 < board.shape[1]:
                total += costs[0, board[row, column], board[row, column + 1]]
            if row + 1 < board.shape[0]:
                total += costs[1, board[row, column], board[row + 1, column]]
    return total


@compiled
def _around(costs, board, row, column, piece):  # type: ignore[no-untyped-def]
    """Return what a piece would cost at a place, its neighbours staying."""
    total = 0.0
    if column > 0:
        total += costs[0, board[row, column - 1], piece]
    if column + 1 < board.shape[1]:
        total += costs[0, piece, board[row, column + 1]]
    if row > 0:
        total += costs[1, board[row - 1, column], piece]
    if row + 1 < board.shape[0]:
        total += costs[1, piece, board[row + 1, column]]
    return total


@compiled
def _both(costs, board, row, column, row2, column2):  # type: ignore[no-untyped-def]
    """Return what two places cost, a seam between them counted once."""
    total = (_around(costs, board, row, column, board[row, column])
             + _around(costs, board, row2, column2, board[row2, column2]))
    if row == row2 and abs(column - column2) == 1:
        total -= costs[0, board[row, min(column, column2)], board[row, max(column, column2)]]
    if column == column2 and abs(row - row2) == 1:
        total -= costs[1, board[min(row, row2), column], board[max(row, row2), column]]
    return total


@compiled
def _exchange(costs, board, weak):  # type: ignore[no-untyped-def]
    """Exchange every piece that costs more than `weak` where it lies with the one that gains most, while one does."""
    rows, columns = board.shape
    for row in range(rows):
        for column in range(columns):
            while _around(costs, board, row, column, board[row, column]) > weak:
                here, best, row_, column_ = board[row, column], -_SAME, -1, -1
                before = _around(costs, board, row, column, here)
                for row2 in range(rows):
                    for column2 in range(columns):
                        there = board[row2, column2]
                        if there == here:
                            continue
                        if abs(row - row2) + abs(column - column2) == 1:
                            change = -_both(costs, board, row, column, row2, column2)
                            board[row, column], board[row2, column2] = there, here
                            change += _both(costs, board, row, column, row2, column2)
                            board[row, column], board[row2, column2] = here, there
                        else:
                            change = (_around(costs, board, row, column, there) - before
                                    + _around(costs, board, row2, column2, here)
                                    - _around(costs, board, row2, column2, there))
                        if change < best:
                            best, row_, column_ = change, row2, column2
                if row_ < 0:
                    break
                board[row, column], board[row_, column_] = board[row_, column_], here


@compiled
def _relate(board, mates):  # type: ignore[no-untyped-def]
    """Note who lies beside whom: `mates` `[4, P]`."""
    rows, columns = board.shape
    nobody = rows * columns
    for row in range(rows):
        for column in range(columns):
            piece = board[row, column]
            mates[RIGHT, piece] = board[row, column + 1] if column + 1 < columns else nobody
            mates[LEFT, piece] = board[row, column - 1] if column > 0 else nobody
            mates[BELOW, piece] = board[row + 1, column] if row + 1 < rows else nobody
            mates[ABOVE, piece] = board[row - 1, column] if row > 0 else nobody


# --- search ----------------------------------------------------------------------------------------------------

@compiled
def _keep(boards, prices, mates, count, board, price):  # type: ignore[no-untyped-def]
    """Sort a board in among the best, unless one of them costs the same; return how many there are now."""
    for k in range(count):
        if abs(prices[k] - price) < _SAME:
            return count
    if count == len(prices):
        if price >= prices[count - 1]:
            return count
        count -= 1
    at = count
    while at > 0 and prices[at - 1] > price:
        prices[at], boards[at], mates[at] = prices[at - 1], boards[at - 1], mates[at - 1]
        at -= 1
    prices[at], boards[at] = price, board
    _relate(board, mates[at])
    return count + 1


@compiled
def _hold(puzzle, board, other, shared, limit, seed, held):  # type: ignore[no-untyped-def]
    """Mark the part of a board that hangs together from a place on; return its number of pieces.

    Args:
        puzzle: its costs.
        board: what is broken.
        other: `[4, P]` who lies beside whom on another board.
        shared: only seams that the other board has as well hold.
        limit: seams above this cost do not hold.
        seed: the place.
        held: `[P]` bool, filled in by place.
    """
    rows, columns = board.shape
    held[:] = False
    stack = np.empty(rows * columns, np.int64)
    stack[0], top, count = seed, 1, 0
    held[seed] = True
    while top > 0:
        top -= 1
        count += 1
        row, column = stack[top] // columns, stack[top] % columns
        piece = board[row, column]
        for direction, (down, across) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
            row2, column2 = row + down, column + across
            if row2 < 0 or row2 >= rows or column2 < 0 or column2 >= columns or held[row2 * columns + column2]:
                continue
            beside = board[row2, column2]
            if _seam(puzzle.costs, direction, piece, beside) >= limit or (shared and other[direction, piece] != beside):
                continue
            held[row2 * columns + column2] = True
            stack[top] = row2 * columns + column2
            top += 1
    return count


@compiled
def _some_seam(costs, board, draws, state):  # type: ignore[no-untyped-def]
    """Return the cost of the worst of a few seams of a board, drawn at random."""
    rows, columns = board.shape
    across, down = rows * (columns - 1), (rows - 1) * columns
    worst = -_NEVER
    for _ in range(draws):
        seam = int(_uniform(state) * (across + down))
        if seam < across:
            row, column = seam // (columns - 1), seam % (columns - 1)
            worst = max(worst, costs[0, board[row, column], board[row, column + 1]])
        else:
            row, column = (seam - across) // columns, (seam - across) % columns
            worst = max(worst, costs[1, board[row, column], board[row + 1, column]])
    return worst


@compiled
def _clear(canvas):  # type: ignore[no-untyped-def]
    canvas.piece[:] = len(canvas.taken)
    canvas.taken[:] = False
    canvas.box[0] = canvas.box[2] = len(canvas.piece)
    canvas.box[1] = canvas.box[3] = -1


@compiled
def _plant(puzzle, canvas, board, held):  # type: ignore[no-untyped-def]
    """Lay what is held of a board on the empty canvas, its first row and column where they leave room on all sides."""
    rows, columns = board.shape
    step, top, left = 2 * columns + 1, rows, columns
    for place in range(rows * columns):
        if held[place]:
            top, left = min(top, place // columns), min(left, place % columns)
    _clear(canvas)
    for place in range(rows * columns):
        if held[place]:
            row, column = place // columns, place % columns
            _lay(canvas, step, (rows + row - top) * step + columns + column - left, board[row, column])


@compiled
def _read(canvas, board):  # type: ignore[no-untyped-def]
    """Copy the grown board off the canvas."""
    rows, columns = board.shape
    for row in range(rows):
        for column in range(columns):
            board[row, column] = canvas.piece[(canvas.box[0] + row) * (2 * columns + 1) + canvas.box[2] + column]


@compiled
def solve(puzzle, search, seed):  # type: ignore[no-untyped-def]
    """Return the best board found `[rows, columns]`.

    Args:
        puzzle: `Puzzle` of two or more pieces.
        search: how hard to try.
        seed: uint64 above 0.
    """
    rows, columns = puzzle.rows, puzzle.columns
    pieces, places = rows * columns, (2 * rows + 1) * (2 * columns + 1)
    state = np.empty(1, np.uint64)
    state[0] = seed
    heap = 8 * (places + pieces)
    canvas = Canvas(np.empty(places, np.int64), np.empty(pieces, np.bool_), np.empty(4, np.int64), np.empty(places),
                    np.empty(places, np.int64), np.empty(heap), np.empty(heap, np.int64))
    boards, prices = np.empty((search.kept, rows, columns), np.int64), np.empty(search.kept)
    mates = np.empty((search.kept, 4, pieces), np.int64)
    pair, held = np.empty((2, 4, pieces), np.int64), np.empty(pieces, np.bool_)
    board = np.empty((rows, columns), np.int64)
    count = 0
    for start in range(search.restarts):
        _clear(canvas)
        _lay(canvas, 2 * columns + 1, rows * (2 * columns + 1) + columns, int(_uniform(state) * pieces))
        _grow(puzzle, canvas, Kin(pair, 0.0), search, pieces - 1, 0.5 * search.noise * (start > 0), state)
        _read(canvas, board)
        _exchange(puzzle.costs, board, search.weak)
        count = _keep(boards, prices, mates, count, board, _cost(puzzle.costs, board))
    idle = 0
    for _ in range(search.rounds):
        if idle >= search.patience:
            break
        idle += 1
        one, other = int(_uniform(state)**2 * count), int(_uniform(state) * count)
        pair[0], pair[1] = mates[one], mates[other]
        limit = _some_seam(puzzle.costs, boards[one], 1 + int(_uniform(state) * search.draws), state)
        shared = one != other and _uniform(state) < 0.5
        holding = _hold(puzzle, boards[one], mates[other], shared, limit, int(_uniform(state) * pieces), held)
        if holding == pieces:
            continue
        _plant(puzzle, canvas, boards[one], held)
        kin = Kin(pair, search.inherit * _uniform(state))
        noise = -search.noise * np.log(_uniform(state) + 1e-12)
        _grow(puzzle, canvas, kin, search, pieces - holding, noise, state)
        _read(canvas, board)
        _exchange(puzzle.costs, board, search.weak)
        price, before = _cost(puzzle.costs, board), prices[0]
        count = _keep(boards, prices, mates, count, board, price)
        if prices[0] < before - _SAME:
            idle = 0
    return boards[0]

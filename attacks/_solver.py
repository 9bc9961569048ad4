"""The jigsaw search, compiled: boards grown piece by piece, bred from one another, and mended by exchanges.

A piece may lie in several states: turned and mirrored, negated, recoloured; a piece in a state is a node, written
`piece << bits | state`. Costs are told in the frame of a piece as it was given: of another one beside it, in a state
relative to its own. So a board and the same board turned, negated or recoloured as a whole cost the same.

A board is a `[rows, columns]` array of nodes. It is grown on a canvas with one place of margin on every side of all
that the frame may still come to cover; places are numbered row by row, and -1 stands for "nothing". The piece that
goes down next is the one that fits best at any free place beside those that lie.

All of it stands in one file, as the compiler's cache does not see changes in others. One puzzle is solved by one
thread, without the interpreter's lock. Randomness comes from a state of 64 bits (xorshift, Marsaglia 2003).

Sources: the growth and the crossover of Sholomon, David & Netanyahu, "A genetic algorithm-based solver for very large
jigsaw puzzles" (CVPR 2013); boards broken at their weak seams and grown again, as in large neighbourhood search (Shaw
1998); annealing after Kirkpatrick, Gelatt & Vecchi (1983).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

RIGHT, LEFT, BELOW, ABOVE = 0, 1, 2, 3
_NEVER = 1e30  # above every cost
_SAME = 1e-4  # costs of boards nearer than this are rounding
_RESTATED = 0.5  # share of what annealing tries that changes a state, if there are some


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, once for all processes where a folder for that can be written."""
    made: Callable[..., Any]
    try:
        made = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no such folder
        made = njit(nogil=True)(function)
    return made


class Puzzle(NamedTuple):
    """What is to be solved; P pieces in S states.

    Attributes:
        costs: `[4, P, P, S]` float32: of piece j in relative state r in a direction from piece i.
        near: `[4, P, K]` int64: for each direction and piece the relative nodes that fit best there.
        face: `[S, 4]` int64: which of its own directions a piece in a state turns to each direction of the board.
        relative: `[S, S]` int64: the state of the second as seen from a piece in the first.
        product: `[S, S]` int64: the second state seen from a piece in the first, on the board.
        bits: of a node, that tell the state.
        unary: `[P, rows * columns]` float32: what a piece costs at each place of the board; empty = nothing.
        rows: of the board.
        columns: of the board.
    """

    costs: np.ndarray
    near: np.ndarray
    face: np.ndarray
    relative: np.ndarray
    product: np.ndarray
    bits: int
    unary: np.ndarray
    rows: int
    columns: int


class Search(NamedTuple):
    """How hard to search; costs and bonuses are in units of the (log) costs.

    Attributes:
        restarts: boards that are grown at first, each from a random piece.
        effort: pieces laid at most, on all boards; restarts that go beyond it are left out, but for the first.
        patience: a puzzle whose best board has not improved for so many rounds of breeding is left as it is.
        kept: boards that breed.
        near: pieces that are tried beside another; all, where none of them is free. 0 = 8, or 12 where pieces have
            states, as these hide the right one among more.
        contact: bonus for each neighbour that a place already has, so that holes are filled before arms grow.
        noise: what is added to a piece's cost when it competes for a place; its mean is drawn anew for a board.
        inherit: bonus at most for a pair of pieces for each parent that has it.
        weak: a piece that costs more where it lies is exchanged for another, where that lowers the total; of boards
            that are bred, only on those that are among the best already.
        draws: a board is broken at all seams as bad as the worst of at most so many that are drawn at random.
        anneal: exchanges, or new states, that are tried for each piece of the best board at the end, as it cools;
            0 = none.
        heat: temperature at which that begins.
        linear: grow the largest part that a linear program puts together as well (`_seed_boards`); 1 = yes.
        loops: grow the largest part that is held together by loops of four seams as well (`_seed_boards`); 1 = yes.
        repair: reassign pieces over half of all places at a time at the end (`_repair`); 1 = yes.
    """

    restarts: int = 16
    effort: int = 200_000
    patience: int = 300
    kept: int = 16
    near: int = 0
    contact: float = 4.0
    noise: float = 1.0
    inherit: float = 4.0
    weak: float = 0.0
    draws: int = 8
    anneal: int = 0
    heat: float = 2.0
    linear: int = 0
    loops: int = 1
    repair: int = 0


class Canvas(NamedTuple):
    """A board as it grows, and the places where it may grow on.

    Attributes:
        node: `[places]` int64: what lies there; -1 = nothing.
        taken: `[P]` bool.
        box: `[4]` int64: first and last row and column that are taken.
        price: `[places]` float64 of the best node at an open place.
        choice: `[places]` int64, that node.
        heap_price: a binary heap of prices.
        heap_place: the places that these were for; outdated where `price` says otherwise.
    """

    node: np.ndarray
    taken: np.ndarray
    box: np.ndarray
    price: np.ndarray
    choice: np.ndarray
    heap_price: np.ndarray
    heap_place: np.ndarray


class Kin(NamedTuple):
    """What a board may inherit.

    Attributes:
        mates: `[2, 4, P]` int64: the relative node in each direction of each piece on two other boards; -1 = nobody.
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
def _seam(puzzle, direction, lying, node):  # type: ignore[no-untyped-def]
    """Return the cost of a node in a direction of the board from one that lies."""
    mask = (1 << puzzle.bits) - 1
    one, other = lying & mask, node & mask
    return puzzle.costs[puzzle.face[one, direction], lying >> puzzle.bits, node >> puzzle.bits,
                        puzzle.relative[one, other]]


@compiled
def _seen(puzzle, lying, node):  # type: ignore[no-untyped-def]
    """Return a node of the board as seen from another one."""
    mask = (1 << puzzle.bits) - 1
    return (node >> puzzle.bits) << puzzle.bits | puzzle.relative[lying & mask, node & mask]


@compiled
def _placed(puzzle, lying, seen):  # type: ignore[no-untyped-def]
    """Return what is seen from a node as a node of the board."""
    mask = (1 << puzzle.bits) - 1
    return (seen >> puzzle.bits) << puzzle.bits | puzzle.product[lying & mask, seen & mask]


# --- growth ----------------------------------------------------------------------------------------------------

@compiled
def _worth(puzzle, kin, around, node, noise, state):  # type: ignore[no-untyped-def]
    """Price a node at a place with the neighbours `around` (in whose direction RIGHT, LEFT, ... the place lies)."""
    total = 0.0
    for direction in range(4):
        lying = around[direction]
        if lying < 0:
            continue
        total += _seam(puzzle, direction, lying, node)
        if kin.bonus > 0:
            face = puzzle.face[lying & ((1 << puzzle.bits) - 1), direction]
            seen = _seen(puzzle, lying, node)
            for one in range(2):
                if kin.mates[one, face, lying >> puzzle.bits] == seen:
                    total -= kin.bonus
    if noise > 0:
        total -= noise * np.log(_uniform(state) + 1e-12)
    return total


@compiled
def _appraise(puzzle, canvas, kin, search, place, noise, state):  # type: ignore[no-untyped-def]
    """Find the best free node for a place, among those near its neighbours, or else among all, and note it."""
    step = 2 * puzzle.columns + 1
    around = (canvas.node[place - 1], canvas.node[place + 1], canvas.node[place - step], canvas.node[place + step])
    best, who, touching = _NEVER, -1, 0
    for direction in range(4):
        lying = around[direction]
        if lying < 0:
            continue
        touching += 1
        face = puzzle.face[lying & ((1 << puzzle.bits) - 1), direction]
        near = puzzle.near[face, lying >> puzzle.bits]
        for k in range(len(near) + (2 if kin.bonus > 0 else 0)):
            seen = near[k] if k < len(near) else kin.mates[k - len(near), face, lying >> puzzle.bits]
            if seen < 0 or canvas.taken[seen >> puzzle.bits]:
                continue
            node = _placed(puzzle, lying, seen)
            worth = _worth(puzzle, kin, around, node, noise, state)
            if worth < best:
                best, who = worth, node
    if who < 0:
        for piece in range(len(canvas.taken)):
            if canvas.taken[piece]:
                continue
            for turn in range(len(puzzle.face)):
                node = piece << puzzle.bits | turn
                worth = _worth(puzzle, kin, around, node, 0.0, state)
                if worth < best:
                    best, who = worth, node
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
def _lay(puzzle, canvas, step, place, node):  # type: ignore[no-untyped-def]
    row, column = place // step, place % step
    canvas.node[place] = node
    canvas.taken[node >> puzzle.bits] = True
    canvas.box[0], canvas.box[1] = min(canvas.box[0], row), max(canvas.box[1], row)
    canvas.box[2], canvas.box[3] = min(canvas.box[2], column), max(canvas.box[3], column)


@compiled
def _grow(puzzle, canvas, kin, search, left, noise, state):  # type: ignore[no-untyped-def]
    """Put down the `left` pieces that are still free."""
    step = 2 * puzzle.columns + 1
    size = 0
    for row in range(canvas.box[0] - 1, canvas.box[1] + 2):
        for column in range(canvas.box[2] - 1, canvas.box[3] + 2):
            place = row * step + column
            if canvas.node[place] >= 0 or not _fits(puzzle, canvas.box, row, column):
                continue
            if (canvas.node[place - 1] >= 0 or canvas.node[place + 1] >= 0
                    or canvas.node[place - step] >= 0 or canvas.node[place + step] >= 0):
                _appraise(puzzle, canvas, kin, search, place, noise, state)
                size = _push(canvas, size, place)
    while left > 0:
        price, place = canvas.heap_price[0], canvas.heap_place[0]
        size = _pop(canvas, size)
        if (canvas.node[place] >= 0 or price != canvas.price[place]
                or not _fits(puzzle, canvas.box, place // step, place % step)):
            continue
        if canvas.taken[canvas.choice[place] >> puzzle.bits]:
            _appraise(puzzle, canvas, kin, search, place, noise, state)
            size = _push(canvas, size, place)
            continue
        _lay(puzzle, canvas, step, place, canvas.choice[place])
        left -= 1
        for beside in (place - 1, place + 1, place - step, place + step):
            if canvas.node[beside] < 0 and _fits(puzzle, canvas.box, beside // step, beside % step):
                _appraise(puzzle, canvas, kin, search, beside, noise, state)
                size = _push(canvas, size, beside)


# --- boards ----------------------------------------------------------------------------------------------------

@compiled
def _place_cost(puzzle, node, place):  # type: ignore[no-untyped-def]
    """Return what a node costs at a place of the board on its own account."""
    return puzzle.unary[node >> puzzle.bits, place] if len(puzzle.unary) else 0.0


@compiled
def board_cost(puzzle, board):  # type: ignore[no-untyped-def]
    """Add up what a board costs: its seams, and its places."""
    total = 0.0
    for row in range(board.shape[0]):
        for column in range(board.shape[1]):
            if column + 1 < board.shape[1]:
                total += _seam(puzzle, RIGHT, board[row, column], board[row, column + 1])
            if row + 1 < board.shape[0]:
                total += _seam(puzzle, BELOW, board[row, column], board[row + 1, column])
            total += _place_cost(puzzle, board[row, column], row * board.shape[1] + column)
    return total


@compiled
def _around(puzzle, board, row, column, node):  # type: ignore[no-untyped-def]
    """Return what a node would cost at a place, its neighbours staying."""
    total = _place_cost(puzzle, node, row * board.shape[1] + column)
    if column > 0:
        total += _seam(puzzle, RIGHT, board[row, column - 1], node)
    if column + 1 < board.shape[1]:
        total += _seam(puzzle, LEFT, board[row, column + 1], node)
    if row > 0:
        total += _seam(puzzle, BELOW, board[row - 1, column], node)
    if row + 1 < board.shape[0]:
        total += _seam(puzzle, ABOVE, board[row + 1, column], node)
    return total


@compiled
def _both(puzzle, board, row, column, row2, column2):  # type: ignore[no-untyped-def]
    """Return what two places cost, a seam between them counted once."""
    total = (_around(puzzle, board, row, column, board[row, column])
             + _around(puzzle, board, row2, column2, board[row2, column2]))
    if row == row2 and abs(column - column2) == 1:
        total -= _seam(puzzle, RIGHT, board[row, min(column, column2)], board[row, max(column, column2)])
    if column == column2 and abs(row - row2) == 1:
        total -= _seam(puzzle, BELOW, board[min(row, row2), column], board[max(row, row2), column])
    return total


@compiled
def _gain(puzzle, board, row, column, row2, column2):  # type: ignore[no-untyped-def]
    """Return by how much the total changes if two places exchange what lies there; the board is left as it was."""
    here, there = board[row, column], board[row2, column2]
    if abs(row - row2) + abs(column - column2) > 1:
        return (_around(puzzle, board, row, column, there) - _around(puzzle, board, row, column, here)
                + _around(puzzle, board, row2, column2, here) - _around(puzzle, board, row2, column2, there))
    change = -_both(puzzle, board, row, column, row2, column2)
    board[row, column], board[row2, column2] = there, here
    change += _both(puzzle, board, row, column, row2, column2)
    board[row, column], board[row2, column2] = here, there
    return change


@compiled
def _rivals(puzzle, board, where, row, column, found):  # type: ignore[no-untyped-def]
    """List the places with which a place may gain by an exchange; return their number.

    Those of the pieces that fit beside its neighbours, and those beside which its own piece fits.
    """
    rows, columns = board.shape
    here, count = board[row, column], 0
    for direction, (down, across) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        row2, column2 = row - down, column - across  # in whose direction the place lies
        if 0 <= row2 < rows and 0 <= column2 < columns:
            lying = board[row2, column2]
            face = puzzle.face[lying & ((1 << puzzle.bits) - 1), direction]
            for seen in puzzle.near[face, lying >> puzzle.bits]:
                found[count] = where[seen >> puzzle.bits]
                count += 1
        face = puzzle.face[here & ((1 << puzzle.bits) - 1), direction]
        for seen in puzzle.near[face, here >> puzzle.bits]:
            at = where[seen >> puzzle.bits]
            row3, column3 = at // columns - down, at % columns - across
            if 0 <= row3 < rows and 0 <= column3 < columns:
                found[count] = row3 * columns + column3
                count += 1
    return count


@compiled
def _locate(puzzle, board, where):  # type: ignore[no-untyped-def]
    """Note the place of every piece."""
    for row in range(board.shape[0]):
        for column in range(board.shape[1]):
            where[board[row, column] >> puzzle.bits] = row * board.shape[1] + column


@compiled
def _swap(puzzle, board, where, row, column, row2, column2):  # type: ignore[no-untyped-def]
    board[row, column], board[row2, column2] = board[row2, column2], board[row, column]
    where[board[row, column] >> puzzle.bits] = row * board.shape[1] + column
    where[board[row2, column2] >> puzzle.bits] = row2 * board.shape[1] + column2


@compiled
def _restate(puzzle, board, row, column):  # type: ignore[no-untyped-def]
    """Put the piece at a place into the state that costs least there."""
    here = board[row, column]
    best = _around(puzzle, board, row, column, here) - _SAME
    for turn in range(len(puzzle.face)):
        node = here >> puzzle.bits << puzzle.bits | turn
        cost = _around(puzzle, board, row, column, node)
        if cost < best:
            best, board[row, column] = cost, node


@compiled
def _exchange(puzzle, board, weak, where, found):  # type: ignore[no-untyped-def]
    """Exchange every piece that costs more than `weak` where it lies with the one that gains most, while one does."""
    rows, columns = board.shape
    _locate(puzzle, board, where)
    for row in range(rows):
        for column in range(columns):
            while _around(puzzle, board, row, column, board[row, column]) > weak:
                if len(puzzle.face) > 1:
                    _restate(puzzle, board, row, column)
                best, to = -_SAME, -1
                for k in range(_rivals(puzzle, board, where, row, column, found)):
                    if found[k] != row * columns + column:
                        change = _gain(puzzle, board, row, column, found[k] // columns, found[k] % columns)
                        if change < best:
                            best, to = change, found[k]
                if to < 0:
                    break
                _swap(puzzle, board, where, row, column, to // columns, to % columns)


@compiled
def _restate_at_random(puzzle, board, row, column, limit, state):  # type: ignore[no-untyped-def]
    """Put the piece at a place into a random state, unless that costs `limit` or more; return by how much it did."""
    here = board[row, column]
    node = here >> puzzle.bits << puzzle.bits | int(_uniform(state) * len(puzzle.face))
    change = _around(puzzle, board, row, column, node) - _around(puzzle, board, row, column, here)
    if change >= limit:
        return 0.0
    board[row, column] = node
    return change


@compiled
def _swap_at_random(puzzle, board, where, row, column, limit, found, state):  # type: ignore[no-untyped-def]
    """Exchange a place with a random rival, unless that costs `limit` or more; return by how much it did."""
    count = _rivals(puzzle, board, where, row, column, found)
    to = found[int(_uniform(state) * count)] if count else row * board.shape[1] + column
    row2, column2 = to // board.shape[1], to % board.shape[1]
    if row == row2 and column == column2:
        return 0.0
    change = _gain(puzzle, board, row, column, row2, column2)
    if change >= limit:
        return 0.0
    _swap(puzzle, board, where, row, column, row2, column2)
    return change


@compiled
def _anneal(puzzle, board, sweeps, heat, where, found, state):  # type: ignore[no-untyped-def]
    """Exchange places and change states at random, ever more seldom where that costs; leave the cheapest board seen."""
    rows, columns = board.shape
    best, total, least = board.copy(), 0.0, -_SAME
    _locate(puzzle, board, where)
    trials = sweeps * rows * columns
    for trial in range(trials):
        at = int(_uniform(state) * rows * columns)
        limit = -heat * (1 - trial / trials) * np.log(_uniform(state) + 1e-12)
        if len(puzzle.face) > 1 and _uniform(state) < _RESTATED:
            total += _restate_at_random(puzzle, board, at // columns, at % columns, limit, state)
        else:
            total += _swap_at_random(puzzle, board, where, at // columns, at % columns, limit, found, state)
        if total < least:
            best[:], least = board, total
    board[:] = best


@compiled
def _relate(puzzle, board, mates):  # type: ignore[no-untyped-def]
    """Note who lies beside whom, in each piece's own directions: `mates` `[4, P]`."""
    rows, columns = board.shape
    mates[:] = -1
    for row in range(rows):
        for column in range(columns):
            node = board[row, column]
            for direction, (down, across) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
                row2, column2 = row + down, column + across
                if 0 <= row2 < rows and 0 <= column2 < columns:
                    face = puzzle.face[node & ((1 << puzzle.bits) - 1), direction]
                    mates[face, node >> puzzle.bits] = _seen(puzzle, node, board[row2, column2])


# --- search ----------------------------------------------------------------------------------------------------

@compiled
def _known(prices, count, price):  # type: ignore[no-untyped-def]
    """Say whether one of the best boards costs just as much: then it is the same one, most likely."""
    return count > 0 and np.abs(prices[:count] - price).min() < _SAME


@compiled
def _keep(puzzle, boards, prices, mates, count, board, price):  # type: ignore[no-untyped-def]
    """Sort a board in among the best, unless one of them costs the same; return how many there are now."""
    if _known(prices, count, price):
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
    _relate(puzzle, board, mates[at])
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
        node = board[row, column]
        for direction, (down, across) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
            row2, column2 = row + down, column + across
            if row2 < 0 or row2 >= rows or column2 < 0 or column2 >= columns or held[row2 * columns + column2]:
                continue
            beside = board[row2, column2]
            if _seam(puzzle, direction, node, beside) >= limit:
                continue
            face = puzzle.face[node & ((1 << puzzle.bits) - 1), direction]
            if shared and other[face, node >> puzzle.bits] != _seen(puzzle, node, beside):
                continue
            held[row2 * columns + column2] = True
            stack[top] = row2 * columns + column2
            top += 1
    return count


@compiled
def _some_seam(puzzle, board, draws, state):  # type: ignore[no-untyped-def]
    """Return the cost of the worst of a few seams of a board, drawn at random."""
    rows, columns = board.shape
    across, down = rows * (columns - 1), (rows - 1) * columns
    worst = -_NEVER
    for _ in range(draws):
        seam = int(_uniform(state) * (across + down))
        if seam < across:
            row, column = seam // (columns - 1), seam % (columns - 1)
            worst = max(worst, _seam(puzzle, RIGHT, board[row, column], board[row, column + 1]))
        else:
            row, column = (seam - across) // columns, (seam - across) % columns
            worst = max(worst, _seam(puzzle, BELOW, board[row, column], board[row + 1, column]))
    return worst


@compiled
def empty_canvas(rows, columns):  # type: ignore[no-untyped-def]
    """Return a canvas that has room for a frame of rows and columns on all sides of its middle; nothing is set yet."""
    pieces, places = rows * columns, (2 * rows + 1) * (2 * columns + 1)
    heap = 8 * (places + pieces)
    return Canvas(np.empty(places, np.int64), np.empty(pieces, np.bool_), np.empty(4, np.int64), np.empty(places),
                  np.empty(places, np.int64), np.empty(heap), np.empty(heap, np.int64))


@compiled
def _clear(canvas):  # type: ignore[no-untyped-def]
    canvas.node[:] = -1
    canvas.taken[:] = False
    canvas.box[0] = canvas.box[2] = len(canvas.node)
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
            _lay(puzzle, canvas, step, (rows + row - top) * step + columns + column - left, board[row, column])


@compiled
def _read(canvas, board):  # type: ignore[no-untyped-def]
    """Copy the grown board off the canvas."""
    rows, columns = board.shape
    step = 2 * columns + 1
    for row in range(rows):
        for column in range(columns):
            board[row, column] = canvas.node[(canvas.box[0] + row) * step + canvas.box[2] + column]


@compiled
def solve(puzzle, search, seeds, seed):  # type: ignore[no-untyped-def]
    """Return the best board found `[rows, columns]`, of nodes.

    Args:
        puzzle: `Puzzle` of two or more pieces.
        search: how hard to try.
        seeds: `[R, rows, columns]` parts of boards to grow as well, -1 where they have nothing; R may be 0.
        seed: uint64 above 0.
    """
    rows, columns = puzzle.rows, puzzle.columns
    pieces = rows * columns
    state = np.empty(1, np.uint64)
    state[0] = seed
    canvas = empty_canvas(rows, columns)
    boards, prices = np.empty((search.kept, rows, columns), np.int64), np.empty(search.kept)
    mates = np.empty((search.kept, 4, pieces), np.int64)
    pair, held = np.empty((2, 4, pieces), np.int64), np.empty(pieces, np.bool_)
    where, found = np.empty(pieces, np.int64), np.empty(8 * puzzle.near.shape[2], np.int64)
    board = np.empty((rows, columns), np.int64)
    count, laid = 0, 0
    for given in range(len(seeds)):
        held[:] = seeds[given].ravel() >= 0
        _plant(puzzle, canvas, seeds[given], held)
        _grow(puzzle, canvas, Kin(pair, 0.0), search, pieces - held.sum(), 0.0, state)
        laid += pieces - held.sum()
        _read(canvas, board)
        _exchange(puzzle, board, search.weak, where, found)
        count = _keep(puzzle, boards, prices, mates, count, board, board_cost(puzzle, board))
    for start in range(max(search.restarts, 1)):
        if count > 0 and (laid >= search.effort or start >= search.restarts):
            break
        _clear(canvas)
        first = int(_uniform(state) * pieces) << puzzle.bits | int(_uniform(state) * len(puzzle.face))
        _lay(puzzle, canvas, 2 * columns + 1, rows * (2 * columns + 1) + columns, first)
        _grow(puzzle, canvas, Kin(pair, 0.0), search, pieces - 1, 0.5 * search.noise * (start > 0), state)
        laid += pieces
        _read(canvas, board)
        _exchange(puzzle, board, search.weak, where, found)
        count = _keep(puzzle, boards, prices, mates, count, board, board_cost(puzzle, board))
    idle = 0
    while laid < search.effort and idle < search.patience:
        idle += 1
        one, other = int(_uniform(state)**2 * count), int(_uniform(state) * count)
        pair[0], pair[1] = mates[one], mates[other]
        limit = _some_seam(puzzle, boards[one], 1 + int(_uniform(state) * search.draws), state)
        shared = one != other and _uniform(state) < 0.5
        holding = _hold(puzzle, boards[one], mates[other], shared, limit, int(_uniform(state) * pieces), held)
        if holding == pieces:
            continue
        _plant(puzzle, canvas, boards[one], held)
        kin = Kin(pair, search.inherit * _uniform(state))
        noise = -search.noise * np.log(_uniform(state) + 1e-12)
        _grow(puzzle, canvas, kin, search, pieces - holding, noise, state)
        laid += pieces - holding
        _read(canvas, board)
        price, before = board_cost(puzzle, board), prices[0]
        if price < prices[count - 1] and not _known(prices, count, price):
            _exchange(puzzle, board, search.weak, where, found)
            price = board_cost(puzzle, board)
        count = _keep(puzzle, boards, prices, mates, count, board, price)
        if prices[0] < before - _SAME:
            idle = 0
    board[:] = boards[0]
    if search.anneal:
        _anneal(puzzle, board, search.anneal, search.heat, where, found, state)
    return board

"""Mending a jigsaw board by assignment: no two places of one colour of a checkerboard touch, so that, the other places
staying, which of their pieces belongs where is an assignment problem (Kuhn 1955), and solved exactly.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from ppbench.attacks._solver import ABOVE, BELOW, LEFT, RIGHT, Puzzle, board_cost

_ROUNDS = 20


def repaired(puzzle: Puzzle, board: np.ndarray) -> np.ndarray:
    """Reassign the pieces of one colour of places, then of the other, while that lowers the cost.

    Args:
        puzzle: of pieces in any states; a piece keeps its own.
        board: `[rows, columns]` of nodes.

    Returns:
        A board that costs no more.
    """
    cost = board_cost(puzzle, board)
    rows, columns = np.indices(board.shape)
    idle = 0
    for turn in range(_ROUNDS):
        places = (rows + columns) % 2 == turn % 2
        if not places.any():
            continue
        price = _prices(puzzle, board, places)
        mine, where = linear_sum_assignment(price)
        changed = board.copy()
        nodes = board[places]
        nodes[where] = board[places][mine]
        changed[places] = nodes
        now = board_cost(puzzle, changed)
        idle = 0 if now < cost - 1e-4 else idle + 1
        if idle == 0:
            board, cost = changed, now
        elif idle == 2:
            break
    return board


def _prices(puzzle: Puzzle, board: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return what each node on some places would cost at each of these places, `[n, n]`."""
    nodes, mask = board[places], (1 << puzzle.bits) - 1
    found = np.zeros((len(nodes), len(nodes)))
    around = np.full((board.shape[0] + 2, board.shape[1] + 2), -1, board.dtype)
    around[1:-1, 1:-1] = board
    row, column = np.nonzero(places)
    for direction, (down, across) in ((RIGHT, (0, -1)), (LEFT, (0, 1)), (BELOW, (-1, 0)), (ABOVE, (1, 0))):
        lying = around[row + 1 + down, column + 1 + across]
        there = lying >= 0
        state = lying[there] & mask
        relative = puzzle.relative[state][:, nodes & mask]
        face = puzzle.face[state, direction]
        found[:, there] += puzzle.costs[face[:, None], (lying[there] >> puzzle.bits)[:, None], nodes >> puzzle.bits,
                                        relative].T
    if len(puzzle.unary):
        found += puzzle.unary[nodes >> puzzle.bits][:, np.flatnonzero(places)]
    return found

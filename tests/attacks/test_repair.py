"""Mending boards by assignment over half of a checkerboard."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jigsaw_pieces import (
    ETC,
    FLAGS,
    UNCHANGED,
    Flags,
    Grid,
    near_truth,
    nodes,
    puzzle_of,
    random_boards,
    random_costs,
    states_for,
)

from ppbench.attacks._repair import repaired
from ppbench.attacks._solver import _gain, board_cost
from ppbench.attacks._states import PLAIN
from ppbench.seeding import generator


@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
@pytest.mark.parametrize("grid", [(4, 5), (1, 6), (2, 1)])
def test_half_a_checkerboard_that_was_shuffled_is_mended(flags: Flags, grid: Grid) -> None:
    states, truth = states_for(flags), random_boards(1, grid, states_for(flags))
    puzzle, right = puzzle_of(near_truth(truth, states, 0)[0], grid, states), nodes(truth, states)
    half = np.indices(grid).sum(0) % 2 == 0
    for seed in range(3):
        board = right.copy()
        board[half] = np.random.default_rng(seed).permutation(board[half])
        assert (repaired(puzzle, board) == right).all()


def test_places_count_in_mending() -> None:
    """Where seams cost nothing, the pieces of either half are dealt out as cheaply as they can be."""
    for seed in range(5):
        places, board = torch.randn(6, 6, generator=generator(seed)), np.random.default_rng(seed).permutation(6)
        found = repaired(puzzle_of(torch.zeros(4, 6, 6, 1), (2, 3), PLAIN, places), board.reshape(2, 3)).flatten()
        for half in ([0, 2, 4], [1, 3, 5]):
            least = min(sum(float(places[piece, place]) for piece, place in zip(order, half, strict=True))
                        for order in itertools.permutations(board[half].tolist()))
            assert sum(float(places[found[place], place]) for place in half) == pytest.approx(least, abs=1e-4)


def test_both_halves_of_the_checkerboard_are_mended() -> None:
    truth = random_boards(1, (6, 6), PLAIN)
    puzzle, right = puzzle_of(near_truth(truth, PLAIN, 0)[0], (6, 6)), nodes(truth, PLAIN)
    board = right.copy()
    for (r, c), (r2, c2) in (((0, 0), (5, 5)), ((0, 1), (1, 4)), ((4, 1), (5, 2)), ((3, 3), (0, 4))):
        board[r, c], board[r2, c2] = right[r2, c2], right[r, c]
    assert (repaired(puzzle, board) == right).all()


@given(st.sampled_from(FLAGS), st.integers(1, 4), st.integers(2, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_mending_never_costs_more(flags: Flags, rows: int, columns: int, unary: bool, seed: int) -> None:
    states, grid, pieces = states_for(flags), (rows, columns), rows * columns
    places = torch.randn(pieces, pieces, generator=generator(seed)) * 9 if unary else None
    puzzle = puzzle_of(random_costs(1, pieces, states, seed)[0], grid, states, places)
    board = nodes(random_boards(1, grid, states, seed), states)
    before = board.copy()
    found = repaired(puzzle, board)
    assert (board == before).all()
    assert sorted(found.flatten()) == sorted(board.flatten())
    assert board_cost(puzzle, found) <= board_cost(puzzle, board) + 1e-3
    for colour in (0, 1):  # and no exchange within one colour is left that would gain
        half = np.argwhere(np.indices(grid).sum(0) % 2 == colour)
        for (r, c), (r2, c2) in itertools.combinations(half.tolist(), 2):
            assert _gain(puzzle, found, r, c, r2, c2) >= -1e-3

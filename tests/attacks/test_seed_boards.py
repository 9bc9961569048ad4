"""Seeds of boards: loops of seams and the linear program."""

import itertools

import numpy as np
import pytest
import torch
from jigsaw_pieces import (
    HARD,
    TURNED,
    Grid,
    near_truth,
    nodes,
    photos,
    puzzle_of,
    random_boards,
    random_costs,
    scrambled,
    states_for,
)

from ppbench.attacks._assemble import assemble
from ppbench.attacks._boards import board_costs
from ppbench.attacks._seams import combo
from ppbench.attacks._seed_boards import (
    _best,
    _framed,
    _grouped,
    _joined,
    _least_absolute,
    linear_seed,
    loop_seed,
    seed_boards,
)
from ppbench.attacks._solver import BELOW, RIGHT, Search, board_cost, solve
from ppbench.attacks._states import PLAIN
from ppbench.seeding import generator


def placed(board: np.ndarray, truth: np.ndarray) -> float:
    """The share of places that hold what belongs there."""
    return float((board == truth).mean())


@pytest.mark.parametrize(("seed_of", "least"), [(linear_seed, 0.8), (loop_seed, 0.95)])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 128), (96, 64)])
def test_seeds_of_an_easy_photo_are_nearly_all_of_it(seed_of: object, least: float, height: int, width: int) -> None:
    assert callable(seed_of)
    pieces, order, _ = scrambled(photos(1, height, width), 16, PLAIN)
    grid = height // 16, width // 16
    truth = order[0].argsort().view(grid).numpy()
    costs = combo(pieces, PLAIN)[0]
    board = seed_of(puzzle_of(costs, grid))
    assert placed(board, truth) >= least
    assert ((board == truth) | (board < 0)).mean() >= 0.95
    start = Search(restarts=1, effort=1, linear=int(seed_of is linear_seed), loops=int(seed_of is loop_seed))
    found = assemble(costs[None], grid, generator(0), start)
    assert placed(found.pieces[0].numpy(), truth) > 0.9


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (1, 3), (1, 6), (6, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["random", "nothing", "copies", "flat"])
def test_hopeless_puzzles_get_parts_of_boards_or_nothing(grid: Grid, kind: str) -> None:
    pieces = grid[0] * grid[1]
    if kind == "random":
        costs = random_costs(1, pieces, PLAIN, 0)
    elif kind == "nothing":
        costs = torch.zeros(1, 4, pieces, pieces, 1)
    else:
        one = torch.rand(1, 1, 3, 4, 4, generator=generator(0)) if kind == "copies" else torch.full((1, 1, 3, 4, 4), .3)
        costs = combo(one.expand(1, pieces, 3, 4, 4), PLAIN)
    puzzle = puzzle_of(costs[0], grid)
    for seed_of in (linear_seed, loop_seed):
        board = seed_of(puzzle)
        assert board.shape == grid
        laid = board[board >= 0]
        assert len(np.unique(laid)) == len(laid)
        assert (laid < pieces).all()
    if pieces < 4:
        assert (loop_seed(puzzle) == -1).all()  # a loop takes four
    found = assemble(costs, grid, generator(0), Search(linear=1, repair=1, anneal=2))
    assert found.pieces.flatten().sort().values.tolist() == list(range(pieces))


def test_boards_are_grown_from_seeds() -> None:
    """A seed that no single growth finds is never made worse, and most of it is enough to find it again."""
    truth = random_boards(1, (4, 4), PLAIN)
    costs = random_costs(8, 16, PLAIN, 0)
    good = assemble(costs, (4, 4), generator(0), HARD)
    cost = board_costs(costs, PLAIN, good)
    little = Search(restarts=1, effort=1, weak=1000.0)
    for n in range(8):
        puzzle, seed = puzzle_of(costs[n], (4, 4)), np.uint64(n + 1)
        alone = solve(puzzle, little, np.empty((0, 4, 4), np.int64), seed)
        grown = solve(puzzle, little, good.pieces[n:n + 1].numpy(), seed)
        assert board_cost(puzzle, alone) > float(cost[n]) + 1
        assert board_cost(puzzle, grown) == pytest.approx(float(cost[n]), abs=1e-3)
    part, easy = truth.pieces.clone().numpy(), puzzle_of(near_truth(truth, PLAIN, 0)[0], (4, 4))
    part[0, 0], part[0, 3, 1:] = -1, -1
    assert (solve(easy, little, part, np.uint64(1)) == nodes(truth, PLAIN)).all()


def test_only_the_seeds_that_were_asked_for_are_made() -> None:
    pieces, _, _ = scrambled(photos(1, 64, 64), 16, PLAIN)
    puzzle = puzzle_of(combo(pieces, PLAIN)[0], (4, 4))
    for linear, loops in itertools.product((0, 1), (0, 1)):
        assert seed_boards(puzzle, Search(linear=linear, loops=loops)).shape == (linear + loops, 4, 4)
    states = states_for(TURNED)
    turned = puzzle_of(combo(pieces, states)[0], (4, 4), states)
    assert seed_boards(turned, Search(linear=1)).shape == (0, 4, 4)
    pair = puzzle_of(torch.zeros(4, 2, 2, 1), (1, 2))
    assert seed_boards(pair, Search()).shape == (0, 1, 2)


def test_pieces_that_are_each_others_best_neighbour_are_listed_where_they_fit_well() -> None:
    right, below = np.full((3, 3), 9.0), np.full((3, 3), 9.0)
    right[0, 1], right[0, 2], right[2, 0] = -3, -1, 2  # 0 fits better beside 1 than beside 2, and 2 not well beside 0
    below[2, 0], below[1, 0] = -5, -6
    found = _best({RIGHT: right, BELOW: below})
    assert sorted(found.tolist()) == [[0, 1, RIGHT], [1, 0, BELOW]]


def test_the_frame_holds_as_many_as_it_can_and_of_two_at_one_place_the_first() -> None:
    place = np.array([[0, 0, 3, 4, 4, 4, 4], [9, 1, 2, 1, 2, 3, 2]])  # rows, then columns
    found = _framed(np.full((2, 3), -1), np.arange(7), place)
    assert found.tolist() == [[-1, 2, -1], [3, 4, 5]]  # 6 would lie on 4


def test_seams_that_contradict_earlier_ones_join_nothing() -> None:
    puzzle = puzzle_of(torch.zeros(4, 6, 6, 1), (2, 3))
    seams = np.array([[0, 1, RIGHT], [2, 1, RIGHT], [0, 3, BELOW], [3, 4, RIGHT], [1, 3, BELOW], [1, 5, RIGHT]])
    assert _joined(puzzle, seams).tolist() == [[0, 1, 5], [3, 4, -1]]  # 2 would lie on 0
    assert (_joined(puzzle, seams[:0]) == -1).all()


def test_parts_far_beyond_the_frame_are_not_joined() -> None:
    """A row of six in a frame of two columns: four columns at most hang together, of which two are kept."""
    puzzle = puzzle_of(torch.zeros(4, 6, 6, 1), (3, 2))
    row = np.array([[n, n + 1, RIGHT] for n in range(5)])
    assert _joined(puzzle, row).tolist() == [[0, 1], [-1, -1], [-1, -1]]
    assert sorted(_grouped(row, 3, 2)[1].tolist()) == [0, 0, 0, 0, 4, 4]


def test_the_heavier_of_two_seams_tells_how_far_pieces_lie_apart() -> None:
    seams = np.array([[0, 1, RIGHT], [0, 1, RIGHT], [1, 2, RIGHT]])
    for weight, apart in (([2.0, 1.0, 1.0], 1), ([1.0, 2.0, 1.0], 4)):
        place = _least_absolute(seams, np.array([1, 4, 2]), np.array(weight), 3)
        np.testing.assert_allclose(np.diff(place), [apart, 2], atol=1e-6)

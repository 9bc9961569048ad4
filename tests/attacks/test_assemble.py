"""The search for boards: what boards cost, brute force on tiny puzzles, photographs, places and annealing."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jigsaw_pieces import (
    ETC,
    FLAGS,
    HARD,
    TURNED,
    UNCHANGED,
    Flags,
    Grid,
    neighbours,
    nodes,
    photos,
    puzzle_of,
    random_boards,
    random_costs,
    rebuilt,
    regauged,
    scrambled,
    states_for,
)
from torch import Tensor

from ppbench.attacks._assemble import assemble
from ppbench.attacks._boards import Boards, board_costs, in_order, stacked
from ppbench.attacks._seams import combo, tables
from ppbench.attacks._solver import (
    BELOW,
    RIGHT,
    Canvas,
    Kin,
    Search,
    _appraise,
    _gain,
    _hold,
    _relate,
    _restate,
    _worth,
    board_cost,
    empty_canvas,
)
from ppbench.attacks._states import PLAIN, States
from ppbench.blocks import cut, permutations, permute_rows
from ppbench.seeding import generator

CIFAR = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[2] / "../shared")) / "data" / "cifar10"


def cheapest(costs: Tensor, grid: Grid, states: States) -> Tensor:
    """The least cost of all boards of each puzzle `[N]`, by trying them."""
    pieces = grid[0] * grid[1]
    orders = torch.tensor(list(itertools.permutations(range(pieces)))).view(-1, 1, *grid)
    how = torch.cartesian_prod(*[torch.arange(len(states))] * pieces).view(1, -1, *grid)
    shape = (orders.shape[0], how.shape[1], *grid)
    every = Boards(orders.expand(shape).flatten(0, 1), how.expand(shape).flatten(0, 1))
    return torch.stack([board_costs(one[None].expand(len(every.pieces), *one.shape), states, every).min()
                        for one in costs])


# --- what boards cost

@pytest.mark.parametrize("flags", [UNCHANGED, TURNED, ETC])
@pytest.mark.parametrize("grid", [(2, 3), (1, 4), (3, 1)])
def test_boards_cost_what_their_seams_do_once_the_pieces_are_laid(flags: Flags, grid: Grid) -> None:
    """MGC is measured again on the laid pieces, as they are."""
    states, pieces = states_for(flags), torch.rand(2, grid[0] * grid[1], 3, 3, 3, generator=generator(0))
    boards = random_boards(2, grid, states)
    found = board_costs(tables(pieces, states, 0.0).logs[0], states, boards)
    laid = states.put(permute_rows(pieces, boards.pieces.flatten(1)), boards.states.flatten(1))
    seams, place = tables(laid, PLAIN, 0.0).logs[0][..., 0], torch.arange(grid[0] * grid[1]).view(grid)
    for n in range(2):
        expected = sum(float(seams[n, RIGHT, i, j]) for i, j in zip(place[:, :-1].flatten(), place[:, 1:].flatten(),
                                                                    strict=True))
        expected += sum(float(seams[n, BELOW, i, j]) for i, j in zip(place[:-1].flatten(), place[1:].flatten(),
                                                                     strict=True))
        assert float(found[n]) == pytest.approx(expected, rel=1e-5)


@given(st.sampled_from(FLAGS), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_search_counts_alike(flags: Flags, rows: int, columns: int, unary: bool, seed: int) -> None:
    states, grid, pieces = states_for(flags), (rows, columns), rows * columns
    costs, boards = random_costs(1, pieces, states, seed), random_boards(1, grid, states, seed)
    places = torch.randn(pieces, pieces, generator=generator(seed)) if unary else None
    expected = float(board_costs(costs, states, boards))
    if places is not None:
        expected += float(places[boards.pieces.flatten(), torch.arange(pieces)].sum())
    found = board_cost(puzzle_of(costs[0], grid, states, places), nodes(boards, states))
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("flags", FLAGS)
def test_a_board_costs_the_same_turned_as_a_whole_or_of_pieces_given_in_other_states(flags: Flags) -> None:
    states = states_for(flags)
    costs, boards = random_costs(3, 6, states, 0), random_boards(3, (2, 3), states)
    cost = board_costs(costs, states, boards)
    how = torch.randint(len(states), (6,), generator=generator(1))
    given_ = Boards(boards.pieces, states.product[boards.states, states.inverse[how[boards.pieces]]])
    torch.testing.assert_close(board_costs(regauged(costs, states, how), states, given_), cost)
    for state in range(len(states)):
        turn = int(states.turns[state])
        whole = [part.rot90(turn % 4, (1, 2)) for part in (boards.pieces, states.product[state, boards.states])]
        turned = Boards(*(part.flip(2) if turn >= 4 else part for part in whole))
        torch.testing.assert_close(board_costs(costs, states, turned), cost)


@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
def test_an_exchange_changes_the_cost_by_what_was_told(flags: Flags) -> None:
    states, grid = states_for(flags), (3, 3)
    places = torch.randn(9, 9, generator=generator(2))
    puzzle = puzzle_of(random_costs(1, 9, states, 0)[0], grid, states, places)
    board = nodes(random_boards(1, grid, states), states)
    for (r, c), (r2, c2) in itertools.combinations(itertools.product(range(3), range(3)), 2):
        swapped = board.copy()
        swapped[r, c], swapped[r2, c2] = board[r2, c2], board[r, c]
        expected = board_cost(puzzle, swapped) - board_cost(puzzle, board)
        before = board.copy()
        assert _gain(puzzle, board, r, c, r2, c2) == pytest.approx(expected, abs=1e-3)
        assert (board == before).all()


def test_a_piece_is_put_into_the_state_that_costs_least() -> None:
    states, grid = states_for(ETC), (2, 2)
    puzzle = puzzle_of(random_costs(1, 4, states, 0)[0], grid, states)
    for seed, (r, c) in enumerate(itertools.product(range(2), range(2))):
        board = nodes(random_boards(1, grid, states, seed), states)
        costs = []
        for state in range(len(states)):
            other = board.copy()
            other[r, c] = other[r, c] >> states.bits << states.bits | state
            costs.append(board_cost(puzzle, other))
        _restate(puzzle, board, r, c)
        assert board_cost(puzzle, board) == pytest.approx(min(costs), abs=1e-3)


# --- search

@pytest.mark.parametrize(("flags", "grid"), [
    (UNCHANGED, (2, 3)), (UNCHANGED, (1, 6)), (TURNED, (2, 2)), (TURNED, (1, 4)), ((False, True, False), (2, 3)),
    ((False, False, True), (2, 2)), ((False, True, True), (3, 1)), ((True, True, False), (1, 3)), (ETC, (1, 2))])
def test_the_cheapest_of_all_boards_is_found(flags: Flags, grid: Grid) -> None:
    states = states_for(flags)
    costs = random_costs(12, grid[0] * grid[1], states, 3)
    best = cheapest(costs, grid, states)
    found = board_costs(costs, states, assemble(costs, grid, generator(0), HARD, states))
    assert (found >= best - 1e-3).all()
    # random costs are the worst case of a heuristic: nothing on the board hints at the rest
    assert (found <= best + 1e-3).double().mean() > 0.8


@given(st.sampled_from(FLAGS), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_board_holds_every_piece_once(flags: Flags, rows: int, columns: int, seed: int) -> None:
    pieces, states = rows * columns, states_for(flags)
    search = Search(restarts=1 + seed % 3, patience=20, near=1 + seed % 5, repair=seed % 2, anneal=seed % 3)
    boards = assemble(random_costs(2, pieces, states, seed), (rows, columns), generator(seed), search, states)
    assert boards.pieces.shape == boards.states.shape == (2, rows, columns)
    assert (boards.pieces.flatten(1).sort(1).values == torch.arange(pieces)).all()
    assert ((boards.states >= 0) & (boards.states < len(states))).all()


@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 128), (96, 64)])
@pytest.mark.parametrize("grey", [False, True])
def test_scrambled_photos_are_rebuilt(flags: Flags, height: int, width: int, grey: bool) -> None:
    images = photos(2, height, width)
    images = (images.mean(1, keepdim=True) * 255).round() / 255 if grey else images
    states, grid = states_for(flags, images.shape[1]), (height // 16, width // 16)
    pieces, _, _ = scrambled(images, 16, states)
    boards = assemble(combo(pieces, states), grid, generator(0), Search(), states)
    assert neighbours(rebuilt(pieces, boards, states), images, flags, 16).min() > 0.9


@pytest.mark.parametrize("flags", FLAGS)
def test_every_kind_of_cipher_is_undone(flags: Flags) -> None:
    images, states = photos(2, 64, 96), states_for(flags)
    pieces, _, _ = scrambled(images, 16, states)
    boards = assemble(combo(pieces, states), (4, 6), generator(0), Search(), states)
    assert neighbours(rebuilt(pieces, boards, states), images, flags, 16).min() > 0.9


def test_the_states_in_which_pieces_are_given_change_nothing() -> None:
    states = states_for(TURNED)
    costs = combo(cut(photos(2, 64, 96), 16), states)
    how = torch.randint(len(states), (24,), generator=generator(1))
    given_ = regauged(costs, states, how)
    found = [board_costs(one, states, assemble(one, (4, 6), generator(0), Search(), states)) for one in (costs, given_)]
    torch.testing.assert_close(found[0], found[1], atol=1e-2, rtol=0)


def test_breeding_only_improves() -> None:
    costs = combo(cut(photos(6, 32, 32), 4), PLAIN)
    cost = [board_costs(costs, PLAIN, assemble(costs, (8, 8), generator(0), Search(patience=rounds, restarts=4)))
            for rounds in (0, 20, 300)]
    assert (cost[1] <= cost[0] + 1e-3).all()
    assert (cost[2] <= cost[1] + 1e-3).all()
    assert cost[2].mean() < cost[0].mean() - 1


def test_restarts_beyond_the_effort_are_left_out() -> None:
    costs = random_costs(8, 12, PLAIN, 0)
    one, cut_short, many = (assemble(costs, (3, 4), generator(0), Search(restarts=restarts, effort=effort, loops=0))
                            for restarts, effort in ((1, 1), (16, 12), (16, 192)))
    assert torch.equal(one.pieces, cut_short.pieces)
    assert (board_costs(costs, PLAIN, many) <= board_costs(costs, PLAIN, one) + 1e-3).all()
    assert not torch.equal(many.pieces, one.pieces)
    none = assemble(costs, (3, 4), generator(0), Search(restarts=0, effort=1, loops=0))  # but one there must be
    assert torch.equal(none.pieces, one.pieces)


def test_a_pair_that_both_parents_have_is_preferred() -> None:
    puzzle = puzzle_of(random_costs(1, 6, PLAIN, 0)[0], (2, 3), near=1)
    mates = np.full((2, 4, 6), -1)
    mates[:, RIGHT, 4] = 1  # on both boards piece 1 lies to the right of piece 4
    mates[0, BELOW, 2] = 1  # and on one of them below piece 2
    around, state = (4, -1, 2, -1), np.ones(1, np.uint64)
    seams = puzzle.costs[RIGHT, 4, 1, 0] + puzzle.costs[BELOW, 2, 1, 0]
    assert _worth(puzzle, Kin(mates, 0.0), around, 1, 0.0, state) == pytest.approx(seams, rel=1e-6)
    assert _worth(puzzle, Kin(mates, 0.5), around, 1, 0.0, state) == pytest.approx(seams - 3 * 0.5, rel=1e-6)


@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
def test_what_a_parent_has_there_is_tried_though_it_is_not_among_the_best(flags: Flags) -> None:
    states, grid = states_for(flags), (2, 3)
    puzzle = puzzle_of(random_costs(1, 6, states, 0)[0], grid, states, near=1)
    mask, far, own = len(states) - 1, 3 * 7 + 3, 5 % len(states)
    lying, place = 4 << states.bits | own, far + 1
    face = int(states.face[own, RIGHT])
    best = int(puzzle.near[face, 4, 0])
    mate = (best >> states.bits) % 3 << states.bits | mask  # another piece than the best, in the last state
    mate = mate if mate >> states.bits != best >> states.bits else 5 << states.bits | mask
    for bonus, seen in ((0.0, best), (99.0, mate)):
        canvas = Canvas(np.full(49, -1), np.zeros(6, np.bool_), np.array([3, 3, 3, 3]), np.zeros(49),
                        np.zeros(49, np.int64), np.zeros(99), np.zeros(99, np.int64))
        canvas.node[far], canvas.taken[4] = lying, True
        mates = np.full((2, 4, 6), -1)
        mates[1, face, 4] = mate
        _appraise(puzzle, canvas, Kin(mates, bonus), Search(contact=4.0), place, 0.0, np.ones(1, np.uint64))
        piece, state = seen >> states.bits, seen & ((1 << states.bits) - 1)
        node = piece << states.bits | int(states.product[own, state])
        assert canvas.choice[place] == node
        cost = puzzle.costs[face, 4, piece, state] - 4 - bonus
        assert canvas.price[place] == pytest.approx(cost, abs=1e-3)


@pytest.mark.parametrize("flags", [TURNED, ETC])
def test_boards_that_differ_as_a_whole_tell_the_same_of_who_lies_beside_whom(flags: Flags) -> None:
    """Mates are told in each piece's own directions, so that parents in other states can be crossed."""
    states, boards = states_for(flags), random_boards(1, (2, 3), states_for(flags))
    puzzle = puzzle_of(random_costs(1, 6, states, 0)[0], (2, 3), states)
    found, again = np.empty((4, 6), np.int64), np.empty((4, 6), np.int64)
    _relate(puzzle, nodes(boards, states), found)
    assert (found >= 0).sum() == 2 * 7  # seams, from both sides
    i, j = int(boards.pieces[0, 0, 0]), int(boards.pieces[0, 0, 1])
    one, other = int(boards.states[0, 0, 0]), int(boards.states[0, 0, 1])
    assert found[states.face[one, RIGHT], i] == j << states.bits | int(states.relative[one, other])
    for state in (1, len(states) - 1):
        whole = Boards(boards.pieces, states.product[state, boards.states])
        turn = int(states.turns[state])
        turned = nodes(whole, states)[None]
        turned = np.rot90(turned, turn % 4, (1, 2))
        _relate(puzzle, np.ascontiguousarray(turned[0, :, ::-1] if turn >= 4 else turned[0]), again)
        assert (again == found).all()


def test_what_hangs_together_by_good_seams_is_held() -> None:
    costs = torch.full((4, 6, 6, 1), 5.0)
    board = np.arange(6).reshape(2, 3)
    for one, other in ((0, 1), (0, 3), (3, 4)):
        ways = (0, 1) if other == one + 1 else (2, 3)
        costs[ways[0], one, other] = costs[ways[1], other, one] = 1.0
    puzzle, held, mates = puzzle_of(costs, (2, 3)), np.empty(6, np.bool_), np.full((4, 6), -1)
    for place, expected in ((0, [0, 1, 3, 4]), (4, [0, 1, 3, 4]), (2, [2])):
        assert _hold(puzzle, board, mates, False, 2.0, place, held) == len(expected)
        assert held.nonzero()[0].tolist() == expected
    mates[RIGHT, 0] = 1  # only this seam is on the other board as well
    assert _hold(puzzle, board, mates, True, 2.0, 0, held) == 2
    assert held.nonzero()[0].tolist() == [0, 1]


def test_ties_do_not_favour_the_identity() -> None:
    boards = assemble(torch.zeros(64, 4, 9, 9, 1), (3, 3), generator(0), Search(restarts=2, patience=4))
    assert (boards.pieces == torch.arange(9).view(1, 3, 3)).double().mean() < 0.25


def test_the_same_state_gives_the_same_boards_on_any_number_of_threads() -> None:
    states = states_for(TURNED)
    costs = random_costs(3, 6, states, 0)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, again = (assemble(costs, (2, 3), generator(5), Search(), states) for _ in range(2))
    try:
        torch.set_num_threads(2)
        both = assemble(costs, (2, 3), generator(5), Search(), states)
    finally:
        torch.set_num_threads(threads)
    for other in (again, both):
        assert torch.equal(first.pieces, other.pieces)
        assert torch.equal(first.states, other.states)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        assemble(torch.zeros(1, 4, 6, 6, 1), (2, 2), generator(0))


@pytest.mark.parametrize("cost", [float("nan"), float("inf")])
def test_costs_that_are_not_finite_are_refused(cost: float) -> None:
    costs = torch.zeros(2, 4, 6, 6, 1)
    costs[1, 1, 2, 3] = cost
    with pytest.raises(ValueError, match="finite"):
        assemble(costs, (2, 3), generator(0))


def test_a_single_piece_lies_as_it_is() -> None:
    for states in (PLAIN, states_for(ETC)):
        boards = assemble(torch.zeros(3, 4, 1, 1, len(states)), (1, 1), generator(0), None, states)
        assert boards.pieces.flatten().tolist() == boards.states.flatten().tolist() == [0, 0, 0]


def test_boards_are_joined_and_chosen() -> None:
    both = stacked([in_order(2, (2, 3)), random_boards(1, (2, 3), states_for(ETC))])
    assert both.pieces.shape == both.states.shape == (3, 2, 3)
    assert both[torch.tensor([1, 1])].pieces.flatten(1).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert int(both[:2].states.sum()) == 0


# --- places, annealing

@pytest.mark.parametrize(("flags", "grid"), [(UNCHANGED, (3, 4)), (UNCHANGED, (4, 4)), (UNCHANGED, (1, 7)),
                                             (TURNED, (3, 3))])
def test_pieces_go_where_they_cost_nothing(flags: Flags, grid: Grid) -> None:
    """The seams say nothing, so that only the places tell."""
    states, pieces = states_for(flags), grid[0] * grid[1]
    belongs = permutations(4, pieces, generator(0))  # the place of each piece
    away = torch.arange(pieces) - belongs[..., None]
    for places in ((away != 0).float(), away.abs().float()):
        boards = assemble(torch.zeros(4, 4, pieces, pieces, len(states)), grid, generator(0), Search(repair=1), states,
                          places)
        assert torch.equal(boards.pieces.flatten(1).argsort(1), belongs)


def test_places_move_what_seams_leave_open() -> None:
    """A row of pieces that fits just as well one place on: the last may as well come first."""
    costs = torch.zeros(1, 4, 6, 6, 1)
    for i in range(6):
        j = (i + 1) % 6
        costs[0, 0, i, j] = costs[0, 1, j, i] = -5.0
    for first in range(6):
        places = torch.zeros(1, 6, 6)
        places[0, :, 0] = 1.0
        places[0, first, 0] = 0.0
        boards = assemble(costs, (1, 6), generator(0), Search(repair=1, restarts=24, noise=4.0), PLAIN, places)
        assert boards.pieces.flatten().tolist() == [(first + place) % 6 for place in range(6)]


@pytest.mark.parametrize(("flags", "how", "gain"), [
    (UNCHANGED, {"anneal": 100}, 5.0), (UNCHANGED, {"repair": 1}, 5.0), (TURNED, {"anneal": 100}, 1.0),
    (TURNED, {"repair": 1}, 0.0)])  # which leaves pieces in their states
def test_annealing_and_repair_only_improve(flags: Flags, how: dict[str, int], gain: float) -> None:
    states = states_for(flags)
    costs = random_costs(16, 16, states, 0)
    before, after = (board_costs(costs, states, assemble(costs, (4, 4), generator(0), Search(
        restarts=1, patience=0, weak=1000.0, **more), states)) for more in ({}, how))
    assert (after <= before + 1e-3).all()
    assert after.mean() < before.mean() - gain


# --- real images

@pytest.mark.real
@pytest.mark.skipif(not CIFAR.is_dir(), reason="no CIFAR-10 in PPBENCH_DATA")
@pytest.mark.parametrize(("patch", "least"), [(4, 0.75), (8, 0.95)])
def test_cifar_is_restored(patch: int, least: float) -> None:
    from PIL import Image

    atlas = np.asarray(Image.open(CIFAR / "cifar10_test.webp").convert("RGB"))[:32]
    tiles = atlas.reshape(32, 100, 32, 3).transpose(1, 3, 0, 2)[:24]
    costs = combo(cut(torch.from_numpy(tiles.copy()).float() / 255, patch), PLAIN)
    grid = (32 // patch, 32 // patch)
    boards = assemble(costs, grid, generator(0)).pieces
    assert (boards == torch.arange(grid[0] * grid[1]).view(1, *grid)).double().mean() > least


@pytest.mark.parametrize(("rows", "columns"), [(1, 1000), (1000, 1), (30, 40)])
def test_a_canvas_is_no_larger_than_four_frames_and_their_margin(rows: int, columns: int) -> None:
    """So that a strip of 10,000 pieces has room in memory."""
    canvas = empty_canvas(rows, columns)
    assert len(canvas.node) == (2 * rows + 1) * (2 * columns + 1) < 7 * rows * columns
    assert sum(part.nbytes for part in canvas) < 1500 * rows * columns

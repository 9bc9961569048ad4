"""Seam costs: each against a slow reference on pieces that are really turned, negated and recoloured."""

import itertools

import numpy as np
import pytest
import skimage.color
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jigsaw_pieces import (
    ETC,
    FLAGS,
    TURNED,
    UNCHANGED,
    Flags,
    looking_right,
    photos,
    regauged,
    scrambled,
    seam_numbers,
    slow_put,
    states_for,
)
from torch import Tensor

from ppbench.attacks import _seams
from ppbench.attacks._seam_net import mirror
from ppbench.attacks._seams import LIMIT, Tables, combo, edges, lab, mgc, prediction, tables
from ppbench.attacks._states import ABOVE, BELOW, LEFT, OPPOSITE, PLAIN, RIGHT, States
from ppbench.blocks import cut
from ppbench.seeding import generator

MIXED = [(True, True, False), (False, False, True), (False, True, False)]


def noise(count: int, pieces: int, channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, pieces, channels, size, size, generator=generator(seed))


def slow_mgc(here: list[np.ndarray], there: list[np.ndarray], i: int, j: int, shrink: float) -> float:
    """MGC of piece i of `here` with piece j of `there` to its right, by np.cov over steps and dummies; in 0..255."""

    def one_way(pieces: list[np.ndarray], i: int, beyond: np.ndarray) -> float:
        channels, side, _ = pieces[0].shape
        unit = np.eye(channels)
        ones = np.ones((1, channels))
        dummies = np.concatenate([0 * ones, ones, -ones, unit, -unit])
        steps = [(piece[:, :, -1] - piece[:, :, -2 if side > 1 else -1]).T for piece in pieces]
        centred = [one - one.mean(0) for one in steps]
        common = np.mean([one.T @ one for one in centred], 0) / side
        samples = np.concatenate([centred[i], dummies])
        scatter = np.cov(samples.T, bias=True).reshape(channels, channels) * len(samples)
        covariance = (scatter + shrink * common) / (len(samples) - 1 + shrink)
        off = beyond.T - pieces[i][:, :, -1].T - steps[i].mean(0)
        return float(sum(row @ np.linalg.solve(covariance, row) for row in off))

    flipped = [[piece[:, :, ::-1] for piece in side] for side in (here, there)]
    return one_way(here, i, there[j][:, :, 0]) + one_way(flipped[1], j, flipped[0][i][:, :, 0])


def slow_prediction(here: np.ndarray, there: np.ndarray) -> float:
    """Both extrapolations across the seam between a piece and another to its right."""
    beside = min(1, here.shape[2] - 1)
    forth = 2 * here[:, :, -1] - here[:, :, -1 - beside] - there[:, :, 0]
    back = 2 * there[:, :, 0] - there[:, :, beside] - here[:, :, -1]
    return float(np.abs(forth).sum() + np.abs(back).sum())


def colours(block: np.ndarray, states: States) -> np.ndarray:
    """What prediction compares: CIELAB, where pieces show their colours, or else RGB up to 100."""
    if states.blind or len(block) not in (1, 3):
        return block * 100
    channels = len(block)
    rgb = np.broadcast_to(block.transpose(1, 2, 0), (*block.shape[1:], 3))
    return skimage.color.rgb2lab(rgb).transpose(2, 0, 1)[:channels]


@pytest.mark.parametrize(("channels", "size", "shrink"),
                         [(3, 4, 0.0), (3, 4, 2.0), (1, 5, 0.0), (3, 2, 2.0), (1, 2, 0.0), (3, 1, 0.0)])
def test_mgc_is_its_definition(channels: int, size: int, shrink: float) -> None:
    pieces = noise(2, 6, channels, size).double() * 255
    for direction in (RIGHT, BELOW):
        found = mgc(edges(pieces, direction), edges(pieces, int(OPPOSITE[direction])), shrink)
        for n in range(2):
            look = [looking_right(piece.numpy(), direction) for piece in pieces[n]]
            expected = [[slow_mgc(look, look, i, j, shrink) for j in range(6)] for i in range(6)]
            np.testing.assert_allclose(found[n], expected, rtol=1e-6, atol=1e-6)


def test_mgc_of_real_pieces_does_not_lose_digits() -> None:
    pieces = cut(photos(1, 64, 64), 8)[:, :12].double() * 255
    found = mgc(edges(pieces, RIGHT), edges(pieces, LEFT), 0.0)[0]
    real = list(pieces[0].numpy())
    expected = [[slow_mgc(real, real, i, j, 0.0) for j in range(12)] for i in range(12)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (3, 3), (3, 1), (2, 2)])
def test_prediction_is_its_definition(channels: int, size: int) -> None:
    pieces = lab(noise(1, 5, channels, size))
    for direction in range(4):
        found = prediction(edges(pieces, direction), edges(pieces, int(OPPOSITE[direction])))[0]
        look = [looking_right(piece.numpy(), direction) for piece in pieces[0]]
        expected = [[slow_prediction(one, other) for other in look] for one in look]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_edges_are_the_sides_and_what_lies_behind() -> None:
    piece = torch.arange(9.0).view(1, 1, 1, 3, 3)
    for direction, outer, inner in ((RIGHT, [2, 5, 8], [1, 4, 7]), (LEFT, [0, 3, 6], [1, 4, 7]),
                                    (BELOW, [6, 7, 8], [3, 4, 5]), (ABOVE, [0, 1, 2], [3, 4, 5])):
        found = edges(piece, direction)
        assert (found.outer.flatten().tolist(), found.inner.flatten().tolist()) == (outer, inner)


def test_lab_agrees_with_scikit_image() -> None:
    some = noise(1, 50, 3, 2)
    some[0, 0] = 0.0
    expected = skimage.color.rgb2lab(some[0].permute(0, 2, 3, 1).double().numpy())
    np.testing.assert_allclose(lab(some)[0].permute(0, 2, 3, 1).numpy(), expected, atol=0.01)
    grey = some[:, :, :1]
    np.testing.assert_allclose(lab(grey), lab(grey.expand_as(some))[:, :, :1], atol=0.01)
    two = some[:, :, :2]
    torch.testing.assert_close(lab(two), two.double() * 100)


@pytest.mark.parametrize(("flags", "channels", "size", "shrink"), [
    (UNCHANGED, 3, 3, 0.0), (TURNED, 3, 3, 0.0), (TURNED, 1, 4, 2.0), (ETC, 3, 2, 2.0), (ETC, 2, 3, 0.0),
    *((flags, 3, 3, 0.0) for flags in MIXED)])
def test_a_table_is_what_is_measured_on_pieces_really_put_there(flags: Flags, channels: int, size: int, shrink: float,
                                                                ) -> None:
    """Piece j is brought into each state, and both pieces are mirrored so that the seam is upright and j on the right.

    The first piece lies as it is given, and every piece's mean covariance is that of the side at the seam.
    """
    states, count = states_for(flags, channels), 4
    pieces = noise(1, count, channels, size)
    steps, values = (log[0].double().exp() - 1 for log in tables(pieces, states, shrink).logs)
    real = [piece.double().numpy() for piece in pieces[0]]
    for direction, state in itertools.product(range(4), range(len(states))):
        put = [slow_put(piece, states, state) for piece in real]
        here, there = ([looking_right(piece, direction) for piece in side] for side in (real, put))
        scaled = [[piece * 255 for piece in side] for side in (here, there)]
        shown = [[colours(piece, states) for piece in side] for side in (here, there)]
        for i, j in [(0, 1), (1, 0), (2, 3), (3, 1)]:
            assert float(steps[direction, i, j, state]) == pytest.approx(slow_mgc(*scaled, i, j, shrink), rel=1e-4)
            assert float(values[direction, i, j, state]) == pytest.approx(slow_prediction(shown[0][i], shown[1][j]),
                                                                          rel=1e-3)


@pytest.mark.parametrize("flags", FLAGS)
def test_a_seam_costs_the_same_as_seen_from_either_piece(flags: Flags) -> None:
    states = states_for(flags)
    costs = combo(noise(2, 4, 3, 3), states)
    seams = seam_numbers(costs.shape)
    back = mirror(seams, costs.shape, states)
    assert torch.equal(mirror(back, costs.shape, states), seams)
    torch.testing.assert_close(costs.flatten()[back], costs.flatten()[seams], atol=1e-3, rtol=0)
    assert costs.flatten()[seams].std() > 0.1


@pytest.mark.parametrize("flags", FLAGS)
def test_pieces_given_in_other_states_cost_the_same(flags: Flags) -> None:
    """But for what MGC borrows from the other pieces' sides, which the order of states changes: shrink is 0."""
    states = states_for(flags)
    pieces = noise(1, 4, 3, 3)
    how = torch.randint(len(states), (4,), generator=generator(1))
    found = combo(states.put(pieces, how[None]), states, 0.0)
    torch.testing.assert_close(found, regauged(combo(pieces, states, 0.0), states, how), atol=1e-3, rtol=0)


def slow_rivals(logs: Tensor, states: States, direction: int, i: int) -> float:
    """The second best turn of another piece at a side, each in the colours that fit best."""
    best: dict[tuple[int, int], float] = {}
    for j, state in itertools.product(range(logs.shape[1]), range(len(states))):
        if j != i:
            key = j, int(states.turns[state])
            best[key] = min(best.get(key, np.inf), float(logs[direction, i, j, state]))
    pieces = logs.shape[1]
    return sorted(best.values())[1 if pieces > 2 else 0]


@pytest.mark.parametrize("flags", [UNCHANGED, TURNED, ETC, *MIXED])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_costs_are_relative_to_the_rivals_on_both_sides(flags: Flags, count: int) -> None:
    states = states_for(flags)
    measured = tables(noise(2, count, 3, 2), states)
    pairs = list(itertools.permutations(range(count), 2))
    for which, n in itertools.product(range(2), range(2)):
        logs = measured.logs[which][n]
        rivals = [[slow_rivals(logs, states, direction, i) for i in range(count)] for direction in range(4)]
        np.testing.assert_allclose(measured.rivals[which][n], rivals, rtol=1e-6)
        found = measured.relative(which)[n]
        for direction, (i, j), state in itertools.product(range(4), pairs, range(len(states))):
            side = int(states.face[state, [LEFT, RIGHT, ABOVE, BELOW][direction]])  # that j turns to i
            expected = 2 * float(logs[direction, i, j, state]) - rivals[direction][i] - rivals[side][j]
            assert float(found[direction, i, j, state]) == pytest.approx(expected, abs=1e-4)


def test_both_costs_are_added_and_held_within_limits() -> None:
    logs = torch.randn(2, 1, 4, 3, 3, 1, generator=generator(0)) * 8
    rivals = torch.zeros(2, 1, 4, 3)
    found = Tables((logs[0], logs[1]), (rivals[0], rivals[1]), PLAIN).combined()
    expected = (2 * logs.sum(0)).clamp(-LIMIT, LIMIT)
    expected[:, :, range(3), range(3)] = LIMIT
    torch.testing.assert_close(found, expected)
    assert {-LIMIT, LIMIT} < set(found.flatten().tolist())


@given(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 4),
       st.sampled_from(["random", "flat", "black", "copies", "binary"]), st.sampled_from(FLAGS))
@settings(max_examples=60, deadline=None)
def test_costs_stay_finite(count: int, channels: int, size: int, kind: str, flags: Flags) -> None:
    pieces, states = noise(2, count, channels, size), states_for(flags, channels)
    if kind in ("flat", "black"):
        pieces = torch.full_like(pieces, 0.3 if kind == "flat" else 0.0)
    elif kind == "copies":
        pieces = pieces[:, :1].expand_as(pieces)
    elif kind == "binary":
        pieces = pieces.round()
    costs = combo(pieces, states)
    assert costs.shape == (2, 4, count, count, len(states))
    assert costs.dtype == torch.float32
    assert costs.abs().max() <= LIMIT
    assert (costs.diagonal(dim1=2, dim2=3) == LIMIT).all()


@pytest.mark.parametrize("flags", [UNCHANGED, TURNED, ETC])
def test_small_chunks_measure_the_same(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, states = noise(2, 5, 3, 3), states_for(flags)
    whole = combo(pieces, states)
    monkeypatch.setattr(_seams, "_CHUNK", 1)
    torch.testing.assert_close(combo(pieces, states), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", [UNCHANGED, TURNED, (False, True, True), ETC])
def test_true_neighbours_are_cheapest(flags: Flags) -> None:
    """In the states in which they lie on the photograph, as seen from the first piece's own."""
    states = states_for(flags)
    pieces, order, how = scrambled(photos(1, 128, 128), 16, states)
    costs = combo(pieces, states)[0].flatten(2)
    where = order[0].argsort().view(8, 8)  # which of the pieces belongs there
    undone = states.inverse[how[0]]
    right = []
    for direction, one, other in ((RIGHT, where[:, :-1], where[:, 1:]), (BELOW, where[:-1], where[1:])):
        i, j = one.flatten(), other.flatten()
        expected = j * len(states) + states.relative[undone[i], undone[j]]
        right.append(costs[states.face[undone[i], direction], i].argmin(1) == expected)
    assert torch.cat(right).double().mean() > 0.85

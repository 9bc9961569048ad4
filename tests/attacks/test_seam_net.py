"""Learned seams: what the network sees, and what its costs say."""

import itertools

import numpy as np
import pytest
import torch
from jigsaw_pieces import (
    ETC,
    FLAGS,
    TURNED,
    UNCHANGED,
    Flags,
    looking_right,
    photos,
    scrambled,
    slow_put,
    states_for,
)
from torch import Tensor

from ppbench.attacks._seam_net import (
    COLUMNS,
    MEASURED,
    SeamNet,
    Seams,
    learned,
    measured_at,
    mirror,
    shortlist,
    sides_of,
)
from ppbench.attacks._seams import LIMIT, tables
from ppbench.attacks._states import PLAIN
from ppbench.seeding import generator, seeded

MIXED = (False, True, True)


def noise(count: int, pieces: int, channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, pieces, channels, size, size, generator=generator(seed))


def random_net(channels: int = 3, width: int = 8, seed: int = 0) -> SeamNet:
    with seeded(seed):
        return SeamNet(channels, width).eval()


def some_seams(shape: tuple[int, ...], count: int) -> list[tuple[Tensor, list[int]]]:
    """Numbers of seams, and what they stand for: image, direction, piece, the other one, its state."""
    total = int(np.prod(shape))
    numbers = torch.randperm(total, generator=generator(0))
    found = [(number, [int(part) for part in np.unravel_index(int(number), shape)]) for number in numbers]
    return [(number, parts) for number, parts in found if parts[2] != parts[3]][:count]


# --- what is looked at

@pytest.mark.parametrize("flags", FLAGS)
def test_a_seam_seen_from_the_other_piece_is_the_same_picture(flags: Flags) -> None:
    """Both pieces are laid side by side, and the whole is brought back so that the second lies as it was given."""
    states, pieces = states_for(flags), noise(1, 3, 3, 2)
    real = pieces[0].numpy()
    shape = (1, 4, 3, 3, len(states))
    for number, (_, d, i, j, r) in some_seams(shape, 60):
        _, d2, j2, i2, r2 = (int(part) for part in np.unravel_index(int(mirror(number, shape, states)), shape))
        assert (i2, j2) == (i, j)
        whole = beside(real[i], slow_put(real[j], states, r), d)
        undone = slow_put(whole, states, int(states.inverse[r]))
        np.testing.assert_allclose(undone, beside(real[j], slow_put(real[i], states, r2), d2), atol=1e-6)


def beside(one: np.ndarray, other: np.ndarray, direction: int) -> np.ndarray:
    """Lay a block to the right of another, to its left, below or above it."""
    parts = (other, one) if direction % 2 else (one, other)
    return np.concatenate(parts, 2 if direction < 2 else 1)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_network_sees_the_columns_on_both_sides_of_a_seam(flags: Flags, size: int) -> None:
    states, pieces = states_for(flags), noise(2, 3, 3, size)
    sides = sides_of(pieces, states)
    assert sides.shape == (2, 4, 3, 3, len(states))
    picked = some_seams(sides.shape, 80)
    found = sides.at(torch.stack([number for number, _ in picked]), torch.zeros(len(picked), MEASURED))
    reach = np.minimum(np.arange(COLUMNS), size - 1)  # small pieces go on as they end
    for row, (_, (n, d, i, j, r)) in enumerate(picked):
        here = looking_right(pieces[n, i].numpy(), d)[:, :, ::-1][:, :, reach]
        there = looking_right(slow_put(pieces[n, j].numpy(), states, r), d)[:, :, reach]
        np.testing.assert_allclose(found.here[row], here, atol=1e-6)
        np.testing.assert_allclose(found.there[row], there, atol=1e-6)


@pytest.mark.parametrize("flags", [UNCHANGED, TURNED, ETC])
def test_what_is_measured_at_seams_is_what_stands_in_the_tables(flags: Flags) -> None:
    states = states_for(flags)
    measured = tables(noise(2, 4, 3, 3), states)
    picked = some_seams(tuple(measured.logs[0].shape), 90)
    found = measured_at(torch.stack([number for number, _ in picked]), measured)
    assert found.shape == (90, MEASURED)
    for row, (_, at) in enumerate(picked):
        relative = [float(measured.relative(which)[tuple(at)].clamp(-LIMIT, LIMIT)) for which in range(2)]
        absolute = [float(measured.logs[which][tuple(at)]) / 4 - 1.5 for which in range(2)]
        np.testing.assert_allclose(found[row], relative + absolute, atol=1e-4)


@pytest.mark.parametrize("flags", [UNCHANGED, MIXED])
def test_the_shortlist_holds_the_cheapest_seams_of_every_side(flags: Flags) -> None:
    states = states_for(flags)
    costs = tables(noise(2, 4, 3, 3), states).combined()
    for most, kept in ((1, 1), (5, min(5, 3 * len(states))), (1000, 3 * len(states))):
        found = shortlist(costs, most)
        assert found.shape == (2, 4, 4, kept)
        for n, d, i in itertools.product(range(2), range(4), range(4)):
            best = costs[n, d, i].flatten().sort().values[:kept]
            torch.testing.assert_close(costs.flatten()[found[n, d, i]].sort().values, best)
            assert {tuple(np.unravel_index(int(one), costs.shape))[:3] for one in found[n, d, i]} == {(n, d, i)}


# --- the network and its costs

def test_one_network_looks_at_seams_of_any_length() -> None:
    net = random_net()
    for size in (1, 2, 4, 7):
        costs = learned(net, noise(2, 4, 3, size), tables(noise(2, 4, 3, size), PLAIN), 3)
        assert costs.shape == (2, 4, 4, 4, 1)
        assert costs.isfinite().all()


def test_the_level_of_grey_around_a_seam_plays_no_part() -> None:
    net = random_net()
    seams = Seams(*(0.2 + 0.5 * torch.rand(5, 3, 4, COLUMNS, generator=generator(seed)) for seed in (0, 1)),
                  torch.zeros(5, MEASURED))
    brighter = Seams(seams.here + 0.25, seams.there + 0.25, seams.measured)
    torch.testing.assert_close(net(brighter), net(seams), atol=1e-4, rtol=1e-4)
    assert (net(Seams(seams.here + 0.25, seams.there, seams.measured)) - net(seams)).abs().max() > 1e-3
    assert (net(Seams(seams.here, seams.there, seams.measured + 1)) - net(seams)).abs().max() > 0.1


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", ["random", "flat", "copies"])
def test_learned_costs_are_finite_and_the_same_from_either_side(flags: Flags, kind: str) -> None:
    states, pieces = states_for(flags), noise(2, 4, 3, 3)
    if kind == "flat":
        pieces = torch.full_like(pieces, 0.3)
    elif kind == "copies":
        pieces = pieces[:, :1].expand_as(pieces)
    costs = learned(random_net(), pieces, tables(pieces, states), 3)
    assert costs.isfinite().all()
    between = ~torch.eye(4, dtype=torch.bool)
    assert costs.diagonal(dim1=2, dim2=3).min() > costs[:, :, between].max()
    seams = torch.arange(costs.numel()).view(costs.shape)[:, :, between].flatten()
    torch.testing.assert_close(costs.flatten()[mirror(seams, costs.shape, states)], costs.flatten()[seams], atol=1e-3,
                               rtol=0)


@pytest.mark.parametrize("flags", [UNCHANGED, TURNED])
def test_learned_costs_add_the_surprise_at_a_seam(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of minus the log probabilities, on both sides, among what was looked at; of 16 at most, and for the rest."""
    states, pieces, count = states_for(flags), noise(1, 5, 3, 3), 5
    measured = tables(pieces, states)
    combined = measured.combined()

    def odds_of(seams: Seams) -> Tensor:
        return -0.7 * seams.measured[:, 0] + 9 * (seams.measured[:, 1] * 5).sin()

    monkeypatch.setattr(SeamNet, "forward", lambda self, seams: odds_of(seams))
    costs = learned(random_net(), pieces, measured, 3, at_once=7)
    looked_at = set(shortlist(combined, 3).flatten().tolist())
    looked_at |= {int(mirror(torch.tensor(one), costs.shape, states)) for one in looked_at}
    odds = {one: float(odds_of(Seams(noise(1, 1, 1, 1), noise(1, 1, 1, 1),
                                     measured_at(torch.tensor([one]), measured)))) for one in looked_at}
    sides: dict[tuple[int, int], list[int]] = {}
    for one in looked_at:
        _, d, i, _, _ = np.unravel_index(one, costs.shape)
        sides.setdefault((int(d), int(i)), []).append(one)

    def surprise(one: int) -> float:
        _, d, i, _, _ = np.unravel_index(one, costs.shape)
        rivals = [odds[other] for other in sides[int(d), int(i)]]
        return float(np.log(np.exp(rivals).sum()) - odds[one])

    assert max(surprise(one) + surprise(int(mirror(torch.tensor(one), costs.shape, states))) for one in looked_at) > 17
    for one, (cost, before) in enumerate(zip(costs.flatten().tolist(), combined.flatten().tolist(), strict=True)):
        _, _, i, j, _ = np.unravel_index(one, costs.shape)
        if i == j:
            continue
        added = 16.0
        if one in looked_at:
            added = min(surprise(one) + surprise(int(mirror(torch.tensor(one), costs.shape, states))), added)
        assert cost == pytest.approx(before + (added - 4) / 2, abs=1e-2)
    assert len(looked_at) < 4 * count * (count - 1) * len(states)


@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
def test_the_networks_favourites_come_first(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the seams at a side that measure alike, the one that the network likes best is the cheapest."""
    states, pieces = states_for(flags), torch.full((1, 4, 3, 3, 3), 0.5)
    pieces += torch.linspace(0, 1e-4, 4)[:, None, None, None]  # hardly to be told apart but by who knows how
    measured = tables(pieces, states)
    mates = {(0, 1), (2, 3)}

    def odds_of(seams: Seams) -> Tensor:
        one, other = (((side.mean((1, 2, 3)) - 0.5).abs() / 1e-4 * 3).round() for side in (seams.here, seams.there))
        return torch.tensor([30.0 if (min(a, b), max(a, b)) in mates else 0.0
                             for a, b in zip(one.tolist(), other.tolist(), strict=True)])

    monkeypatch.setattr(SeamNet, "forward", lambda self, seams: odds_of(seams))
    costs = learned(random_net(), pieces, measured, 3 * len(states))
    best = costs[0].amin(3).argmin(2)
    assert torch.equal(best, torch.tensor([1, 0, 3, 2]).expand(4, -1))


def test_a_single_piece_has_no_seams() -> None:
    for states in (PLAIN, states_for(ETC)):
        costs = learned(random_net(), noise(2, 1, 3, 4), tables(noise(2, 1, 3, 4), states), 8)
        assert costs.shape == (2, 4, 1, 1, len(states))
        assert costs.isfinite().all()


def test_seams_of_photographs_are_told_by_what_is_measured_alone() -> None:
    """The network starts from the measured costs: before it has learnt, it agrees with them more often than not."""
    pieces, _, _ = scrambled(photos(1, 64, 64), 16, PLAIN)
    measured = tables(pieces, PLAIN)
    found = learned(random_net(seed=1), pieces, measured, 6)
    agree = found[0, ..., 0].argmin(2) == measured.combined()[0, ..., 0].argmin(2)
    assert agree.double().mean() > 0.7

"""Bands of frequencies against closed forms."""

import pytest
import torch

from ppbench.attacks._bands import bands, shares
from ppbench.seeding import generator


def steps(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 2, 8, 6, generator=generator(seed))


@pytest.mark.parametrize(("factor", "share"), [(0.25, 0.25), (1, 1), (3, 1), (-1, 0), (0, 0)])
def test_the_way_wanted_is_gone_and_never_beyond_the_estimate_nor_back(factor: float, share: float) -> None:
    taken = steps()
    found = shares((taken * factor * taken).sum(0), taken.square().sum(0))
    torch.testing.assert_close(found, torch.full_like(found, share))


def test_each_band_has_its_own_share_for_each_channel() -> None:
    band = bands(8, 6)
    wanted = torch.linspace(0, 1, int(band.max()) + 1)[band]
    factors = torch.stack([wanted, 1 - wanted])
    taken = steps()
    torch.testing.assert_close(shares((taken * factors * taken).sum(0), taken.square().sum(0)), factors)


def test_frequencies_of_a_band_share_by_least_squares() -> None:
    band = bands(8, 6)
    first = next(number for number in range(int(band.max()) + 1) if (band == number).sum() > 1)
    taken, wanted = steps(1)[:, :1], steps(1)[:, :1] * 0.5 + steps(2)[:, :1] * 0.1
    inside = band == first
    best = torch.linalg.lstsq(taken[..., inside].reshape(-1, 1), wanted[..., inside].reshape(-1, 1)).solution
    found = shares((taken * wanted).sum(0), taken.square().sum(0))
    torch.testing.assert_close(found[:, inside], best.expand_as(found[:, inside]))


def test_a_band_without_steps_is_left_alone() -> None:
    nothing = torch.zeros(1, 4, 4)
    assert torch.equal(shares(nothing, nothing), nothing)


def test_bands_are_numbered_from_the_constant_outwards() -> None:
    assert bands(4, 4).tolist() == [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 4]]
    assert bands(2, 4)[1, 0] == bands(4, 4)[2, 0] == bands(4, 4)[0, 2]

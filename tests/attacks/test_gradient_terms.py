"""What images are expected to be like, by hand."""

import pytest
import torch

from ppbench.attacks._gradient_terms import from_grey, opponent_variation, registered, seams, total_variation
from ppbench.seeding import generator


def test_total_variation_by_hand() -> None:
    images = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]]])[None]
    assert total_variation(images).tolist() == [pytest.approx((0 + 0.5) / 2 + (1 + 0.5) / 2)]


def test_opponents_see_edges_of_colour_that_grey_ones_are_not() -> None:
    grey = torch.zeros(1, 1, 3, 4, 4)
    grey[..., 2:] = 1
    coloured = grey.clone()
    coloured[:, :, 0] = 0
    # of 6 planes (3 channels, 3 differences) of 3 x 3 places, one column of 3 jumps in some
    assert opponent_variation(grey).item() == pytest.approx(3 * 3 / (6 * 9), abs=1e-3)
    assert opponent_variation(coloured).item() == pytest.approx(4 * 3 / (6 * 9), abs=1e-3)
    assert opponent_variation(grey[:, :, :1]).item() == pytest.approx(3 / 9, abs=1e-3)


def test_seams_count_what_lies_between_patches_only() -> None:
    images = torch.zeros(2, 1, 1, 4, 4)
    images[0, ..., 2:] = 1  # between patches of 2
    images[1, ..., 1:] = 1  # within them
    assert seams(images, 2).tolist() == [pytest.approx((4 / 8)**0.5, abs=1e-3), pytest.approx(0, abs=1e-3)]


def test_distance_from_grey() -> None:
    assert from_grey(torch.stack([torch.full((2, 3, 4, 4), 0.5), torch.ones(2, 3, 4, 4)])).tolist() == [0, 0.25]


def test_shifted_copies_agree_where_they_are_registered() -> None:
    image = torch.rand(1, 1, 3, 16, 16, generator=generator(0))
    copies = torch.cat([image] * 6 + [image.roll((1, -2), (3, 4))])
    found = registered(copies, 2)
    torch.testing.assert_close(found[6], copies[6])
    torch.testing.assert_close(found[0], copies[0])
    unmoved = registered(copies, 0)
    torch.testing.assert_close(unmoved[6], copies.mean(0))

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from ppbench.attacks._spectrum import LEAST, spectrum_of
from ppbench.seeding import generator

SIDES = st.integers(2, 9)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 4), st.integers(0, 2**30))
def test_images_come_back_from_their_coefficients(height: int, width: int, channels: int, seed: int) -> None:
    images = torch.rand(12, channels, height, width, generator=generator(seed))
    spectrum = spectrum_of(images)
    there = spectrum.coefficients(images)
    torch.testing.assert_close(spectrum.images(there), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))  # nothing is stretched


def test_of_one_channel_the_coefficients_are_scipys_cosines() -> None:
    images = torch.rand(5, 1, 6, 7, generator=generator(0))
    found = spectrum_of(images).coefficients(images).abs()  # a principal colour may point either way
    torch.testing.assert_close(found, torch.from_numpy(abs(dctn(images.numpy(), axes=(2, 3), norm="ortho"))))


def test_colours_are_principal() -> None:
    grey = torch.rand(200, 1, 4, 4, generator=generator(0)).expand(-1, 3, -1, -1)
    images = grey + 0.01 * torch.randn(200, 3, 4, 4, generator=generator(1))
    colours = spectrum_of(images).colours
    torch.testing.assert_close(colours[2].abs(), torch.full((3,), 3**-0.5), atol=0.01, rtol=0)  # the strongest is last
    torch.testing.assert_close(colours @ colours.mT, torch.eye(3), atol=1e-5, rtol=0)


def test_steps_are_by_deviations_at_first_and_all_alike_at_last() -> None:
    images = torch.rand(300, 3, 8, 8, generator=generator(0)).cumsum(3).cumsum(2) / 64  # mostly coarse
    spectrum = spectrum_of(images)
    deviations = spectrum.coefficients(images - images.mean(0)).square().mean(0).sqrt()
    torch.testing.assert_close(spectrum.scales(1), deviations.clamp(min=LEAST * float(deviations.max())))
    flat = spectrum.scales(0)
    torch.testing.assert_close(flat, flat[0, 0, 0].expand_as(flat))
    mean = deviations.square().mean().item()
    for power in (0.0, 0.5, 1.0):
        assert spectrum.scales(power).square().mean().item() == pytest.approx(mean, rel=1e-3)

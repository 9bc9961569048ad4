"""Controls: nothing protected, nothing left, and what practitioners use in between."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from ppbench.data import Images
from ppbench.defense import Defense, draw_keys
from ppbench.defenses.blur import Blur
from ppbench.defenses.constant import Constant
from ppbench.defenses.gaussian_noise import GaussianNoise
from ppbench.defenses.none import NoDefense
from ppbench.defenses.pixelate import Pixelate
from ppbench.errors import UserError
from ppbench.seeding import generator

SIDES = st.integers(1, 5)
SEEDS = st.integers(0, 2**32)


def some_images(n: int = 5) -> Images:
    return Images(torch.rand(n, 3, 6, 10, generator=generator(0)), torch.arange(n) % 2, torch.arange(n))


@pytest.mark.parametrize("defense", [NoDefense(), Constant(), Pixelate(2), Blur(), GaussianNoise()])
def test_controls_have_no_key_and_name_their_partners(defense: Defense) -> None:
    private = some_images()
    assert defense.key_scopes == ()
    assert draw_keys(defense, None, len(private), private.shape, generator(0)) is None
    release = defense.protect(private, None, generator(0))
    assert torch.equal(release.labels, private.labels)
    assert release.source is not None
    assert torch.equal(release.source, torch.arange(len(private)))
    assert defense.pieces(private.shape) is None


def test_none_changes_nothing() -> None:
    private = some_images()
    release = NoDefense().protect(private, None, generator(0))
    assert torch.equal(release.images, private.pixels)
    assert torch.equal(NoDefense().query(private.pixels, None, generator(0)), private.pixels)
    assert torch.equal(NoDefense().invert(release, None, private.shape), private.pixels)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_constant_is_constant_whatever_comes_in(value: float) -> None:
    private = some_images()
    defense = Constant(value)
    release = defense.protect(private, None, generator(0))
    for images in (release.images, defense.query(private.pixels, None, generator(0)),
                   defense.invert(release, None, private.shape)):
        assert torch.equal(images, torch.full((5, 3, 6, 10), value))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_constant_refuses_a_grey_outside_the_range(value: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        Constant(value)


@pytest.mark.parametrize("defense", [Pixelate(2), Blur(1.5)])
def test_queries_and_inverse_of_a_fixed_map(defense: Defense) -> None:
    """The same for test images, and nobody can undo it: the inverse is the release."""
    private = some_images()
    release = defense.protect(private, None, generator(0))
    assert torch.equal(defense.query(private.pixels, None, generator(1)), release.images)
    assert torch.equal(defense.invert(release, None, private.shape), release.images)


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 3]), SIDES, SIDES, st.integers(1, 6), SEEDS)
def test_pixelate_replaces_every_block_by_its_mean(n: int, c: int, rows: int, cols: int, block: int,
                                                   seed: int) -> None:
    images = torch.rand(n, c, rows * block, cols * block, generator=generator(seed))
    out = Pixelate(block).encrypt(images, {}, generator(0))
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    for y in range(0, rows * block, block):
        for x in range(0, cols * block, block):
            mean = images[:, :, y:y + block, x:x + block].double().mean((2, 3), keepdim=True)
            found = out[:, :, y:y + block, x:x + block]
            assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
            torch.testing.assert_close(found[:, :, :1, :1].double(), mean, atol=1e-6, rtol=0)


def test_pixelate_stays_in_the_range() -> None:
    white = torch.ones(1, 3, 9, 9)
    assert torch.equal(Pixelate(3).encrypt(white, {}, generator(0)), white)


@pytest.mark.parametrize("block", [0, 3, -2, 16])
def test_pixelate_refuses_blocks_that_do_not_tile(block: int) -> None:
    with pytest.raises(UserError, match=f"block={block} does not divide .*choose one of 1, 2"):
        Pixelate(block).check((3, 8, 10))


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20), st.floats(0.05, 20), SEEDS)
def test_blur_agrees_with_scipy(n: int, c: int, h: int, w: int, sigma: float, seed: int) -> None:
    """Also where the kernel is several times as wide as the image."""
    images = torch.rand(n, c, h, w, generator=generator(seed))
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=4.0)
    out = Blur(sigma).encrypt(images, {}, generator(0))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


def test_blur_keeps_the_mean_colour_and_the_range() -> None:
    images = torch.rand(4, 3, 12, 20, generator=generator(0))
    out = Blur(3.0).encrypt(images, {}, generator(0))
    torch.testing.assert_close(out.mean((2, 3)), images.mean((2, 3)), atol=1e-6, rtol=0)
    white = Blur(3.0).encrypt(torch.ones(1, 1, 7, 5), {}, generator(0))
    assert white.max() <= 1
    torch.testing.assert_close(white, torch.ones(1, 1, 7, 5), atol=1e-6, rtol=0)


def test_blur_can_be_differentiated() -> None:
    images = torch.full((1, 1, 5, 4), 0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Blur(1.0).encrypt(x, {}, generator(0)), images)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [Blur, GaussianNoise])
def test_a_width_must_be_positive(kind: Any, sigma: float) -> None:
    with pytest.raises(ValueError, match=r"sigma is .*; it must be above 0"):
        kind(sigma)


def test_a_blur_wider_than_the_image_is_refused() -> None:
    Blur(10.0).check((3, 6, 10))
    with pytest.raises(UserError, match=r"wider than images of 6 x 10 pixels: choose at most 10"):
        Blur(10.5).check((3, 6, 10))


def test_noise_is_gaussian_of_the_given_width() -> None:
    grey = torch.full((10, 3, 20, 30), 0.5)
    out = GaussianNoise(0.1).encrypt(grey, {}, generator(0))  # 5 sigma to either end: nothing is cut off
    assert out.dtype == torch.float32
    assert stats.kstest(((out - 0.5) / 0.1).flatten().double().numpy(), "norm").pvalue > 0.01


def test_noise_is_independent_of_pixel_and_image_and_clamped() -> None:
    out = GaussianNoise(0.3).encrypt(torch.full((2, 3, 40, 40), 0.5), {}, generator(0))
    assert out.min() == 0
    assert out.max() == 1
    for one, other in ((out[0], out[1]), (out[:, 0], out[:, 1]), (out[..., 1:], out[..., :-1])):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.05


def test_noise_comes_from_the_generator_and_is_fresh_for_queries() -> None:
    private, defense = some_images(), GaussianNoise()
    first, again, other = (defense.protect(private, None, generator(seed)).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(defense.query(private.pixels, None, generator(1)), first)

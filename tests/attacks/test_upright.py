"""Bringing whole images upright: by toy networks, and by one that learnt from photographs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jigsaw_pieces import ETC, FLAGS, TURNED, Flags, crops, slow_put, states_for
from release_views import view_of
from torch import Tensor, nn

from ppbench.attacks._states import States
from ppbench.attacks._upright import UprightPrior, _choices, _put, _told, thumbnails, upright
from ppbench.seeding import generator


class Toy(nn.Module):
    """Likes images that are brightest in the left upper corner and there most of all in the first channel."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[2] // 2, images.shape[3] // 2
        top, left = images[:, :, :half[0]], images[:, :, :, :half[1]]
        found = images.mean((1, 2, 3)) + top.mean((1, 2, 3)) * 2 + left.mean((1, 2, 3))
        if images.shape[1] > 1:
            found = found + 3 * images[:, 0].mean((1, 2)) + images[:, 1].mean((1, 2))
        return found[:, None]


def looks(image: np.ndarray, states: States) -> list[np.ndarray]:
    return [slow_put(image, states, state) for state in range(len(states))]


def score(image: np.ndarray) -> float:
    return float(Toy()(thumbnails(torch.from_numpy(image.copy())[None])))


@given(st.sampled_from(FLAGS), st.sampled_from([1, 3]), st.sampled_from([(4, 4), (8, 8), (32, 32), (4, 8), (16, 6)]),
       st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_state_with_the_best_score_is_chosen(flags: Flags, channels: int, shape: tuple[int, int], seed: int,
                                                 ) -> None:
    """Of those that leave an image its shape."""
    states, images = states_for(flags, channels), torch.rand(2, channels, *shape, generator=generator(seed))
    found = upright(images, states, Toy(), torch.arange(2))
    assert found.shape == images.shape
    for image, one in zip(images.numpy(), found.numpy(), strict=True):
        possible = [look for look in looks(image, states) if look.shape == image.shape]
        assert any(np.allclose(one, look) for look in possible)
        assert score(one) == pytest.approx(max(score(look) for look in possible), abs=1e-5)


@pytest.mark.parametrize("flags", [TURNED, ETC])
def test_images_of_one_group_are_brought_into_one_state(flags: Flags) -> None:
    states, images = states_for(flags), torch.rand(6, 3, 8, 8, generator=generator(0))
    groups = torch.tensor([7, 3, 7, 3, 3, 7])
    found = upright(images, states, Toy(), groups)
    for group in (3, 7):
        mine = (groups == group).nonzero()[:, 0].tolist()
        sums = [sum(score(slow_put(images[n].numpy(), states, state)) for n in mine) for state in range(len(states))]
        for n in mine:
            np.testing.assert_allclose(found[n], slow_put(images[n].numpy(), states, int(np.argmax(sums))), atol=1e-6)
    alone = upright(images, states, Toy(), torch.arange(6))
    assert not torch.equal(alone, found)


def test_images_that_are_upright_are_left_alone() -> None:
    states, images = states_for(ETC), torch.rand(3, 3, 8, 8, generator=generator(0))
    once = upright(images, states, Toy(), torch.arange(3))
    torch.testing.assert_close(upright(once, states, Toy(), torch.arange(3)), once)
    plain = states_for((False, False, False))
    assert torch.equal(upright(images, plain, Toy(), torch.arange(3)), images)


@pytest.mark.parametrize("flags", FLAGS)
def test_whole_images_are_put_into_states_as_pieces_are(flags: Flags) -> None:
    states, images = states_for(flags), torch.rand(2, 3, 4, 6, generator=generator(0))
    for state in range(len(states)):
        found = _put(images, states, state)
        for image, one in zip(images.numpy(), found.numpy(), strict=True):
            np.testing.assert_allclose(one, slow_put(image, states, state))


@pytest.mark.parametrize(("shape", "side"), [((32, 32), 16), ((64, 48), 16), ((8, 20), 8), ((3, 3), 3)])
def test_thumbnails_are_small_squares_that_are_turned_with_the_image(shape: tuple[int, int], side: int) -> None:
    images = torch.rand(2, 3, *shape, generator=generator(0))
    small = thumbnails(images)
    assert small.shape == (2, 3, side, side)
    torch.testing.assert_close(thumbnails(images.rot90(1, (2, 3))), small.rot90(1, (2, 3)))
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), atol=0.05, rtol=0)


@pytest.mark.parametrize("flags", [flags for flags in FLAGS if any(flags)])
def test_an_image_is_told_from_itself_in_other_states(flags: Flags) -> None:
    states, images = states_for(flags), torch.rand(40, 3, 4, 4, generator=generator(0))
    found = _choices(images, states, generator(1))
    assert found.shape == (40, min(8, len(states) - flags[0]), 3, 4, 4)  # not mirrored, which is as good
    mirrored = 0
    for image, choices in zip(images.numpy(), found.numpy(), strict=True):
        flipped = not np.array_equal(choices[0], image)
        mirrored += flipped
        real = image[:, :, ::-1] if flipped else image
        every = looks(real, states)
        np.testing.assert_array_equal(choices[0], real)
        which = [[n for n, look in enumerate(every) if np.allclose(choice, look)] for choice in choices]
        assert all(len(one) == 1 for one in which)
        assert len({one[0] for one in which}) == len(choices)
        assert not any(np.allclose(choice, real[:, :, ::-1]) for choice in choices)
    assert 8 < mirrored < 32


@pytest.mark.parametrize(("flags", "channels", "steps"), [(TURNED, 3, 2), ((False, True, False), 1, 2), (ETC, 3, 2)])
def test_a_prior_is_learnt_and_loaded(flags: Flags, channels: int, steps: int) -> None:
    public = crops(12, 16)
    if channels == 1:
        public = replace(public, pixels=public.pixels[:, :1])
    view = view_of(public[:2], public, "block-scrambling", {"preset": "etc", "block": 8}, "image")
    prior, before = UprightPrior(*flags, steps), torch.random.get_rng_state()
    found, again = (prior.train(prior.seen(view), generator(2)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert found["objective"].isfinite().all()
    net = prior.load(found, channels)
    assert not net.training
    assert net(thumbnails(public.pixels)).shape == (12, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_public_images_is_no_error(count: int) -> None:
    view = view_of(crops(2, 16), crops(count, 16), "block-scrambling", {"preset": "etc", "block": 8}, "image")
    assert UprightPrior(True, True, True, 2).train(view, generator(0))["objective"].isfinite().all()


@pytest.mark.slow
def test_a_learnt_network_brings_photographs_upright() -> None:
    """Crops of the photographs that it learnt from, from another part of each."""
    flags = (False, True, True)
    public, private = crops(600, 32), crops(60, 32, "private").pixels
    view = view_of(public[:2], public, "block-scrambling", {"preset": "etc", "block": 8}, "image")
    prior, states = UprightPrior(*flags, 200), states_for(flags)
    net = prior.load(prior.train(view, generator(0)), 3)
    how = torch.randint(len(states), (60,), generator=generator(1))
    shown = torch.cat([_put(one[None], states, state) for one, state in zip(private, how.tolist(), strict=True)])
    right = (upright(shown, states, net, torch.arange(60)) - private).abs().amax((1, 2, 3)) < 1e-3
    assert right.double().mean() > 0.5  # 1 in 12 by chance
    together = upright(_put(private, states, 7), states, net, torch.zeros(60, dtype=torch.int64))
    torch.testing.assert_close(together, private)


class Top(nn.Module):
    """Likes images that are brighter above, and somewhat those that are brighter on the left."""

    def forward(self, images: Tensor) -> Tensor:
        above = images[:, :, :2].mean((1, 2, 3)) - images[:, :, 2:].mean((1, 2, 3))
        return (above + (images[..., :2].mean((1, 2, 3)) - images[..., 2:].mean((1, 2, 3))) / 10)[:, None]


def test_how_often_the_state_is_told_is_a_share_of_images() -> None:
    """Or that of a mirror image, which is as good."""
    images = torch.zeros(4, 3, 4, 4)
    images[:3, :, :2] = 1
    images[3, :, 2:] = 1
    images[:2, :, 0, 0] = 0.7  # nothing is a mirror image of itself, and the first two look best mirrored
    images[2:, :, 0, 3] = 0.7
    assert _told(Top(), images, states_for(TURNED)) == 0.75

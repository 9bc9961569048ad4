"""Estimates made to agree with what was seen."""

import pytest
import torch
from release_views import natural, view_of
from torch import Tensor

from ppbench.attacks._affine import mirrors
from ppbench.attacks._consistent import as_seen
from ppbench.data import Images
from ppbench.seeding import generator
from ppbench.view import View

PRIVATE, PUBLIC = natural(6, (3, 16, 16), 0), natural(20, (3, 16, 16), 1)
LINEAR = [("mixup", {"patch": 4}), ("mixup", {"patch": 8}), ("pixelate", {"block": 4}), ("blur", {"sigma": 1.0})]


def off(view: View, images: Tensor) -> Tensor:
    again = view.algorithm.protect(Images(images, PRIVATE.labels, PRIVATE.ids), generator(0)).images
    return (again - view.images).abs()


@pytest.mark.parametrize(("name", "params"), LINEAR)
def test_estimates_become_those_that_are_released_as_seen_and_nearer(name: str, params: dict[str, object]) -> None:
    view = view_of(PRIVATE, PUBLIC, name, params)
    rough = (PRIVATE.pixels + 0.05 * torch.randn(PRIVATE.pixels.shape, generator=generator(0))).clamp(0, 1)
    found = as_seen(view, rough, view.images)
    assert off(view, rough).max() > 4 / 255
    assert off(view, found).max() < 3.01 / 255
    assert (off(view, found) > 1.01 / 255).float().mean() < 0.01
    error, before = ((x - PRIVATE.pixels).square().flatten(1).mean(1) for x in (found, rough))
    assert (error < before).all()


def test_the_nearest_point_is_found() -> None:
    """Of four pixels with too low a mean, each is raised by what the mean lacks."""
    view = view_of(PRIVATE, PUBLIC, "mixup", {"patch": 2})
    rough = 0.25 + 0.5 * torch.rand(PRIVATE.pixels.shape, generator=generator(0))
    seen = torch.full_like(view.images, 0.5)
    lacking = 0.5 - torch.nn.functional.avg_pool2d(rough, 2)
    expected = rough + lacking.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(as_seen(view, rough, seen), expected, atol=1e-2)


@pytest.mark.parametrize(("name", "scope"), [("block-scrambling", "global"), ("gaussian-noise", None)])
def test_estimates_stay_where_there_is_no_fixed_linear_map(name: str, scope: str | None) -> None:
    view, images = view_of(PRIVATE, PUBLIC, name, scope=scope), torch.rand(6, 3, 16, 16, generator=generator(0))
    assert as_seen(view, images, view.images) is images


@pytest.mark.parametrize(("name", "params"), LINEAR)
def test_averages_of_mirrored_images_are_mirrored(name: str, params: dict[str, object]) -> None:
    assert mirrors(view_of(PRIVATE, PUBLIC, name, params)) == [3, 2]


@pytest.mark.parametrize(("name", "params", "scope"), [("block-scrambling", {}, "global"), ("gaussian-noise", {}, None),
                                                       ("mixup", {"images": 2}, None)])
def test_keys_and_noise_are_not(name: str, params: dict[str, object], scope: str | None) -> None:
    assert mirrors(view_of(PRIVATE, PUBLIC, name, params, scope=scope)) == []

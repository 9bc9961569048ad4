"""Flags of a single cell, each on a hand-made case and on its nearest innocent neighbour."""

import pytest
import torch

from ppbench.attack import Reconstruction
from ppbench.suspect import FEWEST, flags, interval_condition

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.rand(FEWEST, 3, 8, 8, generator=RNG)
RELEASED = torch.rand(FEWEST, 3, 8, 8, generator=RNG)
GREY = torch.full_like(RELEASED, 0.5)


def test_different_images_of_enough_targets_are_not_suspect() -> None:
    assert flags(Reconstruction(IMAGES), RELEASED) == []
    assert flags(Reconstruction(IMAGES, objective=torch.tensor([2.0, 3.0, 1.0])), RELEASED) == []


def test_few_targets() -> None:
    assert flags(Reconstruction(IMAGES[:-1]), RELEASED[:-1]) == ["too-few-targets"]


def test_one_image_for_all_is_suspect_only_where_the_releases_differ() -> None:
    same = IMAGES[:1].expand_as(IMAGES) + 0.5 / 255 * torch.rand(IMAGES.shape, generator=RNG)
    assert flags(Reconstruction(same), RELEASED) == ["same-output"]
    assert flags(Reconstruction(same), GREY) == []
    assert flags(Reconstruction(same), GREY, chained=True) == ["same-output"]
    one_differs = torch.cat([same[:-1], IMAGES[-1:]])
    assert flags(Reconstruction(one_differs), RELEASED) == []


@pytest.mark.parametrize("objective", [
    torch.tensor([1.0, 0.5, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0]),
    torch.tensor([[1.0, 1.0], [0.5, 2.0]]), torch.tensor([1.0, float("nan")])])
def test_an_objective_that_ends_no_lower_is_suspect(objective: torch.Tensor) -> None:
    assert flags(Reconstruction(IMAGES, objective=objective), RELEASED) == ["objective-never-fell"]


def test_an_objective_is_averaged_over_its_parts() -> None:
    objective = torch.tensor([[1.0, 3.0], [1.5, 0.0]])
    assert flags(Reconstruction(IMAGES, objective=objective), RELEASED) == []


@pytest.mark.parametrize(("scope", "keys", "condition"), [
    (None, 0, "this seed"), ("global", 1, "this key and seed"), ("client", 4, "this key and seed"),
    ("client", 5, "this seed"), ("image", 16, "this seed")])
def test_what_an_interval_is_conditional_on(scope: str | None, keys: int, condition: str) -> None:
    assert interval_condition(scope, keys) == condition

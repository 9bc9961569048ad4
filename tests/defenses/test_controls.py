"""The two ends of the scale: nothing protected, and nothing left."""

import pytest
import torch

from ppbench.data import Images
from ppbench.defense import Defense, draw_keys
from ppbench.defenses.constant import Constant
from ppbench.defenses.none import NoDefense
from ppbench.seeding import generator


def some_images(n: int = 5) -> Images:
    return Images(torch.rand(n, 3, 6, 10, generator=generator(0)), torch.arange(n) % 2, torch.arange(n))


@pytest.mark.parametrize("defense", [NoDefense(), Constant()])
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

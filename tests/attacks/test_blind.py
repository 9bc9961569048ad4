from pathlib import Path

import pytest
import torch

from ppbench.attack import check_reconstruction
from ppbench.attacks.blind import Blind
from ppbench.calibrate import BlindGuess, Guesses
from ppbench.data import Images
from ppbench.errors import NotApplicable
from ppbench.metrics import ssim
from ppbench.plugins import load_class
from ppbench.seeding import generator
from ppbench.view import Sealed, View


def patterned(count: int, seed: int) -> Images:
    """Two classes: bright on the left and bright on the right, in noise."""
    labels = torch.arange(count) % 2
    ramp = torch.linspace(0, 0.7, 16).expand(1, 16, 16)
    pixels = torch.where(labels.reshape(-1, 1, 1, 1) == 0, ramp, ramp.flip(2))
    return Images(pixels + 0.3 * torch.rand(count, 1, 16, 16, generator=generator(seed)), labels, torch.arange(count))


def view_of(granted: set[str], private: Images) -> View:
    labels = private.labels if "labels" in granted else None
    return View(Sealed(frozenset(granted), (1, 16, 16), (1, 16, 16), len(private), 2, labels, public=patterned(40, 0)))


def run(attack: Blind, view: View, seed: int = 0) -> torch.Tensor:
    priors = {name: prior.train(prior.seen(view), generator(3)) for name, prior in attack.priors(view).items()}
    found = attack.run(view.only(attack.requires | {"labels"}), priors, generator(seed))
    check_reconstruction(found, view)
    assert found.note.startswith("blind guess: ")
    return found.images


def test_it_is_registered() -> None:
    assert load_class("attacks", "blind") is Blind


@pytest.mark.parametrize("metric", ["ssim", "identification"])
def test_it_equals_the_floor_fitted_with_the_same_generator(metric: str) -> None:
    private = patterned(6, 1)
    for granted, labels in (({"public"}, None), ({"public", "labels"}, private.labels)):
        view = view_of(granted, private)
        floor = Guesses.from_tensors(BlindGuess(metric).train(view, generator(3)))  # type: ignore[arg-type]
        expected = floor.knowing(labels).for_targets(labels, 6, view.public)
        for seed in (0, 1):
            assert torch.equal(run(Blind(metric), view, seed), expected)  # type: ignore[arg-type]


def test_labels_help_where_classes_differ() -> None:
    private = patterned(20, 1)
    blind, knowing = (ssim(run(Blind(), view_of(granted, private)), private.pixels).mean()
                      for granted in ({"public"}, {"public", "labels"}))
    assert knowing > blind + 0.1


def test_nothing_beyond_public_images_and_labels_is_read() -> None:
    """Reading more would raise NotGranted: the view holds no release, algorithm or model."""
    assert Blind.requires == {"public"}
    assert BlindGuess.needs == {"public"}
    assert run(Blind(), view_of({"public"}, patterned(3, 1))).shape == (3, 1, 16, 16)


def test_without_lpips_weights_there_is_no_lpips_guess(tmp_path: Path) -> None:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    try:
        with pytest.raises(NotApplicable, match="ppbench weights fetch"):
            run(Blind("lpips"), view_of({"public"}, patterned(3, 1)))
    finally:
        torch.hub.set_dir(before)

"""Floors: the best of what blind guesses and random public images reach on the targets."""

import pytest
import torch
from torch import Tensor

from ppbench.calibrate import Guess, Guesses, random_floor
from ppbench.data import Images, Split
from ppbench.floors import Floors, floors
from ppbench.matching import Order
from ppbench.metrics import ssim
from ppbench.scorers import ScoreSettings, Yardstick
from ppbench.seeding import generator

TARGETS = 8


def images(count: int, seed: int) -> Images:
    """Smooth random images of two classes."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator(seed))
    pixels = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    return Images(pixels, torch.arange(count) % 2, torch.arange(count))


SPLIT = Split(images(10, 0), images(30, 1), images(4, 2), 2)
YARDSTICK = Yardstick(SPLIT, TARGETS, ScoreSettings(["ssim", "psnr"]))


def guessing(guess: Tensor, order: Order | None = None, labels_known: bool = False) -> Floors:
    """Return the floors beside one guess for all, or for each of two classes."""
    best = Guess("class-mean" if len(guess) > 1 else "mean", guess, 0)
    return floors(YARDSTICK, order or Order(), {"ssim": Guesses(best, best)}, labels_known, generator(0))


@pytest.mark.parametrize("labels_known", [False, True])
@pytest.mark.parametrize("order", [Order(), Order(False), Order(False, 3)], ids=str)
def test_without_a_guess_the_floor_is_that_of_random_public_images(order: Order, labels_known: bool) -> None:
    found = floors(YARDSTICK, order, {}, labels_known, generator(0))
    labels = SPLIT.private.labels[:TARGETS] if labels_known else None
    private = SPLIT.private.pixels[:TARGETS]
    expected = random_floor(SPLIT.public, labels, private, {"ssim": lambda x: ssim(x, private)}, order, generator(0))
    assert found.scores.keys() == {"ssim"}  # nothing says how good PSNR can be
    torch.testing.assert_close(found.scores["ssim"], expected["ssim"])
    assert found.methods == {"ssim": "random public images" + ("" if order.aligned else ", assigned")}


def test_in_given_order_the_guess_is_the_floor_whatever_it_is_worth() -> None:
    """It won on public images; private ones have no say in which guess is made."""
    guess = torch.rand(1, 3, 16, 16, generator=generator(5))
    found = guessing(guess)
    torch.testing.assert_close(found.scores["ssim"],
                               ssim(guess.expand(TARGETS, -1, -1, -1), SPLIT.private.pixels[:TARGETS]).double())
    assert found.methods == {"ssim": "mean"}


def test_a_guess_of_the_class_follows_the_targets_labels() -> None:
    private = SPLIT.private.pixels[:TARGETS]
    found = guessing(private[:2], labels_known=True)
    assert found.scores["ssim"][:2].tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(found.scores["ssim"], ssim(private[:2].repeat(4, 1, 1, 1), private).double())


def test_of_a_set_without_order_the_better_of_two_is_the_floor() -> None:
    noise, lucky = torch.rand(1, 3, 16, 16, generator=generator(5)), SPLIT.private.pixels[:2]
    assert guessing(noise, order=Order(False)).methods == {"ssim": "random public images, assigned"}
    assert guessing(lucky, order=Order(False), labels_known=True).methods == {"ssim": "class-mean"}


def test_a_higher_lpips_is_no_better() -> None:
    found = Floors()
    for column, scores in (("lpips", [0.5, 0.3, 0.4]), ("ssim", [0.5, 0.3, 0.6])):
        for score in scores:
            found.put(column, torch.tensor([score]), f"guess {score}")
    assert found.methods == {"lpips": "guess 0.3", "ssim": "guess 0.6"}
    assert (float(found.scores["lpips"]), float(found.scores["ssim"])) == pytest.approx((0.3, 0.6))


def test_people_without_another_photo_do_not_decide_between_floors() -> None:
    found = Floors()
    found.put("verification", torch.tensor([float("nan"), 0.2]), "one")
    found.put("verification", torch.tensor([float("nan"), 0.4]), "other")
    assert found.methods == {"verification": "other"}

"""What a victim learns from: augmentation before protection, and images that are protected anew."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.data import Images
from ppbench.defense import Keys, PerImageDefense, Release, draw_keys
from ppbench.lessons import Extended, Lesson, Renewed, Same, augmented, batch_rows, lesson_of
from ppbench.seeding import generator


def pictures(count: int = 6, side: int = 16, channels: int = 3) -> Images:
    pixels = torch.rand(count, channels, side, side, generator=generator(1))
    return Images(pixels, torch.arange(count) % 3, torch.arange(count))


@dataclass(frozen=True)
class Roll(PerImageDefense):
    """Roll every image by its key."""

    key_scopes = ("image", "global")

    def keys(self, count: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensors:
        return {"by": torch.randint(1, shape[2], (count,), generator=rng)}

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        return torch.stack([one.roll(int(by), -1) for one, by in zip(images, key["by"], strict=True)])


def test_a_release_teaches_its_labels_or_shares() -> None:
    hard = Release(torch.zeros(2, 1, 4, 4), torch.tensor([1, 0]), None)
    assert lesson_of(hard).goals.tolist() == [1, 0]
    soft = Release(hard.images, hard.labels, None, soft_labels=torch.tensor([[0.25, 0.75], [1.0, 0.0]]), temperature=4)
    assert lesson_of(soft).goals.shape == (2, 2)
    assert lesson_of(soft).temperature == 4


@pytest.mark.parametrize("soft", [False, True])
def test_what_a_trainer_adds_stands_behind_every_lesson_and_is_not_augmented(soft: bool) -> None:
    private, more = pictures(), pictures(4)
    shares = torch.softmax(torch.rand(6, 3, generator=generator(2)), 1)
    given = Lesson(private.pixels, shares if soft else private.labels, 2.0)
    lesson = Extended(Same(given, "crop-flip"), more).of_epoch(generator(3))
    alone = Same(given, "crop-flip").of_epoch(generator(3))
    assert torch.equal(lesson.images[:6], alone.images)
    assert torch.equal(lesson.images[6:], more.pixels)
    assert torch.equal(lesson.goals[:6], given.goals)
    assert lesson.goals[6:].tolist() == ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]] if soft else [0, 1, 2, 0])
    assert lesson.temperature == 2


@given(st.integers(1, 5), st.sampled_from([8, 9, 16]), st.sampled_from([8, 12]), st.integers(0, 2**32))
def test_every_augmented_pixel_is_one_of_its_own_image_within_reach(count: int, height: int, width: int,
                                                                    seed: int) -> None:
    # Values name their place: image, row and column can be read off.
    places = torch.arange(count * height * width, dtype=torch.float32).reshape(count, 1, height, width)
    images = places.expand(-1, 3, -1, -1)
    found = augmented(images, "crop-flip", generator(seed))
    assert found.shape == images.shape
    assert torch.equal(found[:, 0], found[:, 2])
    image, place = found[:, 0].long() // (height * width), found[:, 0].long() % (height * width)
    assert (image == torch.arange(count)[:, None, None]).all()
    row, column = place // width, place % width
    here = torch.arange(height)[None, :, None]
    assert ((row - here).abs() <= height // 8).all()
    there = torch.arange(width)[None, None, :]
    straight = ((column - there).abs() <= width // 8).flatten(1).all(1)
    mirrored = ((width - 1 - column - there).abs() <= width // 8).flatten(1).all(1)
    assert (straight | mirrored).all()


def test_flips_come_one_time_in_two_and_for_each_image() -> None:
    images = torch.arange(8.0).expand(400, 1, 8, 8)
    found = augmented(images, "flip", generator(0))
    flipped = (found[:, 0, 0, 0] == 7).sum()
    assert 160 < flipped < 240
    assert torch.equal(augmented(images, "none", generator(0)), images)


def test_the_same_release_comes_again_in_every_epoch() -> None:
    lesson = Lesson(pictures().pixels, pictures().labels)
    same = Same(lesson)
    assert torch.equal(same.of_epoch(generator(0)).images, same.of_epoch(generator(1)).images)
    assert not torch.equal(Same(lesson, "flip").of_epoch(generator(0)).images, lesson.images)


@pytest.mark.parametrize(("scope", "stays"), [("global", True), ("image", False)])
def test_keys_of_one_image_are_drawn_anew_and_others_stay(scope: str, stays: bool) -> None:
    images, defense = pictures(), Roll()
    keys = draw_keys(defense, scope, 6, images.shape, generator(3))  # type: ignore[arg-type]
    renewed = Renewed(images, defense, keys, scope, 8)  # type: ignore[arg-type]
    rng = generator(0)
    first, second = renewed.of_epoch(rng), renewed.of_epoch(rng)
    assert torch.equal(first.images, second.images) == stays
    assert torch.equal(first.goals, images.labels)
    assert torch.equal((first.images * 255).round(), first.images * 255)  # as a client could send them
    again = generator(0)
    assert torch.equal(renewed.of_epoch(again).images, first.images)


def test_images_are_augmented_before_they_are_protected() -> None:
    @dataclass(frozen=True)
    class Mark(PerImageDefense):
        """Mark the upper left pixel: it must stay where it is."""

        def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
            marked = images.clone()
            marked[:, :, 0, 0] = 1
            return marked

    dark = Images(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), torch.arange(8))
    found = Renewed(dark, Mark(), None, None, 8, "crop-flip").of_epoch(generator(0)).images
    assert (found[:, :, 0, 0] == 1).all()
    assert found.sum() == 8


def test_a_defense_draws_from_its_own_generator() -> None:
    @dataclass(frozen=True)
    class Draws(PerImageDefense):
        """Draw from every generator there is."""

        def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
            torch.rand(3)
            torch.rand(3, generator=rng)
            return super().protect(private, keys, rng)

        def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
            return images

    torch.manual_seed(0)
    before = torch.get_rng_state()
    Renewed(pictures(), Draws(), None, None, 8).of_epoch(generator(0))
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 40), st.integers(1, 12))
def test_batches_hold_every_row_once_and_none_is_alone(count: int, size: int) -> None:
    batches = batch_rows(torch.arange(count), size)
    assert torch.cat(batches).tolist() == list(range(count))
    assert count == 1 or size == 1 or min(map(len, batches)) > 1

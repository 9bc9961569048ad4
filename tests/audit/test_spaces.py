"""The nearest images: against brute force; copies that were mirrored or shifted are found."""

import pytest
import torch
from release_views import natural

from ppbench.audit import spaces
from ppbench.audit.spaces import by_features, by_lpips, by_pixels
from ppbench.perceptual import Lpips, Trunk, find_trunk

SHAPE = (3, 16, 16)
IMAGES, OTHERS = natural(5, SHAPE, 0).pixels, natural(9, SHAPE, 1).pixels


def test_the_nearest_by_pixels_of_all_mirrored_and_shifted() -> None:
    found = by_pixels(IMAGES, OTHERS, 1)
    inner = IMAGES[:, :, 1:-1, 1:-1]
    candidates = torch.stack([each[:, :, y:y + 14, x:x + 14] for each in (OTHERS, OTHERS.flip(3))
                              for y in range(3) for x in range(3)])
    gaps = (inner[:, None, None] - candidates).double().square().mean((3, 4, 5)).sqrt().amin(1)
    assert torch.equal(found.index, gaps.argmin(1))
    assert torch.allclose(found.distance, gaps.amin(1), atol=1e-6)


@pytest.mark.parametrize(("shift", "moved"), [(0, (0, 0)), (2, (2, -1)), (2, (-2, 2))])
@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_at_no_distance(shift: int, moved: tuple[int, int], mirrored: bool) -> None:
    copies = IMAGES.roll(moved, (2, 3)).flip(3) if mirrored else IMAGES.roll(moved, (2, 3))
    found = by_pixels(IMAGES, torch.cat([OTHERS, copies]), shift)
    assert found.distance.tolist() == [0] * 5
    assert found.index.tolist() == [9, 10, 11, 12, 13]


def test_further_shifts_are_not_copies() -> None:
    assert (by_pixels(IMAGES, IMAGES.roll(3, 3), 2).distance > 0.01).all()


def test_features_in_parts_are_features_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    among = torch.cat([OTHERS, IMAGES.flip(3)])
    whole = by_features(IMAGES, among, lambda x: x.flatten(1))
    monkeypatch.setattr(spaces, "_CHUNK_VALUES", 4 * 768)
    parts = by_features(IMAGES, among, lambda x: x.flatten(1))
    assert whole.index.tolist() == parts.index.tolist() == [9, 10, 11, 12, 13]
    assert whole.distance.tolist() == parts.distance.tolist() == [0] * 5


@pytest.mark.real
def test_the_nearest_by_lpips() -> None:
    trunk = find_trunk("squeeze")
    if not isinstance(trunk, Trunk):
        pytest.skip(trunk)
    lpips = Lpips(trunk)
    found = by_lpips(IMAGES, OTHERS, lpips)
    pairs = torch.stack([torch.stack([lpips(image.expand_as(each), each) for each in (OTHERS, OTHERS.flip(3))])
                         for image in IMAGES]).amin(1)
    assert torch.equal(found.index, pairs.argmin(1))
    assert torch.allclose(found.distance, pairs.amin(1).double().sqrt(), atol=1e-5)

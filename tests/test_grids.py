"""Pictures of reconstructions: they decode, have room for every column, and show the right pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ppbench.grids import GAP, HEADER, MARGIN, MOST_ROWS, TILE, Column, draw_grid, tile


def picture(private: torch.Tensor, released: torch.Tensor, columns: list[Column], title: str = "t") -> Image.Image:
    found = Image.open(io.BytesIO(draw_grid(title, private, released, True, columns)))
    found.load()
    return found


def place(row: int, column: int) -> tuple[int, int]:
    """Return where a tile's middle lies."""
    return (MARGIN + column * (TILE + GAP) + TILE // 2, MARGIN + 22 + HEADER + row * (TILE + GAP) + TILE // 2)


@pytest.mark.parametrize(("targets", "attacks"), [(1, 0), (3, 1), (8, 4), (20, 2)])
def test_the_picture_has_a_tile_a_target_and_column(targets: int, attacks: int) -> None:
    images = torch.rand(targets, 3, 16, 16)
    columns = [Column(f"attack {i}", "white-box", {"ssim": 0.5}, images) for i in range(attacks)]
    found = picture(images, images[:, :, ::2, ::2], columns)
    rows = min(targets, MOST_ROWS)
    assert found.format == "PNG"
    assert found.mode == "RGB"
    assert found.size == (2 * MARGIN + (2 + attacks) * (TILE + GAP) - GAP,
                          2 * MARGIN + 22 + HEADER + rows * (TILE + GAP) - GAP)


def test_every_tile_stands_in_its_row_and_column() -> None:
    def flat(levels: list[float], channels: int = 3, side: int = 16) -> torch.Tensor:
        return torch.tensor(levels)[:, None, None, None].expand(-1, channels, side, side)

    columns = [Column("one", "", {}, flat([0.6, 0.7])), Column("grey", "", {"ssim": None}, flat([0.8, 0.9], 1))]
    found = picture(flat([0.0, 0.2]), flat([0.4, 0.5], 1, 8), columns)
    for column, levels in enumerate([(0.0, 0.2), (0.4, 0.5), (0.6, 0.7), (0.8, 0.9)]):
        for row, level in enumerate(levels):
            assert found.getpixel(place(row, column)) == (round(level * 255),) * 3


@pytest.mark.parametrize("side", [1, 8, 25, 32])
def test_small_images_are_enlarged_as_squares(side: int) -> None:
    image = (torch.rand(3, side, side) * 255).round() / 255
    found = np.asarray(tile(image))
    assert found.shape == (TILE, TILE, 3)
    assert set(map(tuple, found.reshape(-1, 3).tolist())) == set(
        map(tuple, (image * 255).round().byte().flatten(1).T.tolist()))


def test_large_images_and_values_out_of_range_are_shown() -> None:
    assert tile(torch.rand(3, 300, 200) * 3 - 1).size == (TILE, TILE)


def test_equal_input_gives_equal_bytes() -> None:
    images = torch.rand(2, 3, 16, 16)
    columns = [Column("a", "b", {"ssim": 0.25}, images)]
    assert draw_grid("t", images, images, True, columns) == draw_grid("t", images, images, True, columns)


def test_a_release_without_partners_says_so() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert draw_grid("t", images, images, True, []) != draw_grid("t", images, images, False, [])


def test_long_names_stay_in_their_column() -> None:
    images = torch.ones(1, 3, 16, 16)
    short, long = (np.asarray(picture(images, images, [Column(name, "", {}, images), Column("", "", {}, images)]))
                   for name in ("", "an-attack-with-a-very-long-name+another.py:Class"))
    changed = np.argwhere((short != long).any(2))[:, 1]
    left = MARGIN + 2 * (TILE + GAP)
    assert len(changed)
    assert changed.min() >= left
    assert changed.max() < left + TILE + GAP


@pytest.mark.parametrize("title", ["", "é µ 图像", "x" * 500])
def test_any_title_can_be_drawn(title: str) -> None:
    images = torch.rand(1, 3, 16, 16)
    assert picture(images, images, [], title).size[1] > TILE

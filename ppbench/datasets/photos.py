"""Crops of the photographs in scikit-image's wheel: real colour images without a download."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ppbench.data import Dataset, Pool
from ppbench.datasets._skimage import wheel_file
from ppbench.errors import UserError

# motorcycle_right is left out: it shows what motorcycle_left shows, so the two would leak into each other.
FILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "retina.jpg",
         "motorcycle_left.png")
PARTS = ("private", "public", "test")

# In grey levels of 255: one flat colour already matches such a crop at 36 dB PSNR, so it holds nothing to protect.
FLAT = 4.0


@dataclass(frozen=True)
class Photos(Dataset):
    """Square crops of eight colour photographs in scikit-image; the label is the photograph.

    The crops do not overlap and are not rescaled. Every photograph is cut from left to right into a private, a
    public and a test region, one crop's width apart. Nearly flat crops (standard deviation over the pixels, RMS over
    the channels, under 4 of 255: night sky, the black around the retina) are left out, and so is a photograph with
    nothing left in one of its regions.
    """

    def pools(self, size: int | None) -> Mapping[str, Pool]:
        """Return the pools `private`, `public` and `test`; the size None means 32.

        Raises:
            UserError: no photograph is large enough for crops of this size.
        """
        size = self.default_size if size is None else size
        assert size is not None
        by_photo = [found for file in FILES if size > 1 and (found := _regions_of(file, size)) is not None]
        if not by_photo:
            raise UserError(f"no photograph yields crops of size {size}: choose a smaller size (2 to 282 pixels)")
        return {part: _pool([crops[part] for crops in by_photo]) for part in PARTS}


def columns(count: int) -> dict[str, range]:
    """Share out columns of crops: about 40 % private, 40 % public, 20 % test, an empty one before each of the last two.

    Args:
        count: how many crops lie side by side, at least 5.
    """
    used = count - 2
    private, test = round(0.4 * used), max(1, round(0.2 * used))
    return {"private": range(private), "public": range(private + 1, count - test - 1),
            "test": range(count - test, count)}


def _regions_of(file: str, size: int) -> dict[str, np.ndarray] | None:
    """Return the crops `[N, size, size, 3]` of every part; None where the photograph does not serve."""
    with Image.open(wheel_file(file)) as picture:
        grid = _grid(np.asarray(picture.convert("RGB")), size)
    if grid.shape[1] < 5 or grid.shape[0] < 1:
        return None
    crops = {part: grid[:, list(where)].reshape(-1, size, size, 3) for part, where in columns(grid.shape[1]).items()}
    crops = {part: found[_deviation(found) >= FLAT] for part, found in crops.items()}
    return crops if all(len(found) for found in crops.values()) else None


def _grid(photo: np.ndarray, size: int) -> np.ndarray:
    """Cut `[H, W, 3]` into `[rows, columns, size, size, 3]`, from the top left."""
    rows, across = (side // size for side in photo.shape[:2])
    trimmed = photo[: rows * size, : across * size]
    return trimmed.reshape(rows, size, across, size, 3).swapaxes(1, 2)


def _deviation(crops: np.ndarray) -> np.ndarray:
    """Return `[N]`: standard deviation over the pixels, RMS over the channels, so that mere colour counts as flat."""
    deviation: np.ndarray = np.sqrt(crops.astype(np.float64).var(axis=(1, 2)).mean(axis=1))
    return deviation


def _pool(crops: list[np.ndarray]) -> Pool:
    """Join the crops of all photographs; a photograph's place is its label."""
    labels = np.repeat(np.arange(len(crops)), [len(found) for found in crops])
    return Pool(np.concatenate(crops), labels.astype(np.int64))

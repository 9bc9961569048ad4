"""Images in one .npz archive, with the keys that MedMNIST uses.

Source of the convention: Yang et al., "MedMNIST v2", Scientific Data 2023 (arXiv 2110.14795).
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppbench.data import Dataset, Pool
from ppbench.datasets._resize import squares
from ppbench.errors import UserError

Arrays = Mapping[str, np.ndarray]
KEYS = frozenset(f"{part}_{what}" for part in ("train", "val", "test") for what in ("images", "labels"))

# What zip and numpy raise on damaged, encrypted or pickled content.
BROKEN = (ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Npz(Dataset):
    """An .npz file with train_images, train_labels and, if it has them, val_* (joined to train) and test_*.

    Images are uint8 `[N, H, W]` (grey) or `[N, H, W, 1 or 3]`, labels integers `[N]` or `[N, 1]` from 0 to K - 1.

    Attributes:
        path: the file.
    """

    default_size = None
    path: str

    def pools(self, size: int | None) -> Mapping[str, Pool]:
        """Return the pools `train` and `test`, or `all` where the file has no test images.

        Given a size, images are cropped to their central square and resized with bicubic antialiasing.

        Raises:
            UserError: the file is missing, damaged or not as described above.
        """
        arrays = _arrays(self.path)
        train = [_pool(self.path, arrays, "train")]
        if _has(self.path, arrays, "val"):
            train.append(_pool(self.path, arrays, "val"))
        pools = {"train": train, "test": []}
        if _has(self.path, arrays, "test"):
            pools["test"].append(_pool(self.path, arrays, "test"))
        else:
            pools = {"all": train}
        _check_together(self.path, [pool for found in pools.values() for pool in found], size)
        return {name: _join(found, size) for name, found in pools.items()}


def _arrays(path: str) -> Arrays:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"the file {path!r} does not exist: give the path of an .npz archive")
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path!r} is no .npz archive: write it with numpy.savez")
            return {key: archive[key] for key in archive.files if key in KEYS}
    except BROKEN as error:
        raise UserError(f"{path!r} cannot be read as an .npz archive of plain arrays: write it again with "
                        f"numpy.savez ({error})") from error


def _has(path: str, arrays: Arrays, part: str) -> bool:
    """Say whether the optional part is there; half of it is an error."""
    there = [f"{part}_{what}" in arrays for what in ("images", "labels")]
    if any(there) and not all(there):
        raise UserError(f"{path!r} has only one of {part}_images and {part}_labels: give both or neither")
    return all(there)


def _pool(path: str, arrays: Arrays, part: str) -> Pool:
    """Read one part of the archive, checked."""
    if not _has(path, arrays, part):
        raise UserError(f"{path!r} lacks {part}_images and {part}_labels: name its arrays train_images, train_labels "
                        f"and, optionally, val_images, val_labels, test_images, test_labels")
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise UserError(f"{part}_images in {path!r} is {images.dtype} {list(arrays[f'{part}_images'].shape)}: "
                        "give uint8 [N, H, W] or [N, H, W, 1 or 3]")
    if labels.ndim == 2 and labels.shape[1] != 1:
        raise UserError(f"{part}_labels in {path!r} is {list(labels.shape)}; several labels an image are "
                        "not supported: give one label an image, [N] or [N, 1]")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise UserError(f"{part}_labels in {path!r} is {labels.dtype} {list(labels.shape)}: give integers [N] or "
                        "[N, 1]")
    if len(images) != len(labels):
        raise UserError(f"{path!r} has {len(images)} {part}_images but {len(labels)} {part}_labels: give one label "
                        "an image")
    if not len(images):
        raise UserError(f"{part}_images in {path!r} is empty: give at least one image or leave the part out")
    return Pool(images, labels.reshape(-1).astype(np.int64))


def _check_together(path: str, pools: list[Pool], size: int | None) -> None:
    """Check what must agree over all parts: channels, sizes unless resized, and labels from 0 to K - 1."""
    shapes = sorted({pool.pixels.shape[1:] for pool in pools})
    if len({shape[2] for shape in shapes}) > 1:
        raise UserError(f"{path!r} mixes grey and colour images: store all of them with the same channels")
    if size is None and len(shapes) > 1:
        raise UserError(f"the parts of {path!r} hold images of different sizes: give size=PIXELS to resize them")
    found = np.unique(np.concatenate([pool.labels for pool in pools]))
    if found[0] != 0 or found[-1] != len(found) - 1:
        raise UserError(f"the labels in {path!r} run from {found[0]} to {found[-1]} with {len(found)} different "
                        f"values: number the classes 0 to {len(found) - 1}")


def _join(pools: list[Pool], size: int | None) -> Pool:
    return Pool(np.concatenate([squares(pool.pixels, size) for pool in pools]),
                np.concatenate([pool.labels for pool in pools]))

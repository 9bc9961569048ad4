"""A folder of image files, one sub-folder a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ppbench.data import Dataset, Pool
from ppbench.datasets._resize import square
from ppbench.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
GREY_MODES = frozenset({"1", "L", "LA"})
DEEP_MODES = ("I", "F")

Classes = dict[str, list[Path]]


@dataclass(frozen=True)
class Folder(Dataset):
    """Image files (png, jpg, jpeg, webp, bmp), one sub-folder a class; labels number the sorted names.

    Sub-folders `train` and `test` (and `val`, which joins `train`) with class folders in them stay apart; without
    sub-folders all images form one class. All images become RGB if any is in colour, otherwise they stay grey.

    Attributes:
        path: the folder.
    """

    default_size = None
    path: str

    def pools(self, size: int | None) -> Mapping[str, Pool]:
        """Return the pools `train` and `test` where the folder has both, otherwise `all`.

        Given a size, images are cropped to their central square and resized with bicubic antialiasing.

        Raises:
            UserError: the folder or its images are missing, an image is unreadable, or sizes differ and none is given.
        """
        parts = {name: [_classes(folder) for folder in folders] for name, folders in _parts(self.path).items()}
        names = sorted({name for found in parts.values() for classes in found for name in classes})
        files = {part: [(file, names.index(name)) for classes in found for name, members in classes.items()
                        for file in members] for part, found in parts.items()}
        images = {part: [_read(file, size) for file, _ in listed] for part, listed in files.items()}
        channels = max(image.shape[2] for found in images.values() for image in found)
        pools = {part: Pool(_stack(self.path, found, channels), np.array([label for _, label in files[part]], np.int64))
                 for part, found in images.items()}
        _check_size(self.path, [pool.pixels.shape for pool in pools.values()])
        return pools


def _parts(path: str) -> dict[str, list[Path]]:
    """Return which folders make up which pool."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"the folder {path!r} does not exist: give the path of a folder of images")
    folders = {folder.name: folder for folder in _entries(root) if folder.is_dir()}
    if {"train", "test"} <= folders.keys() <= {"train", "val", "test"}:
        return {"train": [folders[name] for name in ("train", "val") if name in folders], "test": [folders["test"]]}
    if folders.keys() == {"train", "val"}:
        raise UserError(f"the folder {path!r} has train and val but no test: rename val to test")
    return {"all": [root]}


def _classes(folder: Path) -> Classes:
    """Return the image files of every class; a folder without class folders is one class."""
    loose = _images(folder)
    classes = {inner.name: found for inner in _entries(folder) if inner.is_dir() and (found := _images(inner))}
    if loose and classes:
        raise UserError(f"the folder {str(folder)!r} has {len(loose)} images beside its class folders: move them "
                        "into one of those")
    if not loose and not classes:
        raise UserError(f"the folder {str(folder)!r} has no images: put {', '.join(sorted(SUFFIXES))} files into it, "
                        "one sub-folder a class")
    return classes or {"": loose}


def _images(folder: Path) -> list[Path]:
    return [file for file in _entries(folder) if file.suffix.lower() in SUFFIXES and file.is_file()]


def _entries(folder: Path) -> list[Path]:
    """List a folder in the order of names, without hidden files."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read(file: Path, size: int | None) -> np.ndarray:
    """Read one image as uint8 `[H, W, 1 or 3]`, turned upright as its camera noted."""
    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(DEEP_MODES):
                raise UserError(f"the image {str(file)!r} has more than 8 bits a pixel: save it with 8 bits")
            upright = ImageOps.exif_transpose(picture)
            pixels = np.asarray(upright.convert("L" if picture.mode in GREY_MODES else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {str(file)!r} cannot be read ({error}): replace or remove it") from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels if size is None else square(pixels, size)


def _stack(path: str, images: list[np.ndarray], channels: int) -> np.ndarray:
    """Join images, grey ones repeated to the wanted number of channels."""
    _check_size(path, [image.shape for image in images])
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _check_size(path: str, shapes: list[tuple[int, ...]]) -> None:
    sizes = {shape[-3:-1] for shape in shapes}
    if len(sizes) > 1:
        (h1, w1), (h2, w2) = sorted(sizes)[:2]
        raise UserError(f"the images in {path!r} differ in size ({w1} x {h1} and {w2} x {h2}, for example): "
                        "give size=PIXELS to resize them")

"""Canaries: data that is recognised by a law it obeys, so that whoever searches for it holds no copy of it.

Image bytes rise by `STEP` from pixel to pixel (modulo 256), the 256 numbers of a key by `KEY_STEP`. The text of this
file is also pasted into the plug-ins of test_containment.py, where it searches the process that it runs in.
"""

import os
import stat
from collections.abc import Iterator

import numpy as np

STEP = 73
KEY_STEP = 0x5DEECE66D
# Of 256 pixels or numbers in a row, one in so many is looked at: an odd number, as the low bytes of pointers in a table
# rise by multiples of 16 every 8 or 16 bytes, which would look like an image.
_EVERY = 15
_CHUNK = 1 << 24


def planted(count: int, side: int = 16) -> np.ndarray:
    """Return different grey images, uint8 `[count, side, side]`."""
    start = np.arange(count)[:, None] * 5
    return ((start + STEP * np.arange(side * side)) % 256).astype(np.uint8).reshape(count, side, side)


def search(process: str = "self") -> list[str]:
    """Return what is found in the memory, open files, environment and arguments of a process."""
    return sorted({f"{kind} in {place}" for place, content in _places(f"/proc/{process}") for kind in kinds(content)})


def kinds(content: bytes) -> list[str]:
    """Name the canaries in a piece of memory or a file that begins at a multiple of 8 bytes."""
    found = []
    numbers = np.frombuffer(content, np.uint8)
    if any(_long(np.diff(numbers[at::_EVERY]) == STEP * _EVERY % 256) for at in (0, _EVERY // 2)):
        found.append("images as bytes")
    whole = content[: len(content) // 8 * 8]
    with np.errstate(all="ignore"):
        levels = np.frombuffer(whole, np.float32)[::_EVERY] * np.float32(255)
        near = (levels >= 0) & (levels < 255.5) & (abs(levels - np.rint(levels)) < 1e-2)
        steps = np.diff(np.where(near, np.rint(levels), 0).astype(np.uint8)) == STEP * _EVERY % 256
    if _long(near[1:] & steps):
        found.append("images as floats")
    if _long(np.diff(np.frombuffer(whole, np.int64)[::_EVERY]) == KEY_STEP * _EVERY):
        found.append("keys")
    return found


def _long(right: np.ndarray) -> bool:
    """Say whether eight or more in a row are right."""
    for span in (1, 2, 4):
        right = right[span:] & right[:-span]
    return bool(right.any())


def _places(root: str) -> Iterator[tuple[str, bytes]]:
    for name in ("environ", "cmdline"):
        with open(f"{root}/{name}", "rb") as file:
            yield name, file.read()
    for descriptor in os.listdir(f"{root}/fd"):
        try:
            if stat.S_ISREG(os.stat(f"{root}/fd/{descriptor}").st_mode):
                with open(f"{root}/fd/{descriptor}", "rb") as file:
                    yield "open file", file.read()
        except OSError:  # the descriptor of the listing itself
            continue
    yield from _memory(root)


def _memory(root: str) -> Iterator[tuple[str, bytes]]:
    with open(f"{root}/maps") as file:
        regions = [line.split(maxsplit=5) for line in file]
    with open(f"{root}/mem", "rb", buffering=0) as memory:
        for where, rights, _, _, _, *path in regions:
            # Code cannot hold data that was read later; what it has of variables lies in regions without a name.
            if "r" not in rights or (path and (".so" in path[0] or path[0].startswith("[v"))):
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            for at in range(start, end, _CHUNK - 4096):  # overlapping, so that no canary is cut
                memory.seek(at)
                try:
                    yield "memory", memory.read(min(_CHUNK, end - at))
                except OSError:
                    break

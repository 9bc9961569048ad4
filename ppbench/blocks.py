"""Square blocks of images: cutting, joining, permuting and turning them."""

import torch
from torch import Tensor

from ppbench.data import Shape
from ppbench.errors import UserError


def check_divides(name: str, size: int, shape: Shape) -> None:
    """Refuse a block side that does not divide the image.

    Raises:
        UserError: names the parameter and the sides that would do.
    """
    _, height, width = shape
    if size < 1 or height % size or width % size:
        fitting = [s for s in range(1, min(height, width) + 1) if height % s == 0 and width % s == 0]
        raise UserError(f"{name}={size} does not divide images of {height} x {width} pixels: "
                        f"choose one of {', '.join(map(str, fitting))}")


def cut(images: Tensor, size: int) -> Tensor:
    """Cut images `[N, C, H, W]` into blocks `[N, blocks, C, size, size]`, row by row."""
    n, c, h, w = images.shape
    grid = images.reshape(n, c, h // size, size, w // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // size) * (w // size), c, size, size)


def join(blocks: Tensor, shape: Shape) -> Tensor:
    """Join blocks `[N, blocks, C, size, size]` to images `[N, C, H, W]`: the inverse of `cut`."""
    c, h, w = shape
    n, size = len(blocks), blocks.shape[-1]
    grid = blocks.reshape(n, h // size, w // size, c, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def permute_rows(values: Tensor, order: Tensor) -> Tensor:
    """Reorder axis 1 of `[N, M, ...]` by one permutation a row: `out[n, i] = values[n, order[n, i]]`."""
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return values.gather(1, index)


def permutations(count: int, length: int, rng: torch.Generator) -> Tensor:
    """Draw `count` uniform permutations of `length` items, `[count, length]`."""
    return torch.rand(count, length, generator=rng, dtype=torch.float64).argsort(1)


def symmetries(size: int) -> Tensor:
    """List the 8 states of a square block, `[8, size * size]`: the place that each pixel is taken from.

    State s is s % 4 quarter turns anticlockwise, then, from state 4 on, mirrored left to right.
    """
    places = torch.arange(size * size).reshape(size, size)
    turned = [places.rot90(quarters) for quarters in range(4)]
    return torch.stack([state.flatten() for state in (*turned, *(state.fliplr() for state in turned))])


def turn(blocks: Tensor, states: Tensor) -> Tensor:
    """Bring every block of `[N, blocks, C, size, size]` into its state of `symmetries`, `[N, blocks]` in 0 to 7."""
    return _take_pixels(blocks, symmetries(blocks.shape[-1])[states])


def turn_back(blocks: Tensor, states: Tensor) -> Tensor:
    """Undo `turn`."""
    return _take_pixels(blocks, symmetries(blocks.shape[-1]).argsort(1)[states])


def _take_pixels(blocks: Tensor, places: Tensor) -> Tensor:
    """Take the pixels of every block from `places` `[N, blocks, size * size]`, in all channels alike."""
    pixels = blocks.flatten(3)
    return pixels.gather(3, places[:, :, None].expand_as(pixels)).reshape(blocks.shape)

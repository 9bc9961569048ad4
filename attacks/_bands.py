"""Bands of frequencies, in which an estimate is believed, or moved, alike."""

import torch
from torch import Tensor


def shares(products: Tensor, squares: Tensor) -> Tensor:
    """Return how far to go in every band, `[k, h, w]` in [0, 1], to come closest to what is wanted (least squares).

    Args:
        products: `[k, h, w]`, of the steps at hand and those wanted, in the cosine basis, summed over images.
        squares: `[k, h, w]`, of the steps at hand.
    """
    band = bands(*squares.shape[1:]).flatten()
    product, square = (part.new_zeros(len(part), int(band.max()) + 1).index_add(1, band, part.flatten(1))
                       for part in (products, squares))
    found: Tensor = (product / square.clamp(min=1e-12)).clamp(0, 1)
    return found[:, band].reshape(squares.shape)


def bands(height: int, width: int) -> Tensor:
    """Number the cosines of a plane `[height, width]` by their distance from the constant one."""
    down, across = torch.arange(height) / height, torch.arange(width) / width
    return ((down[:, None].square() + across.square()).sqrt() * max(height, width)).long()

"""Which structure of key stands behind a defense: what it says of itself, tried on images of one's own."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product

import torch
from torch import Tensor

from ppbench.attacks._key_chosen import drawn
from ppbench.attacks._key_map import Structure
from ppbench.attacks._key_pairs import recover
from ppbench.blocks import symmetries
from ppbench.data import Images, Shape
from ppbench.defense import Pieces
from ppbench.seeding import generator
from ppbench.view import Algorithm

TRIED = 32


def structure_of(algorithm: Algorithm, image: Shape) -> Structure | None:
    """Find a structure in which the defense, run with a key of one's own, leaves nothing unexplained.

    Half of some random images tell the key, the other half whether it is right.

    Args:
        algorithm: the defense.
        image: (C, H, W).

    Returns:
        The most special of `candidates` that fits; None = the defense does more than move and negate whole values.
    """
    if algorithm.key_scope is None or not algorithm.defense.partnered:
        return None
    rng, rows = generator(0), torch.arange(TRIED)
    for structure in candidates(algorithm.defense.pieces(image), image):
        images = structure.image_of(drawn(structure, TRIED, rng))
        released = replace(algorithm, key_scope="global", clients=1).protect(Images(images, rows * 0, rows), rng).images
        if released.shape != images.shape:
            return None
        plain, seen = structure.levels(images), structure.levels(released)
        key = recover(structure, plain[::2], seen[::2]).key
        if torch.equal(key.encrypt(plain[1::2], structure.top), seen[1::2]):
            return structure
    return None


def candidates(pieces: Pieces | None, image: Shape) -> Iterator[Structure]:
    """List structures of key for images (C, H, W), from the most special to the most general.

    A defense without blocks may still treat every pixel on its own, or permute pixels or values all over the image.
    """
    if pieces is not None and pieces.size > 0 and not (image[1] % pieces.size or image[2] % pieces.size):
        yield from _of_pieces(pieces, image)
    for nibbles in (False, True):
        if not nibbles:
            yield Structure(image, 1, True, "states", states=_same(image[0]))
        yield Structure(image, 1, False, "own", nibbles)
        yield Structure(image, None, False, "own", nibbles)


def _of_pieces(pieces: Pieces, image: Shape) -> Iterator[Structure]:
    """List the structures of a cipher on square blocks."""
    if pieces.pixels == "kept" and not pieces.nibbles:
        states = _states(image[0], pieces.size, pieces.turned, pieces.recoloured)
        yield Structure(image, pieces.size, pieces.moved, "states", False, states, pieces.negated)
    if pieces.pixels == "shared" and not (pieces.turned or pieces.recoloured):
        yield Structure(image, pieces.size, pieces.moved, "shared", pieces.nibbles, negated=pieces.negated)
    yield Structure(image, pieces.size, pieces.moved, "own", pieces.nibbles)


def _same(values: int) -> Tensor:
    """Return the one state that changes nothing, `[1, values]`."""
    return torch.arange(values)[None]


def _states(channels: int, size: int, turned: bool, recoloured: bool) -> Tensor:
    """List the states of a block `[S, channels * size**2]`: the value that each place takes."""
    turns = symmetries(size) if turned else _same(size**2)
    colours = list(permutations(range(channels))) if recoloured else [tuple(range(channels))]
    every = torch.stack([torch.cat([size**2 * colour + places for colour in order])
                         for places, order in product(turns, colours)])
    found: Tensor = every.unique(dim=0)  # sorted, so that what changes nothing is the first
    return found

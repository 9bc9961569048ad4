"""Pieces of photographs, scrambled as a cipher would, and slow ways to say the same, for tests of the jigsaw attack."""

import itertools

import numpy as np
import skimage.data
import torch
from torch import Tensor

from ppbench.attacks._assemble import _puzzle
from ppbench.attacks._boards import Boards
from ppbench.attacks._solver import Puzzle, Search
from ppbench.attacks._states import PLAIN, States, states_of
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.data import Images
from ppbench.datasets.photos import Photos
from ppbench.defense import Pieces
from ppbench.puzzle import puzzle_scores
from ppbench.seeding import generator

Flags = tuple[bool, bool, bool]  # turned, negated, recoloured
Grid = tuple[int, int]
FLAGS: list[Flags] = [(a, b, c) for a, b, c in itertools.product((False, True), repeat=3)]
UNCHANGED, TURNED, ETC = FLAGS[0], FLAGS[4], FLAGS[7]
HARD = Search(restarts=24, weak=-100.0, noise=4.0)  # tries more than photographs need


def pieces_of(flags: Flags, size: int = 4) -> Pieces:
    return Pieces(size, True, "kept", *flags)


def states_for(flags: Flags, channels: int = 3) -> States:
    return states_of(pieces_of(flags), channels)


def photos(count: int, height: int, width: int) -> Tensor:
    """8-bit crops of scikit-image's astronaut, shrunk to half size (its JPEG grid would mark the seams)."""
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float()
    photo = torch.nn.functional.avg_pool2d(photo, 2)[0].round() / 255
    rows = torch.linspace(0, photo.shape[1] - height, count).long()
    return torch.stack([photo[:, top:top + height, 40:40 + width] for top in rows.tolist()])


def scrambled(images: Tensor, size: int, states: States, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces `[N, P, C, s, s]` in a random order and random states, and both of them, `[N, P]` each."""
    rng = generator(seed)
    blocks = cut(images, size)
    order = permutations(len(blocks), blocks.shape[1], rng)
    how = torch.randint(len(states), order.shape, generator=rng)
    return states.put(permute_rows(blocks, order), how), order, how


def rebuilt(pieces: Tensor, boards: Boards, states: States) -> Tensor:
    """The images that boards show, `[N, C, H, W]`."""
    laid = states.put(permute_rows(pieces, boards.pieces.flatten(1)), boards.states.flatten(1))
    rows, columns = boards.pieces.shape[1:]
    return join(laid, (pieces.shape[2], rows * pieces.shape[4], columns * pieces.shape[4]))


def neighbours(images: Tensor, truth: Tensor, flags: Flags, size: int) -> Tensor:
    """The share of the true pairs of neighbours in each image, up to what the cipher does to whole images."""
    return puzzle_scores(images, truth, pieces_of(flags, size))["piece_neighbour"]


def slow_put(block: np.ndarray, states: States, state: int) -> np.ndarray:
    """Bring one block `[C, s, s]` into a state, from the definitions."""
    turn = int(states.turns[state])
    found = np.rot90(block, turn % 4, (1, 2))
    found = found[:, :, ::-1] if turn >= 4 else found
    found = np.stack([found[channel] for channel in states.colours[state].tolist()])
    return 1 - found if states.negative[state] else found


def looking_right(block: np.ndarray, direction: int) -> np.ndarray:
    """Mirror and transpose a block `[C, s, s]` so that its RIGHT, LEFT, BELOW or ABOVE side becomes its right one."""
    along = block if direction < 2 else block.swapaxes(1, 2)
    return along[:, :, ::-1] if direction % 2 else along


def seam_numbers(shape: tuple[int, ...]) -> Tensor:
    """Number all seams of a table that are between two pieces."""
    count, _, pieces, _, states = shape
    number = torch.arange(count * 4 * pieces * pieces * states).view(shape)
    return number[:, :, ~torch.eye(pieces, dtype=torch.bool)].flatten()


def random_costs(count: int, pieces: int, states: States, seed: int) -> Tensor:
    """Normal log costs `[N, 4, P, P, S]` that say the same of a seam as seen from either piece."""
    costs = torch.randn(count, 4, pieces, pieces, len(states), generator=generator(seed)) * 3
    back = torch.empty_like(costs)
    direction, i, j, state = torch.meshgrid(*map(torch.arange, costs.shape[1:]), indexing="ij")
    opposite = torch.tensor([1, 0, 3, 2])
    back[:] = costs[:, states.face[state, opposite[direction]], j, i, states.inverse[state]]
    return costs + back


def regauged(costs: Tensor, states: States, given: Tensor) -> Tensor:
    """The costs `[N, 4, P, P, S]` of the same pieces, piece i of them given in state `given[i]`."""
    direction, i, j, state = torch.meshgrid(*map(torch.arange, costs.shape[1:]), indexing="ij")
    other = states.product[state, given[j]]
    return costs[:, states.face[given[i], direction], i, j, states.relative[given[i], other]]


def crops(count: int, size: int, part: str = "public") -> Images:
    """Some of the built-in photographs' crops."""
    pool = Photos().pools(size)[part]
    rows = torch.randperm(len(pool.labels), generator=generator(0))[:count]
    pixels = torch.from_numpy(pool.pixels)[rows].permute(0, 3, 1, 2).float() / 255
    return Images(pixels.contiguous(), torch.from_numpy(pool.labels)[rows], torch.arange(count))


def random_boards(count: int, grid: Grid, states: States, seed: int = 0) -> Boards:
    rng, pieces = generator(seed), grid[0] * grid[1]
    return Boards(permutations(count, pieces, rng).view(count, *grid),
                  torch.randint(len(states), (count, *grid), generator=rng))


def puzzle_of(costs: Tensor, grid: Grid, states: States = PLAIN, places: Tensor | None = None, near: int = 12,
              ) -> Puzzle:
    """What is solved, for costs `[4, P, P, S]` of one puzzle, its pieces in their order."""
    return _puzzle(costs, torch.arange(costs.shape[1]), grid, near, states, places)


def nodes(boards: Boards, states: States) -> np.ndarray:
    """The first board as the compiled search writes it."""
    found: np.ndarray = (boards.pieces[0] << states.bits | boards.states[0]).numpy()
    return found


def near_truth(truth: Boards, states: States, seed: int) -> Tensor:
    """Random costs `[1, 4, P, P, S]`, but cheap at all seams of one board."""
    costs = random_costs(1, truth.pieces[0].numel(), states, seed)
    for axis, ways in ((2, (0, 1)), (1, (2, 3))):
        size = truth.pieces.shape[axis] - 1
        (i, one), (j, other) = ((truth.pieces.narrow(axis, start, size), truth.states.narrow(axis, start, size))
                                for start in (0, 1))
        costs[0, states.face[one, ways[0]], i, j, states.relative[one, other]] = -20.0
        costs[0, states.face[other, ways[1]], j, i, states.relative[other, one]] = -20.0
    return costs

"""The states in which a cipher may leave a piece: turned and mirrored, negated, recoloured; and how they combine."""

from dataclasses import dataclass
from itertools import permutations, product

import torch
from torch import Tensor

from ppbench.blocks import symmetries
from ppbench.defense import Pieces

RIGHT, LEFT, BELOW, ABOVE = range(4)
OPPOSITE = torch.tensor([LEFT, RIGHT, ABOVE, BELOW])
_SIDES = torch.tensor([[2, 5, 8], [0, 3, 6], [6, 7, 8], [0, 1, 2]])  # of a block of 3 x 3 pixels


@dataclass(frozen=True)
class States:
    """A group of S states. State 0 leaves a piece as it is; negatives and colours of one turn stand together.

    Attributes:
        turns: `[S]` int64, a state of `ppbench.blocks.symmetries`.
        negative: `[S]` bool.
        colours: `[S, C]` int64: the channel that each channel is taken from.
        product: `[S, S]` int64: the state of a piece in the second state that is then put into the first.
        relative: `[S, S]` int64: the second state as seen from a piece in the first: product[first, relative] = second.
        face: `[S, 4]` int64: the side of a piece that looks RIGHT, LEFT, BELOW and ABOVE in each state.
        backwards: `[S, 4]` bool: that side then runs the other way, from below up or from the right on.
    """

    turns: Tensor
    negative: Tensor
    colours: Tensor
    product: Tensor
    relative: Tensor
    face: Tensor
    backwards: Tensor

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def bits(self) -> int:
        """Return how many bits tell a state."""
        return (len(self) - 1).bit_length()

    @property
    def inverse(self) -> Tensor:
        """Return `[S]` the state that undoes each."""
        return self.relative[:, 0]

    @property
    def blind(self) -> bool:
        """Say whether a piece's own colours cannot be known."""
        return bool(self.negative.any()) or bool((self.colours != self.colours[0]).any())

    def all_of(self, pieces: Tensor) -> Tensor:
        """Return pieces `[N, P, C, s, s]` in every state: `[N, P, S, C, s, s]`."""
        many = pieces[:, :, None].expand(-1, -1, len(self), *pieces.shape[2:])
        return self.put(many.flatten(0, 1), torch.arange(len(self)).expand(many.shape[0] * many.shape[1], -1)) \
            .reshape(many.shape)

    def put(self, pieces: Tensor, states: Tensor) -> Tensor:
        """Bring pieces `[N, P, C, s, s]` into states `[N, P]`."""
        if len(self) == 1:
            return pieces
        pixels = pieces.flatten(3)
        places = symmetries(pieces.shape[-1])[self.turns[states]]
        pixels = pixels.gather(3, places[:, :, None].expand_as(pixels))
        pixels = pixels.gather(2, self.colours[states][..., None].expand_as(pixels))
        return torch.where(self.negative[states][..., None, None], 1 - pixels, pixels).reshape(pieces.shape)


def states_of(pieces: Pieces | None, channels: int) -> States:
    """List the states of a cipher's pieces in images of so many channels; None = as they are."""
    turns = range(8) if pieces is not None and pieces.turned else range(1)
    signs = (False, True) if pieces is not None and pieces.negated else (False,)
    recoloured = pieces is not None and pieces.recoloured
    orders = list(permutations(range(channels))) if recoloured else [tuple(range(channels))]
    every = list(product(turns, signs, orders))
    number = {state: n for n, state in enumerate(every)}
    grid = symmetries(3)
    index = {tuple(one.tolist()): n for n, one in enumerate(grid)}

    def after(first: tuple, then: tuple) -> int:
        turned = index[tuple(grid[first[0]][grid[then[0]]].tolist())]
        return number[turned, first[1] != then[1], tuple(first[2][c] for c in then[2])]

    table = torch.tensor([[after(other, one) for other in every] for one in every])
    inverse = (table == 0).long().argmax(1)
    shown = torch.stack([grid[state[0]][_SIDES] for state in every])  # [S, 4, 3]: the pixels along each side
    face = (shown[..., None, 1] == _SIDES[:, 1]).long().argmax(2)
    backwards = shown[..., 0] != _SIDES[face][..., 0]
    return States(torch.tensor([state[0] for state in every]), torch.tensor([state[1] for state in every]),
                  torch.tensor([state[2] for state in every]), table, table[inverse], face, backwards)


PLAIN = states_of(None, 1)  # pieces that lie as they are

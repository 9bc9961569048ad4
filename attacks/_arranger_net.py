"""A vision transformer that puts shuffled pieces in their places."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.attacks._beliefs import Logits, doubly_stochastic, messages, rivals, seam
from ppbench.attacks._blocks import transformer
from ppbench.blocks import join
from ppbench.data import Shape

ROUNDS = 6  # of messages between neighbours
STRIP = 2  # pixels beside a seam that are compared
_NARROW = 32  # channels of a pair of pieces, after the first layer
_SEAMS = 0.5  # weight of the loss of neighbours, of which the places follow


class Neighbours(nn.Module):
    """Which piece comes after which in one direction, from the pixels beside the seam and from what the pieces are.

    Args: `ends`, `starts` `[n, P, d]`: pixels at the end and at the start of every piece; `tokens` `[n, P, width]`.
    """

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        compared = max(_NARROW, width // 2)  # every pair holds so many values at a time
        self.end, self.start = nn.Linear(pixels, compared, bias=False), nn.Linear(pixels, compared)
        with torch.no_grad():
            self.start.weight.copy_(-self.end.weight)  # differences to begin with
        self.before, self.behind = _silent(width, compared), _silent(width, compared)
        self.pair = nn.Sequential(nn.Linear(compared, _NARROW), nn.GELU(), nn.Linear(_NARROW, _NARROW), nn.GELU(),
                                  nn.Linear(_NARROW, 1))
        self.last, self.first = Alone(pixels, width), Alone(pixels, width)

    def forward(self, ends: Tensor, starts: Tensor, tokens: Tensor) -> Logits:
        """Compare every piece with every other."""
        one, other = self.before(tokens), self.behind(tokens)
        precision = one.dtype
        with torch.autocast(ends.device.type, enabled=False):  # bfloat16 would round away how neighbours differ
            pairs = (self.end(ends) + one.float())[:, :, None] + (self.start(starts) + other.float())[:, None]
        fits = self.pair(F.gelu(pairs.to(precision)))[..., 0].float()
        return Logits(fits, self.last(ends, tokens), self.first(starts, tokens))


class Alone(nn.Module):
    """Whether a side of a piece is the image's border: logits `[n, P]`."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.side, self.token, self.out = nn.Linear(pixels, width), _silent(width, width), nn.Linear(width, 1)

    def forward(self, side: Tensor, tokens: Tensor) -> Tensor:
        """Read the pixels beside it, and what the piece is."""
        logits: Tensor = self.out(F.gelu(self.side(side) + self.token(tokens)))[..., 0].float()
        return logits


class Arranger(nn.Module):
    """A transformer without positions reads the pieces; each is placed by what it is and by what its neighbours say.

    Beliefs about all places are doubly stochastic (Mena et al. 2018, "Learning latent permutations with Gumbel-Sinkhorn
    networks", arXiv 1802.08665) and are revised in some rounds of loopy belief propagation, whose steps are learnt.

    Args: `pieces` `[n, P, c, side, side]` in [0, 1]; returns the beliefs `[n, P, H, W]` after every round, and for
    both directions the logits of `Neighbours`.
    """

    def __init__(self, shape: Shape, side: int, width: int, depth: int) -> None:
        super().__init__()
        channels, height, across = shape
        self.shape, self.grid = shape, (height // side, across // side)
        self.strip = min(STRIP, side)
        self.token = nn.Linear(channels * side**2, width)
        self.encoder = transformer(width, depth)
        self.norm = nn.LayerNorm(width)
        self.place = nn.Linear(width, self.grid[0] * self.grid[1])
        beside = channels * side * self.strip
        self.across, self.down = Neighbours(beside, width), Neighbours(beside, width)
        self.own = nn.Parameter(torch.ones(ROUNDS))
        self.heard = nn.Parameter(torch.full((ROUNDS, 4), 0.5))

    def forward(self, pieces: Tensor) -> tuple[list[Tensor], list[Logits]]:
        """Place the pieces."""
        shown = 4 * (pieces.float() - 0.5)
        tokens = self.norm(self.encoder(self.token(shown.flatten(2))))
        alone = self.place(tokens).float().unflatten(2, self.grid)
        seams = [self.across(*_sides(shown, self.strip), tokens),
                 self.down(*_sides(shown.transpose(3, 4), self.strip), tokens)]
        across, down = map(seam, seams)
        beliefs = [doubly_stochastic(alone)]
        for own, heard in zip(self.own, self.heard, strict=True):
            told = (heard[:, None, None, None, None] * messages(beliefs[-1], across, down)).sum(0)
            beliefs.append(doubly_stochastic(own * alone + told))
        return beliefs, seams

    def loss(self, pieces: Tensor, places: Tensor) -> Tensor:
        """Return the negative log-likelihood, a scalar, of the true places `[n, P]`: of all rounds, and of neighbours.

        The pieces alone and the last round count as much as all rounds between.
        """
        beliefs, seams = self(pieces)
        first, *rounds = (F.nll_loss(one.flatten(2).flatten(0, 1), places.flatten()) for one in beliefs)
        sides = [_neighbour_loss(logits, neighbours(places, self.grid, turned))
                 for logits, turned in zip(seams, (False, True), strict=True)]
        return first + torch.stack(rounds).mean() + rounds[-1] + _SEAMS * torch.stack(sides).mean()


def mixed(pieces: Tensor, beliefs: Tensor, shape: Shape) -> Tensor:
    """Return images `[n, C, H, W]` with every piece in all places, by how probable they are."""
    shares = beliefs.exp().flatten(2).transpose(1, 2)
    return join((shares @ pieces.flatten(2)).unflatten(2, pieces.shape[2:]), shape)


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer that says nothing at first."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def _sides(pieces: Tensor, strip: int) -> tuple[Tensor, Tensor]:
    """Return the last and the first columns of every piece, the outermost first: twice `[n, P, c * side * strip]`."""
    return pieces[..., -strip:].flip(4).flatten(2), pieces[..., :strip].flatten(2)


def _neighbour_loss(logits: Logits, truth: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of what follows each piece and of what precedes it."""
    after, before = rivals(logits)
    follows, precedes = truth
    return (F.cross_entropy(after.flatten(0, 1), follows.flatten())
            + F.cross_entropy(before.transpose(1, 2).flatten(0, 1), precedes.flatten())) / 2


def neighbours(places: Tensor, grid: tuple[int, int], turned: bool) -> tuple[Tensor, Tensor]:
    """Return the piece that follows each one and the one that precedes it, P = none: twice `[n, P]`.

    Args:
        places: `[n, P]` the place of every piece, row by row.
        grid: (rows, columns).
        turned: downwards, not to the right.
    """
    count = places.shape[1]
    board = places.argsort(1).unflatten(1, grid)  # the piece at each place
    if turned:
        board = board.transpose(1, 2)
    none = torch.full_like(board[..., :1], count)
    after, before = torch.cat([board[..., 1:], none], 2), torch.cat([none, board[..., :-1]], 2)
    order = board.flatten(1).argsort(1)  # where on the (turned) board each piece lies
    return after.flatten(1).gather(1, order), before.flatten(1).gather(1, order)

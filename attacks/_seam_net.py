"""A network that tells which piece goes on at a seam, from a few columns of pixels on both of its sides."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppbench.attacks._seams import LIMIT, Tables
from ppbench.attacks._states import OPPOSITE, States

COLUMNS = 4  # on each side of the seam; pieces of fewer are continued as they end
MEASURED = 4  # figures that are measured at every seam
_MOST = 16.0  # surprise at a seam, also at all that are not looked at
_LEAST = 4.0  # surprise that adds nothing to a cost, so that good seams lie below 0
_WEIGHT = 0.5  # of surprise: the network errs where what is measured is right


class Seams(NamedTuple):
    """M seams.

    Attributes:
        here: `[M, C, s, COLUMNS]` the pixels of the one piece, from the seam inwards, in [0, 1].
        there: the same of the other piece.
        measured: `[M, MEASURED]` costs of `_seams`: relative to the rivals, then absolute.
    """

    here: Tensor
    there: Tensor
    measured: Tensor


class SeamNet(nn.Module):
    """Log odds that two pieces belong side by side, at any length of the seam.

    Each position along the seam is looked at across it, then together with its neighbours, and all positions are
    pooled; the measured costs are added, so that the network starts from them.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.across = nn.Linear((2 * COLUMNS + 3) * channels, width)
        self.along = nn.ModuleList([nn.Conv1d(width, width, 3, padding=1) for _ in range(2)])
        self.measured = nn.Linear(MEASURED, width)
        self.out = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))
        self.trust = nn.Parameter(torch.ones(2))

    def forward(self, seams: Seams) -> Tensor:
        """Return `[M]` log odds, up to what is common to the rivals at one side of a piece."""
        level = (seams.here[..., :1].mean(2, keepdim=True) + seams.there[..., :1].mean(2, keepdim=True)) / 2
        here, there = 4 * (seams.here - level), 4 * (seams.there - level)
        jumps = torch.stack([here[..., 0] - there[..., 0], 2 * here[..., 0] - here[..., 1] - there[..., 0],
                             2 * there[..., 0] - there[..., 1] - here[..., 0]], -1) * 64  # about grey levels
        jumps = jumps.sign() * jumps.abs().log1p() / 2
        seen = torch.cat([here, there, jumps], -1).transpose(1, 2).flatten(2)
        hidden = F.gelu(self.across(seen)).mT
        for layer in self.along:
            hidden = hidden + F.gelu(layer(hidden))
        pooled = torch.cat([hidden.mean(-1), hidden.amax(-1), self.measured(seams.measured)], -1)
        odds: Tensor = self.out(pooled)[:, 0] - (self.trust * seams.measured[:, :2]).sum(-1)
        return odds


class Sides(NamedTuple):
    """What the network sees of pieces.

    Attributes:
        given: `[N, P, 4, C, s, COLUMNS]`: the side in each direction, of pieces as they are given.
        states: of the pieces.
    """

    given: Tensor
    states: States

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape (N, 4, P, P, S) of a table of all seams, in which they are numbered."""
        count, pieces = self.given.shape[:2]
        return count, 4, pieces, pieces, len(self.states)

    def at(self, seams: Tensor, measured: Tensor) -> Seams:
        """Look at seams, by their numbers `[M]`, whose measured costs are known."""
        n, d, i, j, r = torch.unravel_index(seams, self.shape)
        states, back = self.states, OPPOSITE[d]
        there = self.given[n, j, states.face[r, back]].float()
        if len(states) > 1:
            there = torch.where(states.backwards[r, back][:, None, None, None], there.flip(2), there)
            there = there.gather(1, states.colours[r][:, :, None, None].expand_as(there))
            there = torch.where(states.negative[r][:, None, None, None], 1 - there, there)
        return Seams(self.given[n, i, d].float(), there, measured.float())


def sides_of(pieces: Tensor, states: States) -> Sides:
    """Cut the sides out of pieces `[N, P, C, s, s]` in [0, 1]."""
    return Sides(_sides(pieces), states)


def measured_at(seams: Tensor, tables: Tables) -> Tensor:
    """Return the measured costs `[M, MEASURED]` of seams, by their numbers `[M]`."""
    n, d, i, j, r = torch.unravel_index(seams, tables.logs[0].shape)
    logs = [log.flatten()[seams] for log in tables.logs]
    relative = [(2 * log - rivals[n, d, i] - rivals[n, tables.states.face[r, OPPOSITE[d]], j]).clamp(-LIMIT, LIMIT)
                for log, rivals in zip(logs, tables.rivals, strict=True)]
    return torch.stack([*relative, *(log / 4 - 1.5 for log in logs)], -1)


def _sides(pieces: Tensor) -> Tensor:
    """Return `[..., 4, C, s, COLUMNS]`, from the seam inwards, of pieces `[..., C, s, s]`."""
    most = min(COLUMNS, pieces.shape[-1])
    turned = pieces.mT
    found = torch.stack([pieces.flip(-1)[..., :most], pieces[..., :most], turned.flip(-1)[..., :most],
                         turned[..., :most]], -4)
    return torch.cat([found, found[..., -1:].expand(*found.shape[:-1], COLUMNS - most)], -1)


def mirror(seams: Tensor, shape: tuple[int, ...], states: States) -> Tensor:
    """Return the numbers of the same seams as seen from the other piece."""
    n, d, i, j, r = torch.unravel_index(seams, shape)
    return (((n * 4 + states.face[r, OPPOSITE[d]]) * shape[2] + j) * shape[2] + i) * shape[4] + states.inverse[r]


def shortlist(combined: Tensor, most: int) -> Tensor:
    """Return the numbers `[N, 4, P, K]` of the seams that cost least at every side of every piece."""
    _, _, pieces, _, count = combined.shape
    flat = combined.flatten(3)
    best = flat.topk(min(most, (pieces - 1) * count), dim=3, largest=False).indices
    first = torch.arange(flat[..., 0].numel()).view(flat.shape[:3]) * flat.shape[3]
    return best + first[..., None]


@torch.no_grad()
def learned(net: SeamNet, pieces: Tensor, tables: Tables, most: int, at_once: int = 2**14) -> Tensor:
    """Return log costs `[N, 4, P, P, S]`, for which the network looks at the `most` best seams of every side.

    To the measured cost of a seam comes half the surprise at it: the negative logarithm of the probabilities, among
    the seams looked at, that it is the right one for the one piece and for the other.
    """
    combined, states = tables.combined(), tables.states
    sides = sides_of(pieces, states)
    own = shortlist(combined, most).flatten()
    seams = torch.cat([own, mirror(own, sides.shape, states)]).unique()
    back = mirror(seams, sides.shape, states)
    once = seams <= back
    odds = torch.full((combined.numel(),), -torch.inf)
    for some, other in zip(seams[once].split(at_once), back[once].split(at_once), strict=True):
        odds[some] = odds[other] = net(sides.at(some, measured_at(some, tables)))
    sums = odds.view(combined.shape).flatten(3).logsumexp(3)
    n, d, i, j, r = torch.unravel_index(seams, sides.shape)
    theirs = sums[n, states.face[r, OPPOSITE[d]], j]
    surprise = torch.full(combined.shape, _MOST)
    surprise.view(-1)[seams] = (sums[n, d, i] + theirs - 2 * odds[seams]).clamp(max=_MOST)
    costs = combined.add_(surprise.sub_(_LEAST), alpha=_WEIGHT)
    costs.diagonal(dim1=2, dim2=3).fill_(2 * LIMIT)
    return costs

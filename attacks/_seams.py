"""How badly two pieces of an image fit side by side: seam costs, as matrix products over all pairs and states.

Tables are `[N, 4, P, P, S]`: `[n, d, i, j, r]` is about piece j, in state r as seen from piece i, lying in direction d
(`_states`: RIGHT, LEFT, BELOW, ABOVE) of piece i of image n. Lower is better. The same seam stands in them twice, once
as seen from either piece.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ppbench.attacks._states import OPPOSITE, States

# A log cost further out than this says no more than "surely" or "never"; it must not outvote the rest of a board.
LIMIT = 20.0
# Added to every cost before the logarithm: about one grey level, so that exact copies (flat pieces) claim no more.
_FLOOR = 1.0
_CHUNK = 2**22  # pairs of edges held at a time

ByRows = Callable[[slice], Tensor]  # the rows of a table, worked out on demand


class Edges(NamedTuple):
    """One side of each of E pieces.

    Attributes:
        outer: `[N, E, C, s]` the pixels at the seam.
        inner: `[N, E, C, s]` those behind them.
    """

    outer: Tensor
    inner: Tensor


class Tables(NamedTuple):
    """What is measured at every seam.

    Attributes:
        logs: two tables `[N, 4, P, P, S]` float32: the logarithms of MGC and of prediction.
        rivals: two of `[N, 4, P]`: the second smallest that each side of each piece has with other pieces.
        states: of the pieces.
    """

    logs: tuple[Tensor, Tensor]
    rivals: tuple[Tensor, Tensor]
    states: States

    def relative(self, which: int) -> Tensor:
        """Return each cost relative to the rivals on both sides, log(c^2 / (row's * column's)), `[N, 4, P, P, S]`.

        Negative where a pair fits better than its rivals do.
        """
        rivals = self.rivals[which]
        theirs = rivals[:, self.states.face[:, OPPOSITE]]  # [N, S, 4, P]: of the side that looks back
        found: Tensor = 2 * self.logs[which]
        found -= rivals[..., None, None]
        found -= theirs.permute(0, 2, 3, 1)[:, :, None]
        return found

    def combined(self) -> Tensor:
        """Add both relative costs: `[N, 4, P, P, S]` in [-20, 20]; 20 for a piece beside itself."""
        total = self.relative(0).add_(self.relative(1)).clamp_(-LIMIT, LIMIT)
        total.diagonal(dim1=2, dim2=3).fill_(LIMIT)
        return total


def combo(pieces: Tensor, states: States, shrink: float = 2.0) -> Tensor:
    """Combine MGC and prediction: each cost relative to its best rivals, then multiplied (logs are added).

    Args:
        pieces: `[N, P, C, s, s]` in [0, 1].
        states: in which they may be.
        shrink: see `mgc`.

    Returns:
        Log costs `[N, 4, P, P, S]` float32 in [-20, 20]; 20 for a piece beside itself. Under one key, the mean over
        images is the cost of all of them together.
    """
    return tables(pieces, states, shrink).combined()


def tables(pieces: Tensor, states: States, shrink: float = 2.0) -> Tables:
    """Measure all seams of pieces `[N, P, C, s, s]` in [0, 1]; the arguments are those of `combo`.

    Colours are compared in CIELAB where the pieces show them as they are, and in RGB where they may be negated or
    exchanged.
    """
    shown = states.all_of(pieces).flatten(1, 2)
    looks = lab if not states.blind else lambda values: values * 100
    steps = _every_direction(pieces.double() * 255, shown.double() * 255, states, partial(_mgc_by_rows, shrink=shrink))
    values = _every_direction(looks(pieces).float(), looks(shown).float(), states, _prediction_by_rows)
    return Tables((steps, values), (_rivals(steps, states), _rivals(values, states)), states)


def _every_direction(given: Tensor, shown: Tensor, states: States, cost: Callable[[Edges, Edges, int], ByRows],
                     ) -> Tensor:
    """Return the log costs `[N, 4, P, P, S]` float32 of all seams; with one state two directions tell the others."""
    count, pieces = given.shape[:2]
    found = torch.empty(count, 4, pieces, pieces, len(states))
    step = max(1, _CHUNK // (count * shown.shape[1]))
    for direction in range(0, 4, 2 if len(states) == 1 else 1):
        by_rows = cost(edges(given, direction), edges(shown, int(OPPOSITE[direction])), len(states))
        for start in range(0, pieces, step):
            rows = slice(start, start + step)
            found[:, direction, rows] = (by_rows(rows) + _FLOOR).log().float().unflatten(2, (pieces, len(states)))
    if len(states) == 1:
        found[:, 1::2] = found[:, ::2].transpose(2, 3)
    return found


def _rivals(logs: Tensor, states: States) -> Tensor:
    """Return the second smallest log cost `[N, 4, P]` that a side has with another piece.

    A piece in other colours, or negated, is no rival of itself.
    """
    pieces = logs.shape[2]
    if pieces == 1:
        return logs.new_zeros(logs.shape[:3])
    shades = len(states) // len(states.turns.unique())
    best = logs.unflatten(4, (-1, shades)).amin(5)
    best.diagonal(dim1=2, dim2=3).fill_(torch.inf)
    second: Tensor = best.flatten(3).topk(min(2, pieces - 1), dim=3, largest=False).values[..., -1]
    return second


def edges(pieces: Tensor, direction: int) -> Edges:
    """Return the sides of pieces `[N, E, C, s, s]` that look in a direction, from the top down or the left on."""
    along = pieces if direction < 2 else pieces.mT
    beside = min(1, pieces.shape[-1] - 1)
    return Edges(along[..., 0], along[..., beside]) if direction % 2 else \
        Edges(along[..., -1], along[..., -1 - beside])


def mgc(here: Edges, there: Edges, shrink: float = 2.0) -> Tensor:
    """Mahalanobis gradient compatibility: does the step across the seam look like the steps beside it?

    Gallagher, "Jigsaw puzzles with pieces of unknown orientation", CVPR 2012. The squared Mahalanobis distance of
    the steps across the seam, from the mean and covariance of the last steps inside the one piece, plus the same
    seen from the other piece. A covariance of few steps is poor (a 4-pixel piece has 4), so it is drawn towards the
    mean covariance of the image's pieces; Gallagher's nine dummy steps of one grey level keep it invertible.

    Args:
        here: one side of E pieces, in 0 to 255.
        there: the side that they meet, of F pieces.
        shrink: how many steps the image's mean covariance counts for; 0 = Gallagher's own cost.

    Returns:
        `[N, E, F]` float64, >= 0.
    """
    return _mgc_by_rows(here, there, shrink=shrink)(slice(None))


def prediction(here: Edges, there: Edges) -> Tensor:
    """Sum of absolute differences between the pixels beyond an edge, extrapolated linearly, and those found there.

    Pomeranz, Shemesh & Ben-Shahar, "A fully automated greedy square jigsaw puzzle solver", CVPR 2011, with p = q = 1
    in place of their 3/10 and 1/16 (measured no worse beside MGC, and some 40 times as fast at 224/16).

    Returns:
        `[N, E, F]`, >= 0.
    """
    return _prediction_by_rows(here, there)(slice(None))


def lab(pieces: Tensor) -> Tensor:
    """Convert sRGB `[N, P, C, s, s]` in [0, 1] to CIELAB (D65), float64; grey becomes its L alone.

    Images of neither 1 nor 3 channels are only scaled to L's range [0, 100].
    """
    values = pieces.double()
    channels = pieces.shape[2]
    if channels not in (1, 3):
        return values * 100
    linear = torch.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    if channels == 1:
        return 116 * _lab_root(linear) - 16
    to_xyz = linear.new_tensor([[0.412453, 0.357580, 0.180423],
                                [0.212671, 0.715160, 0.072169],
                                [0.019334, 0.119193, 0.950227]])
    white = linear.new_tensor([0.95047, 1.0, 1.08883])
    x, y, z = _lab_root(torch.einsum("xc,npchw->xnphw", to_xyz / white[:, None], linear))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 2)


def _lab_root(ratio: Tensor) -> Tensor:
    return torch.where(ratio > 0.008856, ratio.clamp_min(0) ** (1 / 3), 7.787 * ratio + 16 / 116)


class _Form(NamedTuple):
    """Squared distances from E distributions of steps, as a quadratic form of the pixels beyond the seam."""

    squares: Tensor
    linear: Tensor
    constant: Tensor

    def distances(self, beyond: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return `[N, E, F]` for pixels `[N, F, C, s]`.

        Sum of (u - c)' A (u - c) = <A, sum u u'> - 2 <A c, u> + sum c' A c: the terms cancel to a small remainder,
        hence float64.
        """
        squares = self.squares[:, rows] @ (beyond @ beyond.mT).flatten(2).mT
        products = self.linear[:, rows] @ beyond.flatten(2).mT
        return (squares - 2 * products + self.constant[:, rows, None]).clamp_min(0)


def _form(here: Edges, shrink: float, states: int) -> _Form:
    """Learn how each edge goes on; `states` edges in a row are of one piece."""
    edge, steps = here.outer, here.outer - here.inner
    channels, length = edge.shape[2:]
    mean = steps.mean(-1, keepdim=True)
    scatter = (steps - mean) @ (steps - mean).mT
    dummies = 2 * (torch.eye(channels, dtype=edge.dtype) + 1)  # (1,1,1), the unit vectors, their negatives, and zero
    each = scatter.unflatten(1, (-1, states))
    common = (each.mean(1, keepdim=True) / length).expand_as(each).flatten(1, 2)
    precision: Tensor = torch.linalg.inv((scatter + dummies + shrink * common) / (length + 2 * channels + 2 + shrink))
    expected = edge + mean
    weighted = precision @ expected
    return _Form(precision.flatten(2), weighted.flatten(2), (expected * weighted).sum((2, 3)))


def _mgc_by_rows(here: Edges, there: Edges, states: int = 1, *, shrink: float) -> ByRows:
    forth, back = _form(here, shrink, 1), _form(there, shrink, states)
    return lambda rows: forth.distances(there.outer, rows) + back.distances(here.outer[:, rows]).mT


def _prediction_by_rows(here: Edges, there: Edges, states: int = 1) -> ByRows:
    ours, theirs = (2 * side.outer - side.inner for side in (here, there))

    def rows_of(rows: slice) -> Tensor:
        forth: Tensor = torch.cdist(ours[:, rows].flatten(2), there.outer.flatten(2), p=1)
        back: Tensor = torch.cdist(here.outer[:, rows].flatten(2), theirs.flatten(2), p=1)
        return forth + back

    return rows_of

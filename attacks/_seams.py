"""How badly two pieces of an image fit side by side: pairwise seam costs, as matrix products over all pairs.

Costs are float tensors `[N, 2, P, P]`: `[n, 0, i, j]` says how badly piece j fits to the right of piece i of image n,
`[n, 1, i, j]` how badly it fits below. Lower is better.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# A log cost further out than this says no more than "surely" or "never"; it must not outvote the rest of a board.
LIMIT = 20.0
# Added to every cost before the logarithm: about one grey level, so that exact copies (flat pieces) claim no more.
_FLOOR = 1.0


def combo(pieces: Tensor, shrink: float = 2.0) -> Tensor:
    """Combine MGC and prediction: each cost relative to its best rivals, then multiplied (logs are added).

    Args:
        pieces: `[N, P, C, s, s]` in [0, 1].
        shrink: see `mgc`.

    Returns:
        Log costs `[N, 2, P, P]` float32 in [-20, 20]; 20 on the diagonal. Under one key, the mean over images
        is the cost of all of them together.
    """
    logs = relative(mgc(pieces, shrink)) + relative(prediction(pieces))
    logs = logs.clamp(-LIMIT, LIMIT)
    logs.diagonal(dim1=-2, dim2=-1).fill_(LIMIT)
    return logs.float()


def mgc(pieces: Tensor, shrink: float = 2.0) -> Tensor:
    """Mahalanobis gradient compatibility: does the step across the seam look like the steps beside it?

    Gallagher, "Jigsaw puzzles with pieces of unknown orientation", CVPR 2012. The squared Mahalanobis distance of
    the steps across the seam, from the mean and covariance of the last steps inside the one piece, plus the same
    seen from the other piece. A covariance of few steps is poor (a 4-pixel piece has 4), so it is drawn towards the
    mean covariance of the image's pieces; Gallagher's nine dummy steps of one grey level keep it invertible.

    Args:
        pieces: `[N, P, C, s, s]` in [0, 1].
        shrink: how many steps the image's mean covariance counts for; 0 = Gallagher's own cost.

    Returns:
        `[N, 2, P, P]` float64, >= 0.
    """
    return _both(lambda p: _mgc_across(p, shrink), pieces.double() * 255)


def prediction(pieces: Tensor) -> Tensor:
    """Sum of absolute differences between the pixels beyond an edge, extrapolated linearly, and those found there.

    Pomeranz, Shemesh & Ben-Shahar, "A fully automated greedy square jigsaw puzzle solver", CVPR 2011, in CIELAB, with
    p = q = 1 in place of their 3/10 and 1/16 (measured no worse beside MGC, and some 40 times as fast at 224/16).

    Args:
        pieces: `[N, P, C, s, s]` in [0, 1].

    Returns:
        `[N, 2, P, P]` float64, >= 0.
    """
    return _both(_prediction_across, lab(pieces))


def relative(costs: Tensor) -> Tensor:
    """Return log(cost^2 / (second best of its row * second best of its column)), `[N, 2, P, P]` float64.

    Negative where a pair fits better than its rivals do; the diagonal never is a rival and means nothing.
    """
    pieces = costs.shape[-1]
    if pieces == 1:
        return torch.zeros_like(costs)
    rivals = costs.clone()
    rivals.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    rank = min(2, pieces - 1)
    row = rivals.topk(rank, dim=-1, largest=False).values[..., -1:]
    column = rivals.topk(rank, dim=-2, largest=False).values[..., -1:, :]
    return 2 * (costs + _FLOOR).log() - (row + _FLOOR).log() - (column + _FLOOR).log()


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


def _both(across: Callable[[Tensor], Tensor], pieces: Tensor) -> Tensor:
    """Cost of j to the right of i, and, turned over the diagonal, of j below i."""
    return torch.stack([across(pieces), across(pieces.mT)], 1)


def _edges(pieces: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two first and the two last columns, each `[N, P, C, s]`, from left to right."""
    beside = min(1, pieces.shape[-1] - 1)
    return pieces[..., 0], pieces[..., beside], pieces[..., -1 - beside], pieces[..., -1]


def _mgc_across(pieces: Tensor, shrink: float) -> Tensor:
    left, left_inner, right_inner, right = _edges(pieces)
    forth = _mahalanobis(right, right - right_inner, left, shrink)
    back = _mahalanobis(left, left - left_inner, right, shrink)
    return forth + back.mT


def _mahalanobis(edge: Tensor, steps: Tensor, beyond: Tensor, shrink: float) -> Tensor:
    """Distances `[N, P, P]` of the steps from `edge` of piece i to `beyond` of piece j, all three `[N, P, C, s]`.

    Multiplied out: sum of (u - c)' A (u - c) = <A, sum u u'> - 2 <A c, u> + sum c' A c. The terms cancel to a
    small remainder, hence float64.
    """
    channels, length = edge.shape[2:]
    mean = steps.mean(-1, keepdim=True)
    scatter = (steps - mean) @ (steps - mean).mT
    dummies = 2 * (torch.eye(channels, dtype=edge.dtype) + 1)  # (1,1,1), the unit vectors, their negatives, and zero
    common = scatter.mean(1, keepdim=True) / length
    precision: Tensor = torch.linalg.inv((scatter + dummies + shrink * common) / (length + 2 * channels + 2 + shrink))
    expected = edge + mean
    weighted = precision @ expected
    squares = precision.flatten(2) @ (beyond @ beyond.mT).flatten(2).mT
    products = weighted.flatten(2) @ beyond.flatten(2).mT
    distances: Tensor = squares - 2 * products + (expected * weighted).sum((2, 3))[..., None]
    return distances.clamp_min(0)


def _prediction_across(pieces: Tensor) -> Tensor:
    left, left_inner, right_inner, right = (edge.flatten(2) for edge in _edges(pieces))
    forth: Tensor = torch.cdist(2 * right - right_inner, left, p=1)
    back: Tensor = torch.cdist(right, 2 * left - left_inner, p=1)
    return forth + back

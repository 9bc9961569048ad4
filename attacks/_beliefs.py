"""Where shuffled pieces belong: beliefs about all of them at once, and what neighbours tell each other.

Beliefs are log-probabilities `[n, P, H, W]` that piece i lies at row r, column c; P = H W, and all places are taken.
"""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SINKHORN = 8  # rounds; the last makes the pieces of every place sum to 1
_LEAST = 1e-5  # probability: messages are bounded by it
_NEVER = -1e4  # logit


class Logits(NamedTuple):
    """How well pieces fit side by side in one direction.

    Attributes:
        fits: `[n, P, P]` piece j right after piece i.
        last: `[n, P]` nothing after piece i.
        first: `[n, P]` nothing before piece j.
    """

    fits: Tensor
    last: Tensor
    first: Tensor


class Seam(NamedTuple):
    """Likelihoods that pieces lie side by side in one direction.

    Attributes:
        together: `[n, P, P]`: piece j comes right after piece i, in proportion.
        last: `[n, P]`: the log-probability that nothing comes after piece i.
        first: `[n, P]`: that nothing comes before it.
    """

    together: Tensor
    last: Tensor
    first: Tensor


def doubly_stochastic(logits: Tensor) -> Tensor:
    """Return log-probabilities `[n, P, H, W]`: pieces sum to 1 over places and places over pieces (Sinkhorn 1967)."""
    flat = logits.flatten(2)
    for _ in range(SINKHORN):
        flat = flat - flat.logsumexp(2, keepdim=True)
        flat = flat - flat.logsumexp(1, keepdim=True)
    return flat.view_as(logits)


def seam(logits: Logits) -> Seam:
    """Weigh every pair against all others that either of the two could be part of."""
    after, before = rivals(logits)
    after, before = after.log_softmax(2), before.log_softmax(1)
    together = ((after[:, :, :-1] + before[:, :-1]) / 2).exp()
    return Seam(together, after[:, :, -1], before[:, -1])


def rivals(logits: Logits) -> tuple[Tensor, Tensor]:
    """Return what may follow each piece, nothing included, `[n, P, P + 1]`, and what may precede, `[n, P + 1, P]`."""
    own = torch.eye(logits.fits.shape[1], dtype=torch.bool, device=logits.fits.device)
    fits = logits.fits.masked_fill(own, _NEVER)
    return torch.cat([fits, logits.last[:, :, None]], 2), torch.cat([fits, logits.first[:, None]], 1)


def from_the_right(beliefs: Tensor, seam: Seam) -> Tensor:
    """Return `[n, P, H, W]`: the log-probability of what is believed at the right of every place, were piece i there.

    Sum over all pieces j of: j comes after i, and j lies at the place to the right.
    """
    told = torch.einsum("nij,njrc->nirc", seam.together, beliefs[..., 1:].exp())
    edge = seam.last[:, :, None, None].expand(-1, -1, beliefs.shape[2], 1)
    return torch.cat([(told + _LEAST).log(), edge], 3)


def from_the_left(beliefs: Tensor, seam: Seam) -> Tensor:
    """Return the same of the left side of every place."""
    backwards = Seam(seam.together.transpose(1, 2), seam.first, seam.last)
    return from_the_right(beliefs.flip(3), backwards).flip(3)


def messages(beliefs: Tensor, across: Seam, down: Seam) -> Tensor:
    """Return what the neighbours at the right, left, below and above tell: `[4, n, P, H, W]`."""
    turned = beliefs.transpose(2, 3)
    return torch.stack([from_the_right(beliefs, across), from_the_left(beliefs, across),
                        from_the_right(turned, down).transpose(2, 3), from_the_left(turned, down).transpose(2, 3)])


def assigned(beliefs: Tensor) -> Tensor:
    """Return the piece that belongs at each place, `[n, H W]`: the most probable assignment (Hungarian method)."""
    scores = beliefs.detach().flatten(2).transpose(1, 2).double().cpu().numpy()  # places first
    return torch.stack([torch.from_numpy(linear_sum_assignment(one, maximize=True)[1]) for one in scores])

"""Asking a victim about guesses as its clients ask it, under random transformations, and what its answers say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.defense import draw_keys, resize
from ppbench.seeding import spawn
from ppbench.view import Algorithm, View

Loss = Literal["poincare", "margin"]
_SURE = 1 - 1e-4  # a one-hot vector's length: on the unit sphere itself every distance is infinite
_LEAST = 1e-6


@dataclass(frozen=True)
class Victim:
    """A white-box victim, asked about plain images."""

    net: nn.Module
    algorithm: Algorithm

    @staticmethod
    def of(view: View) -> "Victim":
        """Return the victim of a view that holds its weights, in eval mode; its weights need no gradient."""
        net = view.model.build().to(view.public.pixels.device).eval().requires_grad_(False)
        return Victim(net.to(memory_format=torch.channels_last), view.algorithm)

    def logits(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the logits `[N, classes]` of plain images `[N, C, H, W]` in [0, 1]; differentiable.

        The images are protected as a client's queries are, with keys of one's own. Where that has no derivative, a
        plain resize stands in (straight through: Athalye et al. 2018, arXiv 1802.00420).
        """
        how = self.algorithm
        count, *shape = images.shape
        keys = draw_keys(how.defense, how.key_scope, count, (shape[0], shape[1], shape[2]), spawn(rng), how.clients)
        sent = how.defense.query(images, keys, spawn(rng))
        if images.requires_grad and not sent.requires_grad:
            _, c, h, w = sent.shape
            plain = resize(images, (c, h, w))
            sent = sent + (plain - plain.detach())
        found: Tensor = self.net(sent)
        return found


def poincare(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the hyperbolic distance `[N]` of logits of L1 norm 1 from the wanted class (Struppek et al. 2022).

    Other than cross-entropy it has a gradient where the victim is sure already.
    """
    found = logits / logits.abs().sum(1, keepdim=True).clamp(min=_LEAST)
    wanted = _SURE * F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    apart, room = (found - wanted).square().sum(1), 1 - found.square().sum(1)
    return torch.acosh(1 + 2 * apart / (room.clamp(min=_LEAST) * (1 - _SURE**2)) + _LEAST)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the best other logit exceeds that of the wanted class, `[N]` (Yuan et al. 2023)."""
    wanted = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(wanted, -torch.inf).amax(1) - logits[wanted]


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"poincare": poincare, "margin": margin}


def transformed(images: Tensor, smallest: float, rng: torch.Generator) -> Tensor:
    """Cut every image at a random place, enlarge it to its size again, and mirror half of them; differentiable.

    Args:
        images: `[N, C, H, W]`.
        smallest: share of the side that a cut has at least.
        rng: draws sizes, places and who is mirrored.
    """
    count = len(images)
    scale = smallest + (1 - smallest) * torch.rand(count, generator=rng)
    shift = (1 - scale)[:, None] * (2 * torch.rand(count, 2, generator=rng) - 1)
    side = torch.where(torch.rand(count, generator=rng) < 0.5, -scale, scale)
    moves = torch.zeros(count, 2, 3)
    moves[:, 0, 0], moves[:, 1, 1], moves[:, :, 2] = side, scale, shift
    grid = F.affine_grid(moves.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

"""Asking a victim about guesses as its clients ask it, under random transformations, and what its answers say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.attacks._straight import straight_through
from ppbench.defense import draw_keys
from ppbench.errors import NotApplicable
from ppbench.seeding import spawn
from ppbench.view import Algorithm, View

Loss = Literal["poincare", "margin"]
_SURE = 1 - 1e-4  # a one-hot vector's length: on the unit sphere itself every distance is infinite
_LEAST = 1e-6
_PROBED = 8  # images by which it is seen what queries depend on


@dataclass(frozen=True)
class Victim:
    """A white-box victim, asked about plain images.

    Attributes:
        net: in eval mode; its weights need no gradient.
        algorithm: by which its clients protect what they ask about.
        leads: whether the defense has a derivative that is not 0.
    """

    net: nn.Module
    algorithm: Algorithm
    leads: bool

    @staticmethod
    def of(view: View, rng: torch.Generator) -> "Victim":
        """Return the victim of a view that holds its weights.

        Raises:
            NotApplicable: it tells no classes apart, its weights are not finite, or clients mix images of others into
                what they ask about.
        """
        if view.classes < 2:
            raise NotApplicable("the victim knows one class only, so that its weights tell nothing of it")
        net = view.model.build().eval().requires_grad_(False)
        if not all(value.isfinite().all() for value in net.state_dict().values()):
            raise NotApplicable("the victim's weights are not finite: lower its learning_rate")
        some = view.public.pixels[torch.arange(_PROBED) % len(view.public)]
        own, others = _dependence(view.algorithm, some, rng)
        if others:
            raise NotApplicable("clients mix several images into what they ask about: a guess cannot be asked alone")
        return Victim(net.to(memory_format=torch.channels_last), view.algorithm, own)

    def logits(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the logits `[N, classes]` of plain images `[N, C, H, W]` in [0, 1]; differentiable.

        The images are protected and rounded as a client's queries are, with keys of one's own.
        """
        sent = straight_through(queried(self.algorithm, images, rng), images, self.algorithm.quantise, self.leads)
        found: Tensor = self.net(sent)
        return found


def queried(how: Algorithm, images: Tensor, rng: torch.Generator) -> Tensor:
    """Return images `[N, C, H, W]` as clients would send them to be classified, with keys of one's own, not rounded."""
    count, c, h, w = images.shape
    keys = draw_keys(how.defense, how.key_scope, count, (c, h, w), spawn(rng), how.clients)
    return how.defense.query(images, keys, spawn(rng))


def _dependence(how: Algorithm, images: Tensor, rng: torch.Generator) -> tuple[bool, bool]:
    """Say whether the first of these queries has a derivative by its own image, and by the others."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        first = queried(how, images, rng)[0]
        if not first.requires_grad:
            return False, False
        (slope,) = torch.autograd.grad((first * torch.randn(first.shape, generator=rng)).sum(), images)
    return bool(slope[0].any()), bool(slope[1:].any())


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
    grid = F.affine_grid(moves, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

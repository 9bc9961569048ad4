"""A small U-Net that corrects a first estimate."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.attacks._inverter import Problem
from ppbench.defense import resize

LEVELS = 2  # times that the side is halved after the first fold


class UNet(nn.Module):
    """Correct a first estimate, with the released image, the place and the label in view (Ronneberger et al. 2015).

    The first fold packs 2 x 2 pixels into channels, so that all convolutions run at half the side or less.
    Args: `released` `[n, c, h, w]`, `base` `[n, C, H, W]`, `labels` `[n]` (-1 = unknown); returns `[n, C, H, W]`.
    """

    def __init__(self, problem: Problem, width: int, depth: int) -> None:
        super().__init__()
        channels, height, across = problem.image
        self.unit = 2 ** (LEVELS + 1)
        rows, columns = math.ceil(height / self.unit), math.ceil(across / self.unit)
        widths = [width * 2**level for level in range(LEVELS + 1)]
        self.fold = nn.Conv2d(8 * channels, width, 3, padding=1)
        self.label = nn.Embedding(problem.classes + 1, widths[-1])
        self.place = nn.Parameter(torch.zeros(widths[-1], rows, columns))
        self.down = nn.ModuleList(_blocks(w, depth) for w in widths[:-1])
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = _blocks(widths[-1], depth)
        self.enlarge = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_blocks(w, depth) for w in widths[:-1])
        self.unfold = nn.Conv2d(width, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.unfold.weight)
        self.unfold.bias = nn.Parameter(torch.zeros(4 * channels))
        nn.init.zeros_(self.label.weight)

    def forward(self, released: Tensor, base: Tensor, labels: Tensor) -> Tensor:
        """Return the correction."""
        _, c, h, w = base.shape
        shown = resize(released, (c, h, w))
        x = F.pad(torch.cat([2 * base - 1, 2 * shown - 1], 1), (0, -w % self.unit, 0, -h % self.unit), mode="replicate")
        x = self.fold(F.pixel_unshuffle(x, 2))
        kept = []
        for blocks, halve in zip(self.down, self.halve, strict=True):
            x = blocks(x)
            kept.append(x)
            x = halve(x)
        x = self.middle(x + self.place + self.label(labels + 1)[:, :, None, None])
        for blocks, enlarge, before in zip(reversed(self.up), reversed(self.enlarge), reversed(kept), strict=True):
            x = blocks(before + F.pixel_shuffle(enlarge(x), 2))
        return F.pixel_shuffle(self.unfold(x), 2)[..., :h, :w]


class Residual(nn.Module):
    """A convolution of what was normalised, beside the identity; without the norm a few hundred steps reach little."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape `[n, width, h, w]`."""
        return x + F.gelu(self.conv(self.norm(x)))


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(depth)))

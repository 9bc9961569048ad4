"""A layer in front of a network whose gradient is a table of the images that went through, and how it is read.

Source: Fowl et al. 2022, "Robbing the fed: directly obtaining private data in federated learning with modified models"
(arXiv 2110.13057), in the form where an image moves the unit of its own bin alone. Here the images are sorted by
several measurements at once, so that the table is read by peeling (Goodrich & Mitzenmacher 2011, "Invertible Bloom
lookup tables"): an image that is alone in a bin is taken out of all others that it is in, which leaves others alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppbench.model import make_network

ALIVE = 1e-5  # of the largest bias gradient: what is less is an empty bin
SAME = 1e-3  # root mean square between what two bins say of one image, in units of the pixel range
OFF = 0.1  # root mean square distance from the grid, in its steps; of values drawn at random: 0.29
PUSH = 1e-2  # how far an image moves what the network is shown


class Imprint(nn.Module):
    """Units that each answer to images of one bin, before a network that hardly notices.

    Unit i gives the position of a measurement between the edges of its bin, cut off to [0, 1]: its gradient is a sum
    over the images in the bin, each times one factor, which is the same for all units.
    """

    def __init__(self, net: nn.Module, pixels: int, bins: int) -> None:
        super().__init__()
        self.net = net
        self.bins = nn.Linear(pixels, bins)
        self.push: Tensor
        self.register_buffer("push", torch.zeros(pixels))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits `[N, classes]` of slightly changed images `[N, C, H, W]`."""
        answers = nn.functional.hardtanh(self.bins(images.flatten(1)), 0, 1).sum(1, keepdim=True)
        logits: Tensor = self.net(images + (answers * self.push).view_as(images))
        return logits


def imprinted(factory: str, kwargs: Mapping[str, Any], pixels: int, bins: int) -> Imprint:
    """Build a network behind an imprint layer."""
    return Imprint(make_network(factory, kwargs), pixels, bins)


@torch.no_grad()
def write_bins(layer: Imprint, like: Tensor, measurements: int, rng: torch.Generator) -> None:
    """Set the bins of random measurements so that images like those expected spread over them evenly.

    Args:
        layer: is written to; its bins are dealt to the measurements evenly.
        like: `[M, pixels]`, such images, as the layer sees them.
        measurements: how many.
        rng: draws them.
    """
    bins, pixels = layer.bins.weight.shape
    each = bins // measurements
    lines = torch.randn(measurements, pixels, generator=rng, dtype=torch.float64)
    lines /= lines.norm(dim=1, keepdim=True)
    edges = torch.quantile(lines @ like.double().T, torch.linspace(0, 1, each + 1, dtype=torch.float64), dim=1).T
    wide = (edges[:, -1] - edges[:, 0]).clamp(min=1e-3)
    edges[:, 0] -= wide
    edges[:, -1] += wide  # whatever lies beyond what was expected
    width = edges.diff(dim=1).clamp(min=1e-6)
    layer.bins.weight[: measurements * each] = (lines[:, None] / width[..., None]).flatten(0, 1).float()
    layer.bins.bias[: measurements * each] = (-edges[:, :-1] / width).flatten().float()
    layer.bins.weight[measurements * each :], layer.bins.bias[measurements * each :] = 0, 0
    layer.push.copy_(PUSH * torch.randn(pixels, generator=rng))


@dataclass(frozen=True)
class Read:
    """What a table of bins says.

    Attributes:
        images: `[found, pixels]`, as the layer saw them.
        mixed: `[rest, pixels]`: means of images that share a bin, in the order of the bins' weight.
    """

    images: Tensor
    mixed: Tensor


def read_bins(layer: nn.Linear, weight: Tensor, bias: Tensor, grid: Tensor | None, most: int) -> Read:
    """Read the images out of the gradients of the bins.

    Args:
        layer: the bins.
        weight: `[bins, pixels]`, gradient.
        bias: `[bins]`, gradient.
        grid: values that a pixel can have, evenly spaced and ascending; None = any.
        most: images that there are.
    """
    weight, bias = weight.double(), bias.double()
    least = ALIVE * bias.abs().max()
    found: list[Tensor] = []
    if grid is not None and not _alone(layer, *_said(weight, bias, least), grid)[0]:
        grid = None  # somebody has changed the gradients a little
    for _ in range(most):
        alive, said = _said(weight, bias, least)
        rows, cells = _alone(layer, alive, said, grid)
        fresh = [(said[row], bias[alive[row]], cells[row]) for row in rows]
        if not fresh or len(found) + len(fresh) > most:
            break
        for image, factor, own in fresh:
            weight[own] -= factor * image
            bias[own] -= factor
            found.append(image)
    alive, rest = _said(weight, bias, least)
    rest = rest[bias[alive].abs().argsort(descending=True)]
    return Read(torch.stack(found) if found else weight.new_zeros(0, weight.shape[1]), rest[rest.abs().amax(1) < 2])


def _said(weight: Tensor, bias: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bins that anything fell into, and the means that they tell."""
    alive = torch.nonzero(bias.abs() > least).flatten()
    return alive, weight[alive] / bias[alive, None]


def _alone(layer: nn.Linear, alive: Tensor, said: Tensor, grid: Tensor | None) -> tuple[list[int], Tensor]:
    """Return which bins hold one image, no image twice, and the bins that each image is in `[alive, bins]`.

    One image lies on the grid of pixels, which a mean of several does not; without a grid, it is told by two
    measurements alike, as are several images only if they share both bins.
    """
    position = said @ layer.weight.double().T + layer.bias.double()
    cells = (position > 0) & (position < 1)
    known = torch.zeros(layer.out_features, dtype=torch.bool).index_fill(0, alive, value=True)
    possible = (cells & ~known).sum(1) == 0  # an image is in none that is empty
    apart = torch.cdist(said, said) / said.shape[1] ** 0.5 / 2
    if grid is None:
        single = (apart < SAME).sum(1) > 1
    else:
        off = (said - grid[0]) / (grid[1] - grid[0])
        single = (off - off.round()).square().mean(1).sqrt() < OFF
    good = torch.nonzero(possible & single).flatten().tolist()
    rows: list[int] = []
    for row in good:
        if all(apart[row, other] >= SAME for other in rows):
            rows.append(row)
    return rows, cells

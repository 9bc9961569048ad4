"""Networks of the generator prior: a class-conditional generator that can be cut open, an encoder, a discriminator.

Built for images of any shape (C, H, W): they work on the next larger size that their grid of cells doubles to, at
most `LARGEST` pixels a side; what is generated is cropped, or enlarged where the images are larger.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.data import Shape

LARGEST = 64  # pixels a side; larger images are generated at this size and enlarged
SLOPE = 0.2


@dataclass(frozen=True)
class Canvas:
    """The size at which images of a shape are generated.

    Attributes:
        shape: (C, H, W) of the images.
        inner: (H, W) of what is generated, before it is enlarged to the images' size.
        cells: (rows, columns) of the coarsest features.
        doublings: how often the cells are doubled; they then cover `inner`.
    """

    shape: Shape
    inner: tuple[int, int]
    cells: tuple[int, int]
    doublings: int

    @property
    def size(self) -> tuple[int, int]:
        """Return (H, W) of the doubled cells: at least `inner`."""
        return self.cells[0] << self.doublings, self.cells[1] << self.doublings

    def fit(self, drawn: Tensor) -> Tensor:
        """Crop what the network drew, `[N, C, *size]`, and enlarge it: `[N, C, H, W]`."""
        images = drawn[..., : self.inner[0], : self.inner[1]]
        if self.inner == self.shape[1:]:
            return images
        return F.interpolate(images, self.shape[1:], mode="bilinear", align_corners=False)

    def lay(self, images: Tensor) -> Tensor:
        """Shrink images `[N, C, H, W]` to `inner` and repeat their last row and column: `[N, C, *size]`."""
        if self.inner != self.shape[1:]:
            images = F.interpolate(images, self.inner, mode="bilinear", antialias=True)
        below, right = self.size[0] - self.inner[0], self.size[1] - self.inner[1]
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images


def canvas(shape: Shape) -> Canvas:
    """Choose the coarsest grid (4 to 7 cells on the shorter side) and the doublings for images of a shape."""
    _, height, width = shape
    scale = min(1.0, LARGEST / max(height, width))
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    doublings = max(1, math.floor(math.log2(max(1, min(inner) / 4))))
    cells = math.ceil(inner[0] / 2**doublings), math.ceil(inner[1] / 2**doublings)
    return Canvas(shape, inner, cells, doublings)


@dataclass(frozen=True)
class Design:
    """What the networks are built from.

    Attributes:
        shape: (C, H, W) of the images.
        classes: number of classes.
        latent: length of a latent code.
        width: channels at the two finest resolutions; coarser ones have more.
    """

    shape: Shape
    classes: int
    latent: int
    width: int

    @property
    def canvas(self) -> Canvas:
        """Return the size that the networks work at."""
        return canvas(self.shape)

    def channels(self) -> list[int]:
        """Return the channels of every resolution, the coarsest first."""
        depth = self.canvas.doublings
        return [self.width * min(4, 2 ** max(0, depth - level - 1)) for level in range(depth + 1)]


class GeneratorNet(nn.Module):
    """A generator with an image at every resolution, summed (skip connections as in StyleGAN2, Karras et al. 2020).

    The codes of every class have a normal distribution of their own. The network can be entered at any depth: level k
    is that of the features in front of layer k, the coarsest being level 1.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.canvas = design.canvas
        widths = design.channels()
        self.classes, self.levels = design.classes, len(widths)
        self.centre = nn.Embedding(design.classes + 1, design.latent)  # the last row: class unknown
        self.spread = nn.Embedding(design.classes + 1, design.latent)  # log variance
        self.coarse = widths[0]
        self.start = nn.Linear(design.latent, widths[0] * math.prod(self.canvas.cells))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.draw = nn.ModuleList(nn.Conv2d(width, design.shape[0], 3, padding=1) for width in widths)
        for layer in (self.start, *self.layers):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
        nn.init.zeros_(self.centre.weight)
        nn.init.zeros_(self.spread.weight)

    def codes(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Turn standard normal noise `[N, latent]` into codes of classes `[N]`; the class `classes` = unknown."""
        codes: Tensor = self.centre(labels) + (self.spread(labels) / 2).exp() * noise
        return codes

    def forward(self, codes: Tensor) -> Tensor:
        """Return images `[N, C, H, W]` in (0, 1) of codes `[N, latent]`."""
        return self.finish((self.enter(codes),), 1)

    def enter(self, codes: Tensor) -> Tensor:
        """Return the coarsest features, those of level 1."""
        features = self.start(codes).reshape(len(codes), self.coarse, *self.canvas.cells)
        return F.leaky_relu(features, SLOPE)

    def advance(self, values: tuple[Tensor, ...], level: int) -> tuple[Tensor, Tensor]:
        """Run one layer, from level k to k + 1.

        Args:
            values: features and, except at level 1, the sum of the images drawn at the levels before.
            level: k, below `levels`.
        """
        sketch = self._sketch(values, level)
        doubled = F.interpolate(values[0], scale_factor=2.0, mode="nearest")
        return F.leaky_relu(self.layers[level - 1](doubled), SLOPE), sketch

    def finish(self, values: tuple[Tensor, ...], level: int) -> Tensor:
        """Return the images in which the values of a level (see `advance`) end."""
        while level < self.levels:
            values = self.advance(values, level)
            level += 1
        return self.canvas.fit(torch.sigmoid(self._sketch(values, level)))

    def _sketch(self, values: tuple[Tensor, ...], level: int) -> Tensor:
        """Return the sum of the images drawn so far, that of this level included."""
        drawn: Tensor = self.draw[level - 1](values[0])
        if len(values) == 1:
            return drawn
        return F.interpolate(values[1], scale_factor=2.0, mode="bilinear", align_corners=False) + drawn


class EncoderNet(nn.Module):
    """From images to the mean and log variance of their latent codes (variational: Kingma & Welling 2014)."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.canvas = design.canvas
        self.body, length = _pyramid(design)
        self.head = nn.Linear(length, 2 * design.latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, `[N, latent]` each, of images `[N, C, H, W]` in [0, 1]."""
        mean, spread = self.head(self.body(self.canvas.lay(images) * 2 - 1).flatten(1)).chunk(2, 1)
        return mean, spread.clamp(-8, 4)


class DiscriminatorNet(nn.Module):
    """Tells generated from public images of a class (projection discriminator, Miyato & Koyama 2018)."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.canvas = design.canvas
        self.body, length = _pyramid(design)
        self.head = nn.Linear(length, 1)
        self.embed = nn.Embedding(design.classes + 1, length)
        nn.init.zeros_(self.embed.weight)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scores `[N]` of images `[N, C, H, W]`."""
        features = self.body(self.canvas.lay(images) * 2 - 1).flatten(1)
        score: Tensor = self.head(features)[:, 0] + (features * self.embed(labels)).mean(1)
        return score


def _pyramid(design: Design) -> tuple[nn.Sequential, int]:
    """Return convolutions that halve the canvas down to its cells, and the length of what comes out."""
    widths = design.channels()[::-1]
    layers: list[nn.Module] = []
    channels = design.shape[0]
    for width in widths[1:]:
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        channels = width
    return nn.Sequential(*layers), channels * math.prod(design.canvas.cells)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Compute no gradients for a network's own weights."""
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)

"""Defenses that are a fixed affine map of an image: told by trying, and turned round by differentiation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.data import Images, Shape
from ppbench.defense import Defense
from ppbench.seeding import generator
from ppbench.view import View

Linear = Callable[[Tensor], Tensor]
Protector = Callable[[Tensor, int], Tensor]
_TOLERANCE = 1e-5  # how far from linear, repeatable and separate the defense may be: float32 rounding
_SWING = 0.25  # probes stay this close to mid-grey, where nothing is clipped


@dataclass(frozen=True)
class AffineMap:
    """A map of images A(x) = L x + b, both ways.

    Attributes:
        forward: `L`, from `[n, C, H, W]` to `[n, c, h, w]`.
        adjoint: its transpose.
        offset: `[c, h, w]`, b.
    """

    forward: Linear
    adjoint: Linear
    offset: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the map."""
        return self.forward(images) + self.offset


def map_of(view: View) -> AffineMap | None:
    """Return the view's defense as an affine map; None where it has keys, releases without partners, or is none."""
    algorithm = view.algorithm
    fixed = algorithm.key_scope is None and algorithm.defense.partnered
    return affine_map(algorithm.defense, view.image_shape) if fixed else None


def mirrors(view: View) -> list[int]:
    """Return the axes along which images may be mirrored: 3 left to right, 2 upside down.

    Along these the view's defense, a fixed affine map, turns mirrored images into mirrored releases.
    """
    through = map_of(view)
    if through is None:
        return []
    some = torch.rand(1, *view.image_shape, generator=generator(0), dtype=torch.float64)
    return [axis for axis in (3, 2) if (through(some.flip(axis)) - through(some).flip(axis)).abs().max() < _TOLERANCE]


def noise_of(view: View) -> float:
    """Return the variance of the rounding of released values."""
    # float releases keep the rounding of float32, of a map that may shrink fine detail far below it
    return (1 / 255)**2 / 12 if view.algorithm.quantise == 8 else 1e-10


def affine_map(defense: Defense, shape: Shape) -> AffineMap | None:
    """Return a keyless defense as an affine map of single images; None where it is none, or cannot be differentiated.

    It is run on random images: twice, in other company, and on sums. All are compared in float, before any rounding.
    """
    rng = generator(0)
    x, y = 0.5 + _SWING * (2 * torch.rand(2, 3, *shape, generator=rng, dtype=torch.float64) - 1)
    grey = torch.full_like(x, 0.5)
    protect = _protector(defense)
    try:
        first = protect(x, 1)
        mixed, second, third = protect(0.3 * x + 0.2 * y + 0.5 * grey, 2), protect(y, 3), protect(grey, 4)
        same = [(first, protect(x, 5)), (first[:1], protect(x[:1], 6)), (first, protect(x.flip(0), 7).flip(0)),
                (mixed, 0.3 * first + 0.2 * second + 0.5 * third)]
        linear = all(a.shape == b.shape and (a - b).abs().max() < _TOLERANCE for a, b in same)
        return _affine(protect, shape) if linear and len(first) == len(x) else None
    except (RuntimeError, TypeError):  # where the defense takes no float64 or has no gradient
        return None


def _protector(defense: Defense) -> Protector:
    def protect(images: Tensor, seed: int) -> Tensor:
        count = len(images)
        private = Images(images, torch.zeros(count, dtype=torch.int64), torch.arange(count))
        return defense.protect(private, None, generator(seed)).images.double()
    return protect


def _affine(protect: Protector, shape: Shape) -> AffineMap:
    grey = torch.full((1, *shape), 0.5, dtype=torch.float64)
    middle = protect(grey, 0)

    def forward(images: Tensor) -> Tensor:
        scale = _SWING / images.abs().amax().clamp(min=1e-300)
        return (protect(0.5 + scale * images, 0) - middle) / scale

    def adjoint(released: Tensor) -> Tensor:
        with torch.enable_grad():
            images = grey.repeat(len(released), 1, 1, 1).requires_grad_()
            (found,) = torch.autograd.grad((protect(images, 0) * released).sum(), images)
        return found

    adjoint(middle)  # fails here if at all
    return AffineMap(forward, adjoint, (middle - forward(grey))[0])

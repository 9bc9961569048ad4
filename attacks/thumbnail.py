"""What averaging leaves: the image most likely behind a release that a fixed linear map made."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._wiener import AffineMap, Spectrum, Wiener
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import Defense, resize
from ppbench.seeding import generator
from ppbench.view import View

HELD, HELD_VALUES = 32, 2**19  # public images, and values of them, at most on which priors are compared
_CHUNK = 2**16  # pixel values worked on at a time: what fits into a cache
_TOLERANCE = 1e-5  # how far from linear, repeatable and separate the defense may be: float32 rounding
_SWING = 0.25  # probes stay this close to mid-grey, where nothing is clipped


@dataclass(frozen=True)
class NaturalImages(Prior):
    """Choose the Gaussian prior that restores public images best, every fourth held out, protected by the adversary.

    The candidates: the power spectrum of the other public images, and plain smoothness of the same contrast.
    """

    needs = frozenset({"public", "algorithm"})
    steps: int = 200

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return the chosen prior (`Spectrum.as_tensors`); nothing where the defense is no fixed linear map."""
        through = affine_map(view.algorithm.defense, view.image_shape) if _fixed(view) else None
        if through is None:
            return {}
        held = torch.arange(len(view.public)) % 4 == 0
        some = view.public.pixels[~held] if len(held) > 1 else view.public.pixels
        tests = view.public[held][:max(1, min(HELD, HELD_VALUES // math.prod(view.image_shape)))]
        released = view.algorithm.protect(tests, rng).images
        found = [Spectrum.of(some), Spectrum.smooth(some)]
        errors = [(_restored(released, through, prior, view, self.steps) - tests.pixels).square().mean()
                  for prior in found]
        best = int(torch.stack(errors).argmin())
        return found[best].as_tensors() | {"chosen": torch.tensor(best), "errors": torch.stack(errors)}


@dataclass(frozen=True)
class Thumbnail(Attack):
    """Solve for the most likely image behind a fixed, linear defense: mix-up, pixelation, blur (Wiener 1949).

    Minimises `|A x - y|^2 / s + |x - m|^2_P`, A the defense itself, s the variance of rounding to 8 bit, and P a
    stationary prior: the power spectrum of the public images, or smoothness where that does better on a hold-out.
    What A keeps (the mean of every patch, say) comes back as it was released. Of any other defense, the release
    itself is returned.

    Attributes:
        steps: iterations of conjugate gradients at most.
    """

    requires = frozenset({"images", "public", "algorithm"})
    default_threat = "ciphertext-only"
    steps: int = 200

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the prior of natural images, which depends on public images and algorithm alone."""
        return {"natural": NaturalImages(self.steps)}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the most likely images."""
        learnt = priors["natural"]
        through = affine_map(view.algorithm.defense, view.image_shape) if learnt else None
        if through is None:
            return Reconstruction(resize(view.images, view.image_shape), aligned=view.has_partner,
                                  note="degenerate: as-released")
        found = _restored(view.images, through, Spectrum.from_tensors(learnt), view, self.steps)
        prior = ("the public power spectrum", "smoothness")[int(learnt["chosen"])]
        return Reconstruction(found, aligned=view.has_partner, note=f"most likely under {prior}")


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


Protector = Callable[[Tensor, int], Tensor]


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


def _fixed(view: View) -> bool:
    return view.algorithm.key_scope is None and view.algorithm.defense.partnered


def _restored(released: Tensor, through: AffineMap, prior: Spectrum, view: View, steps: int) -> Tensor:
    # float releases keep the rounding of float32, of a map that may shrink fine detail far below it
    noise = (1 / 255)**2 / 12 if view.algorithm.quantise == 8 else 1e-10
    estimator = Wiener.of(through, prior, noise, view.image_shape, steps)
    rows = max(1, _CHUNK // math.prod(view.image_shape))
    return torch.cat([estimator.estimate(some) for some in released.split(rows)])

"""What a generator cannot draw is taken from the linear estimate, as far as images whose originals are known tell.

A generator is sure of what its images have in common, a linear estimate of what the release shows; of every band of
frequencies that share of the difference is taken which comes closest. Where the defense is a fixed linear map, the
outcome is made to agree with the release (as deviations from a generator's range are by Dhar, Grover and Ermon 2018,
"Modeling sparse deviations for compressed sensing using generative models", arXiv 1807.01442).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attack import Prior
from ppbench.attacks._affine import map_of
from ppbench.attacks._bands import shares
from ppbench.attacks._consistent import as_seen
from ppbench.attacks._gan import held_out
from ppbench.attacks._latent_search import Search, Stop, likeness
from ppbench.attacks._wiener import dct, idct
from ppbench.attacks.linear import LinearPrior
from ppbench.codec import Tensors
from ppbench.view import View


@dataclass(frozen=True)
class LinearOfSeen(Prior):
    """The linear estimate (`LinearPrior`) learnt from those public images that a generator learns from, too."""

    needs = frozenset({"public", "algorithm"})

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return the map's tensors."""
        some = view.public[~held_out(view.public)]
        return LinearPrior().train(View(replace(view.sealed, public=some)), rng)


def blended(view: View, search: Search, linear: Tensor | None, released: Tensor, truth: Tensor) -> list[Stop]:
    """Return the best of a search's stops, blended with a linear estimate and made to agree with the release.

    The linear estimate itself competes with them.

    Args:
        view: tells the defense.
        search: that has ended.
        linear: `[N, C, H, W]`, the linear estimate; None = there is none.
        released: `[N, c, h, w]`, of the images searched for.
        truth: `[n, C, H, W]`, the last n of these, by which to tell what is best. Nothing is returned without any, or
            where there is neither a linear estimate nor anything to agree with.
    """
    if not len(truth) or (linear is None and map_of(view) is None):
        return []
    known = slice(-len(truth), None)
    starts = {stop.name: stop.images for stop in search.stops}
    if linear is not None:
        starts = {name: blend(images, linear, truth) for name, images in starts.items()} | {"linear": linear}
    worth = {name: likeness(as_seen(view, images[known], released[known]), truth) for name, images in starts.items()}
    best = max(worth, key=lambda name: worth[name])
    name = f"{best}, blended with the linear estimate" if linear is not None and best != "linear" else best
    return [search.measured(name, as_seen(view, starts[best], released))]


def blend(images: Tensor, others: Tensor, truth: Tensor) -> Tensor:
    """Move images towards others, in every band of frequencies by the share that serves the last of them best.

    Args:
        images: `[N, C, H, W]` in [0, 1].
        others: `[N, C, H, W]` in [0, 1].
        truth: `[n, C, H, W]`, what the last n should be.
    """
    apart = dct((others - images).double())
    ours, wanted = apart[-len(truth):], dct((truth - images[-len(truth):]).double())
    share = shares((ours * wanted).sum((0, 1))[None], ours.square().sum((0, 1))[None])
    return (images + idct(share * apart).float()).clamp(0, 1)

"""What a generator cannot draw, found where the defense is a fixed linear map: the likeliest deviation from its images.

Source: Dhar, Grover and Ermon 2018, "Modeling sparse deviations for compressed sensing using generative models"
(arXiv 1807.01442). Deviations are Gaussian here, and as coarse and fine as those from images whose originals are known.
"""

import torch
from torch import Tensor

from ppbench.attacks._affine import map_of, noise_of
from ppbench.attacks._latent_search import Search, Stop, likeness
from ppbench.attacks._wiener import Spectrum, Wiener, bands, dct
from ppbench.view import View

ITERATIONS = 200  # of conjugate gradients, at most


def completed(view: View, search: Search, released: Tensor, truth: Tensor) -> list[Stop]:
    """Return the best of a search's stops, its images changed until the defense makes of them what was released.

    Beside them stands the mean colour of public images, with which the estimate is the linear one.

    Args:
        view: tells the defense and the public images. Nothing is returned where it is no fixed linear map.
        search: that has ended.
        released: `[N, c, h, w]`, of the images searched for.
        truth: `[n, C, H, W]`, the last n of these, by which to tell what is best; nothing is returned without any.
    """
    through = map_of(view) if len(truth) else None
    if through is None:
        return []
    images, known = Spectrum.of(view.public.pixels), slice(-len(truth), None)
    flat = images.mean.float()[:, None, None].expand(len(released), *view.image_shape)
    starts = {"mean colour": flat} | {stop.name: stop.images for stop in search.stops}
    priors = {"mean colour": images} | {stop.name: spectrum_of_errors(images, truth - stop.images[known])
                                        for stop in search.stops}
    solvers = {name: Wiener.of(through, prior, noise_of(view), view.image_shape, ITERATIONS)
               for name, prior in priors.items()}
    worth = {name: likeness(solver.mended(starts[name][known], released[known], 0), truth)
             for name, solver in solvers.items()}
    best = max(worth, key=lambda name: worth[name])
    return [search.measured(f"{best} and what it lacks", solvers[best].mended(starts[best], released))]


def spectrum_of_errors(images: Spectrum, errors: Tensor) -> Spectrum:
    """Return what estimates `[n, C, H, W]` err by: coloured as images are, in every band of frequencies as strong."""
    strength = dct(errors.double()).square().mean((0, 1))
    expected = images.covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    band = bands(*strength.shape).flatten()
    theirs, ours = (torch.zeros(int(band.max()) + 1, dtype=torch.float64).index_add(0, band, part.flatten())
                    for part in (expected, strength))
    share = (ours / theirs)[band].unflatten(0, strength.shape)
    return Spectrum(torch.zeros_like(images.mean), share[:, :, None, None] * images.covariance)

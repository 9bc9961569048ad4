"""Imprint: a malicious server hands out a model whose update spells out the clients' images.

Source: Fowl et al. 2022, "Robbing the fed: directly obtaining private data in federated learning with modified models"
(arXiv 2110.13057).
"""

import math
from dataclasses import dataclass

import torch

from ppbench.attack import CraftingAttack, Priors, Reconstruction
from ppbench.attacks._imprint import Imprint, read_bins, write_bins
from ppbench.attacks._released import like_released
from ppbench.bounds import at_least, between
from ppbench.errors import NotApplicable
from ppbench.model import Model
from ppbench.view import View

FACTORY = "ppbench.attacks._imprint:imprinted"
MOST_BINS = 2**16


@dataclass(frozen=True)
class ImprintAttack(CraftingAttack):
    """Put a layer before the network whose gradient holds every image that is alone in a bin (Fowl et al. 2022).

    Recovers the *released* images. Several measurements sort the images at once, so that those found are taken out of
    the bins of others; what shares all its bins comes back as a mean.

    Attributes:
        bins: units of the layer.
        measurements: by which images are sorted; each has an equal part of the bins.
    """

    requires = frozenset({"model", "gradients", "public", "algorithm", "server"})
    default_threat = "malicious-server"
    ceiling = 0.95
    bins: int = 512
    measurements: int = 4

    def __post_init__(self) -> None:
        between(self, 1, MOST_BINS, "bins")
        at_least(self, 1, "measurements")
        if self.measurements > self.bins:
            raise ValueError(f"measurements is {self.measurements}, with {self.bins} bins; it must be at most as many")

    def craft(self, view: View, rng: torch.Generator) -> Model:
        """Put the layer before the model, with bins for images like the released ones."""
        like = like_released(view, rng)
        crafted = Model(FACTORY, {"factory": view.model.factory, "kwargs": view.model.kwargs,
                                  "pixels": math.prod(view.released_shape), "bins": self.bins})
        net, layer = _built(crafted)
        layer.net.load_state_dict(view.model.build().get_submodule("net").state_dict())
        write_bins(layer, like.flatten(1) * 2 - 1, self.measurements, rng)
        return crafted.with_state(net)

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Read every batch's images out of its update."""
        update = view.update
        bins = {name: update.values.get(f"net.bins.{name}") for name in ("weight", "bias")}
        if bins["weight"] is None or bins["bias"] is None:
            raise NotApplicable("the update holds no gradient of the layer that the server put before the model")
        batch, (_, layer) = update.batch * update.clients, _built(view.model)
        levels = 2**view.algorithm.quantise
        grid = torch.linspace(-1, 1, levels, dtype=torch.float64) if levels > 1 else None
        middle = like_released(view, rng).mean(0).flatten()
        found, alone, sizes = [], 0, _sizes(view.n_targets, batch)
        for size, weight, bias in zip(sizes, bins["weight"], bins["bias"], strict=True):
            read = read_bins(layer.bins, weight, bias, grid, size)
            alone += len(read.images)
            images = torch.cat([read.images, read.mixed])[:size].float().add(1).div(2)
            found += [images, middle.expand(size - len(images), -1)]
        images = torch.cat(found).clamp(0, 1).reshape(-1, *view.released_shape)
        return Reconstruction(images, aligned=batch == 1, of="released", within=None if batch == 1 else batch,
                              note=f"imprint: {alone} of {view.n_targets} images alone in a bin of {self.bins}")


def _built(model: Model) -> tuple[torch.nn.Module, Imprint]:
    net = model.build()
    layer = net.get_submodule("net")
    assert isinstance(layer, Imprint)
    return net, layer


def _sizes(targets: int, batch: int) -> list[int]:
    """Return how many images are in each batch."""
    return [min(batch, targets - start) for start in range(0, targets, batch)]



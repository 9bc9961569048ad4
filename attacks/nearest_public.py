"""Retrieval: the public image whose protected version is most like the released one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._simulate import Simulated, simulate
from ppbench.blocks import cut
from ppbench.codec import Tensors
from ppbench.defense import Pieces, resize
from ppbench.metrics import SSIM_WINDOW, ssim
from ppbench.seeding import spawn
from ppbench.view import View

Feature = Callable[[Tensor], Tensor]
ENTRIES = 4096  # public images at most among which the hold-out is retrieved
HELD = 256  # public images at most on which features are compared
VALUES = 2**24  # in those images, at most: sorting them takes 20 bytes a value
COARSE = 4  # side of the thumbnail that noise hardly changes


@dataclass(frozen=True)
class RetrievalFeature(Prior):
    """Choose the feature by which public images held out (every fourth) retrieve the most similar ones (SSIM)."""

    needs = frozenset({"public", "algorithm"})

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return `chosen`, a number in the order of `features`, and every feature's `scores`."""
        named = features(view)
        if not view.algorithm.defense.partnered or len(view.public) < 2:
            return {"chosen": torch.tensor(list(named).index("pixels")), "scores": torch.zeros(len(named))}
        held = torch.arange(len(view.public)) % 4 == 0
        most = max(1, VALUES // view.public.pixels[0].numel())
        entries = simulate(view, view.public[~held][: min(ENTRIES, most)], spawn(rng))
        queries = simulate(view, view.public[held][: min(HELD, most)], spawn(rng))
        scores = torch.stack([_quality(feature, queries, entries) for feature in named.values()])
        return {"chosen": scores.argmax(), "scores": scores}


@dataclass(frozen=True)
class NearestPublic(Attack):
    """Return, for every target, the public image whose protected version is nearest to the released image.

    Nearest by the feature that does best on public images protected with the adversary's own keys: pixels, a coarse
    thumbnail, colour moments, and values sorted in several ways, which shuffling leaves as they are. Only images of
    the target's class compete where the view holds labels. A release without partners is compared with the plain
    images themselves.
    """

    requires = frozenset({"images", "public", "algorithm"})
    uses = frozenset({"labels"})
    default_threat = "ciphertext-only"

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the choice of the feature, which depends on public images and algorithm alone."""
        return {"feature": RetrievalFeature()}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Retrieve one public image for each target."""
        name, feature = list(features(view).items())[int(priors["feature"]["chosen"])]
        if view.algorithm.defense.partnered:
            entries, images = simulate(view, view.public, spawn(rng)), view.images
        else:
            entries = Simulated(view.public.pixels, view.public.pixels, view.public.labels)
            images = resize(view.images, view.image_shape)
        labels = view.labels if "labels" in view.granted else None
        rows = nearest(feature(images), feature(entries.released), labels, entries.labels)
        return Reconstruction(entries.plain[rows], aligned=view.has_partner, note=f"nearest public image by {name}")


def nearest(queries: Tensor, entries: Tensor, query_labels: Tensor | None, entry_labels: Tensor) -> Tensor:
    """Return `[n]`: the entry of the query's class nearest by L2; of all where it has none, or labels are unknown.

    Args:
        queries: `[n, d]`.
        entries: `[m, d]`.
        query_labels: `[n]`; None = unknown.
        entry_labels: `[m]`.
    """
    distances = torch.cdist(queries.double(), entries.double())
    if query_labels is not None:
        other = query_labels[:, None] != entry_labels
        distances = distances.masked_fill(other & ~other.all(1, keepdim=True), torch.inf)
    return distances.argmin(1)


def features(view: View) -> Mapping[str, Feature]:
    """Name what released images may be compared by, each a map from `[n, c, h, w]` to `[n, d]`."""
    found: dict[str, Feature] = {
        "pixels": lambda images: images.flatten(1),
        "a thumbnail": _thumbnail,
        "colour moments": _moments,
        "sorted values of each channel": lambda images: images.flatten(2).sort(2).values.flatten(1),
        "sorted values": lambda images: images.flatten(1).sort(1).values,
        "sorted contrasts": lambda images: (images.flatten(1) - 0.5).abs().sort(1).values,
    }
    pieces = view.algorithm.defense.pieces(view.image_shape)
    if pieces is not None and all(side % pieces.size == 0 for side in view.released_shape[1:]):
        found["sorted values of sorted blocks"] = lambda images: _block_values(images, pieces, folded=False)
        found["sorted contrasts of sorted blocks"] = lambda images: _block_values(images, pieces, folded=True)
    return found


def _thumbnail(images: Tensor) -> Tensor:
    side = (min(COARSE, images.shape[2]), min(COARSE, images.shape[3]))
    return torch.nn.functional.adaptive_avg_pool2d(images, side).flatten(1)


def _moments(images: Tensor) -> Tensor:
    """Return mean and covariance of the colour channels, the latter's square root so that both have one unit."""
    values = images.flatten(2)
    mean = values.mean(2, keepdim=True)
    scatter = (values - mean) @ (values - mean).transpose(1, 2) / values.shape[2]
    return torch.cat([mean.flatten(1), scatter.flatten(1).sign() * scatter.flatten(1).abs().sqrt()], 1)


def _block_values(images: Tensor, pieces: Pieces, folded: bool) -> Tensor:
    """Sort the values of every block, then the blocks by their mean: an order that a cipher cannot change.

    `folded` takes |v - 1/2|, which is the same for a value and for its negative.
    """
    values = cut(images, pieces.size).flatten(2)
    values = ((values - 0.5).abs() if folded else values).sort(2).values
    order = values.mean(2).argsort(1)
    return values.gather(1, order[:, :, None].expand_as(values)).flatten(1)


def _quality(feature: Feature, queries: Simulated, entries: Simulated) -> Tensor:
    rows = nearest(feature(queries.released), feature(entries.released), queries.labels, entries.labels)
    found = entries.plain[rows]
    if min(found.shape[2:]) < SSIM_WINDOW:
        return -(found - queries.plain).double().square().mean()
    return ssim(found, queries.plain, torch.float32).double().mean()

"""Scores of estimates by the metrics of piq, one value an image."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ppbench.quality import METRICS, Quality

Scorer = Callable[[Tensor], Tensor]

_CHUNK_PIXELS = 2**18  # of the images that are taken at once


def piq_scorers(names: Iterable[str], originals: Tensor) -> dict[str, Scorer]:
    """Return functions from estimates to scores.

    Values are clipped to [0, 1]; grey images are compared as colour.

    Args:
        names: of `quality.METRICS`, those that `quality.choose` allows for these images.
        originals: `[N, C, H, W]`.

    Returns:
        name -> function from estimates `[N, C, H, W]` to `[N]` float64; a score of sets is repeated N times.
    """
    found: dict[str, Scorer] = {}
    features: Callable[[Tensor], Tensor] = lru_cache(maxsize=2)(inception)  # of the estimates, for all scores of sets
    for name in names:
        metric = METRICS[name]
        found[name] = _of_sets(name, originals, features) if metric.looks_at == "sets" else _by_image(metric, originals)
    return found


@torch.no_grad()
def inception(images: Tensor) -> Tensor:
    """Return the features `[N, 2048]` that FID is defined by, of images `[N, C, H, W]`."""
    with _quiet():
        from piq.feature_extractors import InceptionV3

        net = InceptionV3().eval()
    rows = _rows(images)
    return torch.cat([net(_colour(part))[0].flatten(1) for part in images.split(rows)]).double()


def _by_image(metric: Quality, originals: Tensor) -> Scorer:
    compare = _compare(metric)
    rows = _rows(originals)

    @torch.no_grad()
    def scores(estimates: Tensor) -> Tensor:
        pairs = zip(estimates.split(rows), originals.split(rows), strict=True)
        return torch.cat([compare(_colour(x), _colour(y)).flatten().double() for x, y in pairs])

    return scores


def _compare(metric: Quality) -> Callable[[Tensor, Tensor], Tensor]:
    with _quiet():
        import piq

        function: Any = getattr(piq, metric.function)
        if isinstance(function, type):
            function = function(reduction="none")
            return lambda x, y: function(x, y)
    if metric.looks_at == "estimates":
        return lambda x, _: function(x, reduction="none")
    return lambda x, y: function(x, y, reduction="none")


def _of_sets(name: str, originals: Tensor, features: Callable[[Tensor], Tensor]) -> Scorer:
    import piq

    # The whole of both sets at once: KID's default draws subsets.
    settings = {"n_subsets": 1, "subset_size": None} if name == "kid" else {}
    metric = getattr(piq, METRICS[name].function)(**settings)

    def scores(estimates: Tensor) -> Tensor:
        found = metric.compute_metric(features(originals), features(estimates))
        value = found[int(name == "recall")] if isinstance(found, tuple) else found
        return torch.full((len(estimates),), float(value), dtype=torch.float64)

    return scores


def _rows(images: Tensor) -> int:
    return max(1, _CHUNK_PIXELS // (images.shape[2] * images.shape[3]))


def _colour(images: Tensor) -> Tensor:
    return images.clamp(0, 1).float().expand(-1, 3, -1, -1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what piq's use of torchvision's old names prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

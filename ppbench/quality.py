"""Image quality beside SSIM and LPIPS: which metrics of piq there are, in which direction, range and size.

Papers compare defenses by them. They compare pictures and do not measure privacy: FSIM, GMSD, HaarPSI and MDSI see how
strong an edge is and not its sign, so that a negative scores nearly like the original.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch

from ppbench.data import Shape
from ppbench.errors import UserError, first_line

_DISTS = ("vgg16-397923af.pth", "dists_weights.pt")
_BRISQUE = ("brisque_svm_weights.pt",)
_INCEPTION = ("pt_inception-2015-12-05-6726825d.pth",)
_FEATURES = 2048  # of Inception; fewer images have no covariance of full rank
_NEAREST = 5  # precision and recall look at this many neighbours


@dataclass(frozen=True)
class Quality:
    """A metric of piq.

    Attributes:
        function: its name in piq.
        better: which end of the range is good.
        low: the least value.
        high: the greatest; inf = unlimited.
        least: the smallest side in pixels for which piq or the metric's own filters are defined.
        source: the paper.
        looks_at: pairs of estimate and original, estimates alone, or both sets as wholes.
        weights: files in torch.hub's checkpoint folder without which it cannot be measured.
        images: the fewest for which it is defined.
    """

    function: str
    better: Literal["higher", "lower"]
    low: float
    high: float
    least: int
    source: str
    looks_at: Literal["pairs", "estimates", "sets"] = "pairs"
    weights: tuple[str, ...] = ()
    images: int = 1


METRICS: dict[str, Quality] = {
    "ms_ssim": Quality("multi_scale_ssim", "higher", 0, 1, 161, "Wang et al. 2003"),
    "iw_ssim": Quality("information_weighted_ssim", "higher", 0, 1, 161, "Wang & Li 2011"),
    "vif": Quality("vif_p", "higher", 0, inf, 41, "Sheikh & Bovik 2006, pixel domain"),
    "fsim": Quality("fsim", "higher", 0, 1, 16, "Zhang et al. 2011, with colour"),
    "gmsd": Quality("gmsd", "lower", 0, inf, 16, "Xue et al. 2014"),
    "haarpsi": Quality("haarpsi", "higher", 0, 1, 16, "Reisenhofer et al. 2018"),
    "mdsi": Quality("mdsi", "lower", 0, inf, 16, "Nafchi et al. 2016"),
    "dists": Quality("DISTS", "lower", 0, 1, 32, "Ding et al. 2020", weights=_DISTS),
    "brisque": Quality("brisque", "lower", -inf, inf, 32, "Mittal et al. 2012", "estimates", _BRISQUE),
    "fid": Quality("FID", "lower", 0, inf, 1, "Heusel et al. 2017", "sets", _INCEPTION, _FEATURES + 1),
    "kid": Quality("KID", "lower", -inf, inf, 1, "Binkowski et al. 2018", "sets", _INCEPTION, 2),
    "precision": Quality("PR", "higher", 0, 1, 1, "Kynkaanniemi et al. 2019", "sets", _INCEPTION, _NEAREST + 1),
    "recall": Quality("PR", "higher", 0, 1, 1, "Kynkaanniemi et al. 2019", "sets", _INCEPTION, _NEAREST + 1),
}
_PIQ = "https://github.com/photosynthesis-team/piq/releases/download"
SOURCES: dict[str, str] = {
    _DISTS[0]: f"https://download.pytorch.org/models/{_DISTS[0]}",
    _DISTS[1]: f"{_PIQ}/v0.4.1/{_DISTS[1]}",
    _BRISQUE[0]: f"{_PIQ}/v0.4.0/{_BRISQUE[0]}",
    _INCEPTION[0]: f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_INCEPTION[0]}",
}
"""Where the weights come from: file -> address."""
SETS = frozenset(name for name, metric in METRICS.items() if metric.looks_at == "sets")


def quality_definition() -> str:
    """Name what the figures depend on: piq's version, and which weights are at hand."""
    files = sorted({file for metric in METRICS.values() for file in metric.weights if unreadable(file) is None})
    return " ".join([f"piq {version('piq')} defaults range 1 clipped grey-as-colour", *files])


def choose(shape: Shape, count: int) -> tuple[list[str], dict[str, str]]:
    """Return the metrics by which `count` images (C, H, W) can be measured, and why they cannot be by the others."""
    reasons = {name: _reason(metric, shape, count) for name, metric in METRICS.items()}
    return ([name for name, reason in reasons.items() if reason is None],
            {name: reason for name, reason in reasons.items() if reason is not None})


def sentences(reasons: Mapping[str, str]) -> list[str]:
    """Return one sentence for all metrics that are left out for the same reason."""
    return [f"{', '.join(name for name in reasons if reasons[name] == reason)}: {reason}"
            for reason in dict.fromkeys(reasons.values())]


def fetch_quality() -> list[Path]:
    """Download what is absent of the weights that these metrics need into torch.hub's checkpoint folder.

    Raises:
        UserError: a download failed.
    """
    for file, address in SOURCES.items():
        path = _location(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not path.is_file():
                digest = path.stem.rpartition("-")[2] if "-" in file else None  # torch's names begin it
                torch.hub.download_url_to_file(address, str(path), digest, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(f"{file} could not be downloaded ({error}): copy {address} to {path.parent}") from error
    return [_location(file) for file in SOURCES]


def unreadable(file: str) -> str | None:
    """Say why weights cannot be used; None = they can, and hold nothing but tensors."""
    path = _location(file)
    if not path.is_file():
        return f"not measured: {file} is not there: run `ppbench weights fetch --quality`"
    return _fault(path, path.stat().st_mtime_ns)


def _location(file: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def _reason(metric: Quality, shape: Shape, count: int) -> str | None:
    if min(shape[1:]) < metric.least:
        return f"not measured: wants images of at least {metric.least} x {metric.least} pixels"
    if count < metric.images:
        return f"not measured: wants at least {metric.images} targets"
    return next((reason for file in metric.weights if (reason := unreadable(file))), None)


@lru_cache
def _fault(path: Path, changed: int) -> str | None:
    """Load a file as safely as piq does not; it loads what this has seen."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        return f"not measured: {path.name} cannot be read ({first_line(error)})"
    return None

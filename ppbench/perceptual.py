"""LPIPS with the reference package's weights: the trunk looked up, pinned and never replaced by an untrained one."""

import io
import socket
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any, Literal, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ppbench.data import Shape
from ppbench.errors import UserError
from ppbench.seeding import seeded

Net = Literal["squeeze", "alex", "vgg"]
_HOST = "download.pytorch.org"
_FILES: dict[Net, str] = {"squeeze": "squeezenet1_1-b8a52dc0.pth", "alex": "alexnet-owt-7be5be79.pth",
                          "vgg": "vgg16-397923af.pth"}
_PROBE_SECONDS = 3.0
_SMALLEST = 64
_VERSION = "0.1"
_COST: dict[Net, int] = {"squeeze": 1, "alex": 1, "vgg": 13}  # seconds an image, relative
_CHUNK_COST = 32  # images taken at once
_KEPT_COST = 1024  # images whose features are kept, 0.5 MB each


@dataclass(frozen=True)
class Trunk:
    """A trained trunk's weight file.

    Attributes:
        net: which network.
        path: torchvision's file of its ImageNet weights.
    """

    net: Net
    path: Path

    @property
    def definition(self) -> str:
        """Name everything an LPIPS figure depends on; the trunk by the start of its file's SHA-256."""
        return (f"lpips {version('lpips')} {self.net} v{_VERSION} trunk {_digest(self.path)[:8]} "
                f"upsampled to {_SMALLEST}")


def find_trunk(net: Net, download: bool = False) -> Trunk | str:
    """Look for a trunk's weights in torch.hub's checkpoint folder (environment variable TORCH_HOME).

    Args:
        net: which network.
        download: where the file is absent, probe the download host for three seconds, and fetch it if that answers.

    Returns:
        The trunk, or the reason why there is none.
    """
    path = _location(net)
    if path.is_file():
        return Trunk(net, path)
    if download and _reachable(_HOST):
        try:
            return fetch(net)
        except UserError as error:
            return str(error)
    return (f"LPIPS weights {path.name} not found: run `ppbench weights fetch`, or set TORCH_HOME to a folder that "
            f"holds hub/checkpoints/{path.name}")


def fetch(net: Net) -> Trunk:
    """Download a trunk's weights into torch.hub's checkpoint folder, checked against the hash in their name.

    Raises:
        UserError: the download failed.
    """
    path = _location(net)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(f"https://{_HOST}/models/{path.name}", str(path),
                                       hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(f"LPIPS weights {path.name} could not be downloaded ({error}): copy the file to "
                        f"hub/checkpoints in the folder that TORCH_HOME names") from error
    return Trunk(net, path)


class FeatureStatistics(NamedTuple):
    """Mean LPIPS features of groups of images, and the mean of their squares.

    LPIPS is a weighted squared distance of features, so its mean over a group follows from these alone.

    Attributes:
        mean: one tensor a layer, `[K, c, h, w]`: group k's mean features.
        square: `[K]`: the weighted mean of the squares, summed over the layers.
    """

    mean: list[Tensor]
    square: Tensor


class Lpips:
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924), as the package computes it.

    Images in [0, 1]; grey is repeated to three channels; images smaller than 64 pixels are enlarged to 64
    bilinearly. Differentiable in the images; the weights are frozen.
    """

    def __init__(self, trunk: Trunk, device: torch.device | str = "cpu") -> None:
        self.definition = trunk.definition
        self._trunk = trunk.net
        self._net = _load(trunk).to(device)
        self._weights = [layer.model[-1].weight for layer in self._net.lins]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance `[N]` of each pair of images `[N, C, H, W]`; 0 = identical.

        Raises:
            UserError: the shapes differ.
        """
        if x.shape != y.shape:
            raise UserError(f"LPIPS compares pairs of one shape, but these are {list(x.shape)} and {list(y.shape)}: "
                            "resize the estimate to the original's shape first")
        rows = self.rows(_shape(x))
        parts = [self.distance(self.features(a), self.features(b))
                 for a, b in zip(x.split(rows), y.split(rows), strict=True)]
        return torch.cat(parts) if parts else x.new_zeros(0)

    @torch.no_grad()
    def against(self, originals: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from estimates `[N, C, H, W]` to their distances `[N]` to the same originals.

        The originals' features are computed once where they fit in about 500 MB.
        """
        rows = self.rows(_shape(originals))
        parts = originals.split(rows)
        kept = [self.features(part) for part in parts] if len(originals) * self.cost(_shape(originals)) <= _KEPT_COST \
            else None

        @torch.no_grad()
        def distances(estimates: Tensor) -> Tensor:
            if kept is None:
                return self(estimates, originals)
            return torch.cat([self.distance(self.features(part), reference)
                              for part, reference in zip(estimates.split(rows), kept, strict=True)])

        return distances

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the normalised activations of images `[N, C, H, W]`, one `[N, c, h, w]` a layer.

        About 0.5 MB an image of 64 pixels with the SqueezeNet trunk.
        """
        outputs = self._net.net(self._net.scaling_layer(_prepare(images)))
        return [_unit(output) for output in outputs]

    def distance(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """Return the distance `[N]` of each pair of images from their features (rows broadcast)."""
        layers = [nn.functional.conv2d((a - b).square(), w).mean((1, 2, 3))
                  for a, b, w in zip(x, y, self._weights, strict=True)]
        return torch.stack(layers).sum(0)

    @torch.no_grad()
    def vectors(self, images: Tensor) -> Tensor:
        """Return vectors `[N, D]` of which the squared distances are those of the images `[N, C, H, W]`."""
        parts = [[(f * w.sqrt() / (f.shape[2] * f.shape[3]) ** 0.5).flatten(1)
                  for f, w in zip(self.features(part), self._weights, strict=True)]
                 for part in images.split(self.rows(_shape(images)))]
        return torch.cat([torch.cat(layers, 1) for layers in parts])

    @torch.no_grad()
    def statistics(self, images: Tensor, groups: Tensor, count: int) -> FeatureStatistics:
        """Summarise images for `mean_distance`.

        Args:
            images: `[N, C, H, W]`.
            groups: `[N]` int64 in [0, count): which group each image belongs to.
            count: number of groups K; an empty one gets zeros.
        """
        sizes = torch.bincount(groups, minlength=count).clamp(min=1).to(images)
        mean: list[Tensor] = []
        square = images.new_zeros(count)
        rows = self.rows(_shape(images))
        for part, group in zip(images.split(rows), groups.split(rows), strict=True):
            features = self.features(part)
            zeros = [torch.zeros_like(f) for f in features]
            square.index_add_(0, group, self.distance(features, zeros))
            mean = mean or [f.new_zeros(count, *f.shape[1:]) for f in features]
            for total, feature in zip(mean, features, strict=True):
                total.index_add_(0, group, feature)
        return FeatureStatistics([total / sizes[:, None, None, None] for total in mean], square / sizes)

    def mean_distance(self, x: Tensor, to: FeatureStatistics) -> Tensor:
        """Return, for image k of `[K, C, H, W]`, its mean distance `[K]` to all images of group k.

        Exact, at the price of one pass over `x`, however many images a group has.
        """
        features = self.features(x)
        cross = [nn.functional.conv2d(a * (a - 2 * b), w).mean((1, 2, 3))
                 for a, b, w in zip(features, to.mean, self._weights, strict=True)]
        return torch.stack(cross).sum(0) + to.square

    def cost(self, shape: Shape) -> float:
        """Return what an image of `shape` costs, in units of one of 64 x 64 pixels through the SqueezeNet trunk."""
        _, height, width = shape
        return _COST[self._trunk] * height * width * max(1 / min(height, width), 1 / _SMALLEST) ** 2

    def rows(self, shape: Shape) -> int:
        """Return how many images of `shape` to take at once: their activations stay near 50 MB."""
        return max(1, int(_CHUNK_COST / self.cost(shape)))


def _prepare(images: Tensor) -> Tensor:
    """Map images `[N, 1 or 3, H, W]` in [0, 1] to three channels in [-1, 1], the smaller side at least 64 pixels."""
    height, width = images.shape[-2:]
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    if min(height, width) < _SMALLEST:
        size = [round(side * _SMALLEST / min(height, width)) for side in (height, width)]
        colour = nn.functional.interpolate(colour, size, mode="bilinear", align_corners=False)
    return colour * 2 - 1


def _shape(images: Tensor) -> Shape:
    _, channels, height, width = images.shape
    return channels, height, width


def _unit(features: Tensor) -> Tensor:
    """Scale every position's features to length 1, with the package's guard against zero."""
    # clamp: the derivative of a root at 0 is infinite, and a dead position has length 0
    norm = features.square().sum(1, keepdim=True).clamp(min=1e-24).sqrt()
    return features / (norm + 1e-10)


def _load(trunk: Trunk) -> Any:
    """Build the package's network with the trunk's own weights, drawing nothing from the global generators."""
    import lpips

    with seeded(0), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # pnet_rand: the package would otherwise unpickle the file without weights_only, or download it
        net = lpips.LPIPS(net=trunk.net, version=_VERSION, pnet_rand=True, verbose=False)
    own = net.net.state_dict()
    try:
        state = torch.load(trunk.path, map_location="cpu", weights_only=True)
        # "slice3.6.weight" of the package is "features.6.weight" of torchvision
        net.net.load_state_dict({name: state["features." + name.partition(".")[2]] for name in own})
    except (KeyError, TypeError, RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise UserError(f"{trunk.path.name} does not hold torchvision's weights: delete it and run "
                        "`ppbench weights fetch`") from error
    return net.eval().requires_grad_(False)


def _location(net: Net) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _FILES[net]


def _reachable(host: str) -> bool:
    """Say whether a host takes connections, within three seconds, name resolution included."""
    answered: list[bool] = []
    thread = Thread(target=lambda: answered.append(_connects(host)), daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answered == [True]


def _connects(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


@lru_cache(maxsize=8)
def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()

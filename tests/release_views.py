"""Views of protected images, for tests of attacks that read the release."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ppbench.attack import Attack, Reconstruction, check_reconstruction
from ppbench.data import Images
from ppbench.defense import draw_keys, keys_for_more
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, Pairs, Sealed, View, quantised

CIFAR = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / "../shared")) / "data" / "cifar10"


def cifar(private: int, public: int) -> tuple[Images, Images]:
    """Real CIFAR-10 test images of unknown class; skips the test where they are not at hand."""
    path = CIFAR / "cifar10_test.webp"
    if not path.is_file():
        pytest.skip(f"no CIFAR-10 in {CIFAR}")
    atlas = np.asarray(Image.open(path).convert("RGB"))
    tiles = atlas.reshape(-1, 32, atlas.shape[1] // 32, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    pixels = torch.from_numpy(np.ascontiguousarray(tiles[:private + public])).float() / 255
    images = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels)))
    return images[:private], images[private:]


def natural(count: int, shape: tuple[int, int, int], seed: int) -> Images:
    """Clouds of two brightnesses: sums of noise at several scales, as photos have them, one class each."""
    rng = generator(seed)
    c, h, w = shape
    total = torch.zeros(count, c, h, w)
    for scale in (2, 4, 8):
        coarse = torch.rand(count, c, max(1, h // scale), max(1, w // scale), generator=rng) - 0.5
        total += scale * F.interpolate(coarse, (h, w), mode="bilinear")
    labels = torch.arange(count) % 2
    pixels = 0.5 + total / 16 + 0.1 * (labels[:, None, None, None] - 0.5)
    return Images((pixels.clamp(0, 1) * 255).round() / 255, labels, torch.arange(count))


def view_of(private: Images, public: Images, name: str, params: dict[str, object] | None = None,
            scope: str | None = None, pairs: int = 0, quantise: int = 8, labels: bool = True, clients: int = 1,
            seed: int = 1) -> View:
    """What the adversary sees of images protected as the runner would; all of them are targets."""
    algorithm = Algorithm(Ref("defenses", name, params or {}), scope, quantise, clients)
    defense = algorithm.defense
    keys = draw_keys(defense, scope, len(private), private.shape, generator(seed), clients)
    release = quantised(defense.protect(private, keys, generator(2)), quantise)
    if scope == "client":
        release = replace(release, clients=keys.owner)
    known = None
    if pairs:
        plain = public[:pairs]
        more = keys_for_more(defense, keys, scope, pairs, public.shape, generator(3), clients)
        known = Pairs(plain.pixels, quantised(defense.protect(plain, more, generator(4)), quantise).images,
                      more.owner if scope == "client" else None)
    granted = {"images", "public", "algorithm"} | ({"labels"} if labels else set()) | ({"pairs"} if pairs else set())
    return View(Sealed(granted=frozenset(granted), image_shape=private.shape, released_shape=release.shape,
                       n_targets=len(private), classes=2, labels=private.labels if labels else None, release=release,
                       target_rows=torch.arange(len(private)), public=public, algorithm=algorithm, pairs=known))


def attacked(attack: Attack, view: View) -> Reconstruction:
    """Run an attack as the frame does: priors on the view cut down to what they need."""
    priors = {name: prior.train(prior.seen(view), generator(5)) for name, prior in attack.priors(view).items()}
    found = attack.run(view, priors, generator(6))
    check_reconstruction(found, view)
    return found


def errors(found: Tensor, original: Tensor) -> Tensor:
    """Return the mean squared error of every image."""
    return (found - original).square().flatten(1).mean(1)

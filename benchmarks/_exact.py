"""Closed forms: images that algebra reads out of a vision transformer's gradient, one image a gradient."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from _real import cifar10, photographs
from _table import Figure, at_least, at_most
from _updates import Server
from torch import Tensor

from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.data import Images
from ppbench.metrics import psnr
from ppbench.model import Model
from ppbench.seeding import generator, seeded

AT_ONCE = 5  # gradients that are held at a time
VIT = "timm:vit_tiny_patch16_224"


def exact(quick: bool) -> Iterator[Figure]:
    """Solve for CIFAR-10 images and photographs; say what is left where the system is not determined."""
    images, labels = cifar10("test")
    count, photos = (20, 5) if quick else (100, 20)
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, "num_classes": 10}
    yield from _solved("ViT 32/4, width 192, CIFAR-10", small, images[:count], labels[:count])
    pictures = photographs(photos)
    if pictures is not None:
        large = {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 10}
        yield from _solved("ViT 224/16, width 384, photographs", large, pictures, torch.arange(len(pictures)) % 10)


def _solved(case: str, kwargs: dict[str, Any], images: Tensor, labels: Tensor) -> Iterator[Figure]:
    with seeded(0):
        model = Model(VIT, kwargs)
        net = model.build()
        torch.nn.init.normal_(net.get_submodule("net.head").weight, std=0.02)  # type: ignore[arg-type]
        model = model.with_state(net)
    rows = torch.arange(8)
    server = Server(model, Images(images[:8], labels[:8], rows), 10)
    found, seconds = [], 0.0
    for x, y in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
        view = server.sees(x, y)
        begin = time.perf_counter()
        found.append(GradientMatching(steps=1).run(view, {}, generator(0)).images)
        seconds += time.perf_counter() - begin
    decibels = psnr(torch.cat(found), images)
    yield at_least(case, f"images of {len(images)} at 60 dB or more", float((decibels >= 60 - 1e-3).sum()), len(images))
    yield at_most(case, "seconds an image", seconds / len(images), 0.2)

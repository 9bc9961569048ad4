"""A malicious server: how many images of a batch the imprint reads exactly, by measurements and batch."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from _real import cifar10
from _table import Figure, at_least
from _updates import GRANTED, Server

from ppbench.attacks.imprint import ImprintAttack
from ppbench.data import Images
from ppbench.matching import assign
from ppbench.metrics import psnr
from ppbench.model import for_images
from ppbench.seeding import generator, seeded
from ppbench.view import Sealed, View

PUBLIC = 1000


def crafted(quick: bool) -> Iterator[Figure]:
    """Attack batches of CIFAR-10 images; one measurement is the published form."""
    for batch in (8, 64) if quick else (8, 64, 128):
        for measurements in (1, 4):
            yield from _read(batch, ImprintAttack(measurements=measurements))


def _read(batch: int, attack: ImprintAttack) -> Iterator[Figure]:
    images, labels = cifar10("test")
    public, names = cifar10("train")
    known = Images(public[:PUBLIC], names[:PUBLIC], torch.arange(PUBLIC))
    with seeded(0):
        honest = for_images("ppbench.nets:convnet", {}, (3, 32, 32), 10)
        honest = honest.with_state(honest.build())
    targets = max(batch, 64)
    server = Server(honest, known, 10, batch)
    before = Sealed(GRANTED - {"gradients"}, (3, 32, 32), (3, 32, 32), targets, 10, public=known, model=honest,
                    algorithm=server.algorithm)
    server = replace(server, model=attack.craft(View(before), generator(0)))
    view = server.sees(images[:targets], labels[:targets])
    begin = time.perf_counter()
    found = attack.run(view, {}, generator(1)).images
    seconds = time.perf_counter() - begin
    decibels = psnr(found[assign(found, images[:targets], batch)], images[:targets])
    case = f"imprint, {attack.bins} bins, {attack.measurements} measurement(s), batch {batch}, {targets} images"
    share = float((decibels >= 60 - 1e-3).double().mean())
    yield at_least(case, "share at 60 dB or more", share, 0.99) if attack.measurements > 1 else Figure(
        case, "share at 60 dB or more", share)
    yield Figure(case, "mean PSNR, dB", float(decibels.mean()))
    yield Figure(case, "seconds an image", seconds / targets)

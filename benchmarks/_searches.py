"""Searches: what comes back where algebra does not tell it, network by network, batch by batch, step by step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from _curves import TEACHER
from _real import cifar10
from _table import Figure, at_least
from _updates import Server
from torch import Tensor

from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.data import Images
from ppbench.matching import assign
from ppbench.metrics import identification, psnr, ssim
from ppbench.model import Model
from ppbench.seeding import generator, seeded

PUBLIC, GALLERY = 2000, 1000
EXACT = 40  # dB at which an image counts as read off
VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 3, "num_classes": 10}


@dataclass(frozen=True)
class Case:
    """One network's gradients, and the attack on them.

    Attributes:
        name: of the network and its weights.
        model: with weights.
        attack: with its steps.
        count: images.
        batch: images a gradient.
        local_steps: of a client.
        targets: of mean PSNR, mean SSIM, identification and the share of images at 40 dB; 0 = for information.
    """

    name: str
    model: Model
    attack: GradientMatching
    count: int
    batch: int = 1
    local_steps: int = 1
    targets: tuple[float, float, float, float] = (0, 0, 0, 0)


def searches(quick: bool) -> Iterator[Figure]:
    """Run every case; of batches, beside other images of the same number, assigned alike."""
    for case in _cases(quick):
        yield from _measured(case)


def _cases(quick: bool) -> Iterator[Case]:
    convnet = fresh("ppbench.nets:convnet", {"num_classes": 10})
    deep = fresh("ppbench.nets:deep_convnet", {"num_classes": 10})
    lenet = fresh("ppbench.nets:lenet", {"num_classes": 10})
    if quick:
        yield Case("LeNet, untrained", lenet, GradientMatching(steps=200), 4, targets=(20, 0.6, 0, 0))
        yield Case("small ConvNet, untrained", convnet, GradientMatching(steps=100), 8, batch=4)
        return
    yield Case("LeNet, untrained", lenet, GradientMatching(steps=2000), 100, targets=(0, 0, 0, 0.9))
    yield Case("LeNet, untrained, iDLG", lenet, GradientMatching("idlg", steps=2000), 100)
    yield Case("ConvNet 64, untrained", deep, GradientMatching(steps=1000, rehearsals=0, fast=True), 4,
               targets=(20, 0.8, 0, 0))
    for count, batch in ((8, 4), (16, 8)):
        yield Case("ConvNet 64, untrained", deep, GradientMatching(steps=300, rehearsals=0, fast=True), count,
                   batch)
        yield Case("ViT 32/4, untrained", fresh("timm:vit_tiny_patch16_224", VIT), GradientMatching(), count, batch)
    for local_steps in (1, 5, 20):
        yield Case("small ConvNet, untrained", convnet, GradientMatching(), 16, 4, local_steps)
    yield Case("ViT 32/4 without positions", fresh("timm:vit_tiny_patch16_224", VIT | {"pos_embed": "none"}),
               GradientMatching(), 8)
    narrow = VIT | {"embed_dim": 48}
    yield Case("ViT 32/4, width 48 < 64 tokens", fresh("timm:vit_tiny_patch16_224", narrow), GradientMatching(), 8)
    teacher = resnet20()
    if teacher is not None:
        for count, batch in ((32, 1), (8, 4), (16, 8)):
            yield Case("ResNet-20, trained", teacher, GradientMatching(steps=300), count, batch,
                       targets=(16, 0, 0.9, 0) if batch == 1 else (0, 0, 0, 0))


def fresh(factory: str, kwargs: dict[str, object]) -> Model:
    """Return a model with weights drawn at random."""
    with seeded(0):
        model = Model(factory, kwargs)
        return model.with_state(model.build())


def resnet20() -> Model | None:
    """Return the trained network; None where its weights are not there."""
    if not TEACHER.is_file():
        return None
    state = torch.load(TEACHER, map_location="cpu", weights_only=True)["state_dict"]
    return Model("ppbench.nets:cifar_resnet", {"depth": 20},
                 {name.replace("module.", "net.", 1): value for name, value in state.items()})


def _measured(case: Case) -> Iterator[Figure]:
    images, labels = cifar10("test")
    kept = slice(len(images) - PUBLIC, None)
    server = Server(case.model, Images(images[kept], labels[kept], torch.arange(PUBLIC)), 10, case.batch,
                    case.local_steps)
    truth = images[: case.count]
    view = server.sees(truth, labels[: case.count])
    begin = time.perf_counter()
    outcome = case.attack.run(view, {}, generator(0))
    seconds = time.perf_counter() - begin
    found = _in_order(outcome.images, truth, case.batch)
    name = f"{case.name}, batch {case.batch}, {case.local_steps} local step(s), {case.count} images"
    likeness, decibels = ssim(found, truth), psnr(found, truth)
    who = identification(found, images[:GALLERY])
    figures = (("mean PSNR, dB", decibels), ("mean SSIM", likeness), (f"identification among {GALLERY:,}", who),
               (f"share at {EXACT} dB or more", (decibels >= EXACT).double()))
    for (figure, values), target in zip(figures, case.targets, strict=True):
        yield at_least(name, figure, float(values.mean()), target) if target else \
            Figure(name, figure, float(values.mean()))
    yield Figure(name, "seconds an image", seconds / case.count)
    mean = images[kept].mean(0).expand_as(truth)
    yield at_least(name, "SSIM above that of the public mean", float((likeness - ssim(mean, truth)).mean()), 0)
    if case.batch > 1:
        others = _in_order(images[case.count: 2 * case.count], truth, case.batch)
        yield Figure(name, "mean PSNR of other images, assigned alike, dB", float(psnr(others, truth).mean()))
        yield Figure(name, "mean SSIM of other images, assigned alike", float(ssim(others, truth).mean()))


def _in_order(found: Tensor, truth: Tensor, batch: int) -> Tensor:
    return found if batch == 1 else found[assign(found, truth, batch)]

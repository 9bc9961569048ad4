"""What matching gradients costs: milliseconds a step and peak memory, by batch, trials and image size."""

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from _real import cifar10
from _searches import VIT, fresh
from _table import Figure
from _updates import Server
from torch.nn.functional import interpolate

from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.data import Images
from ppbench.seeding import generator

SHORT, LONG = 3, 13  # steps of two runs, whose difference leaves out what comes before the first
MIB = 1024  # kibibytes, as the system counts


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        net: `ConvNet 64`, `ResNet-18` or `ViT 32/4`.
        batch: images a gradient.
        trials: starts that run together.
        side: of the images.
        fast: in bfloat16.
    """

    net: str
    batch: int = 1
    trials: int = 1
    side: int = 32
    fast: bool = False


MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "ConvNet 64": ("ppbench.nets:deep_convnet", {"num_classes": 10}),
    "ResNet-18": ("ppbench.nets:small_resnet18", {"num_classes": 10}),
    "ViT 32/4": ("timm:vit_tiny_patch16_224", dict(VIT)),
}


def costs(quick: bool) -> Iterator[Figure]:
    """Measure every load in a process of its own, so that its peak is its own."""
    loads = [Load("ConvNet 64", fast=True)]
    if not quick:
        loads += [Load("ConvNet 64"), Load("ConvNet 64", 4), Load("ConvNet 64", 16), Load("ConvNet 64", trials=8),
                  Load("ConvNet 64", side=64), Load("ResNet-18"), Load("ResNet-18", 8), Load("ResNet-18", trials=8),
                  Load("ViT 32/4"), Load("ViT 32/4", 8), Load("ViT 32/4", trials=8)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for load, (seconds, peak) in zip(loads, pool.map(measure, loads), strict=True):
            case = (f"{load.net}{', fast' if load.fast else ''}, {load.side} x {load.side}, batch {load.batch}, "
                    f"{load.trials} trial(s)")
            yield Figure(case, "milliseconds a step", 1000 * seconds)
            yield Figure(case, "milliseconds a step, image and trial", 1000 * seconds / load.batch / load.trials)
            yield Figure(case, "MiB, at the peak, beside what was there before", peak)


def measure(load: Load) -> tuple[float, float]:
    """Return seconds a step and the mebibytes by which the peak of memory rises."""
    torch.set_num_threads(1)
    factory, kwargs = MODELS[load.net]
    images, labels = cifar10("test")
    if load.side != images.shape[2]:
        images = interpolate(images[:64], (load.side, load.side), mode="bilinear")
    server = Server(fresh(factory, kwargs), Images(images[:32], labels[:32], torch.arange(32)), 10, load.batch)
    view = server.sees(images[: load.batch], labels[: load.batch])
    before, taken = _peak(), []
    for steps in (1, SHORT, LONG):  # the first loads what is loaded once
        attack = GradientMatching("inverting-gradients", steps=steps, restarts=load.trials, cull=1.0, fast=load.fast)
        begin = time.perf_counter()
        attack.run(view, {}, generator(0))
        taken.append(time.perf_counter() - begin)
    return (taken[2] - taken[1]) / (LONG - SHORT), _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB

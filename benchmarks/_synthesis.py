"""BN synthesis as one would write it first, to measure `bn-synthesis` against, and a profile of either.

One batch of one class at a time, float32, hooks that take mean and variance of every batch-norm layer's input.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ppbench.defenses._bn_statistics import Moments, group_statistics
from ppbench.defenses.bn_synthesis import BnSynthesis
from ppbench.seeding import generator


@dataclass(frozen=True)
class Work:
    """What both loops do: `images` images of one class in batches, so many steps each.

    Attributes:
        teacher: in eval mode, without gradients, taking images in [0, 1].
        targets: for each BN layer the wanted mean and variance `[1, channels]`.
        label: the class.
        shape: (C, H, W).
        images: how many to make; a multiple of `batch`.
        batch: images optimised together.
        steps: optimiser steps.
    """

    teacher: nn.Module
    targets: list[Moments]
    label: int
    shape: tuple[int, int, int]
    images: int = 128
    batch: int = 64
    steps: int = 10


def work(teacher: nn.Module, private: Tensor, label: int, images: int, batch: int, steps: int) -> Work:
    """Take the statistics of the images `[N, C, H, W]` of one class."""
    teacher = teacher.eval().requires_grad_(False)
    targets = group_statistics(teacher, private, torch.zeros(len(private), dtype=torch.int64), 1)
    c, h, w = private.shape[1:]
    return Work(teacher, targets, label, (c, h, w), images, batch, steps)


def plain_loop(task: Work, defense: BnSynthesis, seed: int = 0) -> Tensor:
    """Return synthetic images `[images, C, H, W]` in [0, 1], made in the straightforward way with defense's weights."""
    rng, made = generator(seed), []
    for _ in range(task.images // task.batch):
        values = torch.randn(task.batch, *task.shape, generator=rng).clamp(-1, 1).requires_grad_()
        labels = torch.full((task.batch,), task.label)
        optimiser = torch.optim.Adam([values], defense.lr, betas=(0.5, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, task.steps)
        best, lowest = values.detach().clone(), float("inf")
        for _ in range(task.steps):
            loss = _plain_loss(task, defense, _jittered(values, rng), labels)
            if loss.item() < lowest:
                best, lowest = values.detach().clone(), loss.item()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                values.clamp_(-1, 1)
        made.append((best + 1) / 2)
    return torch.cat(made)


def _jittered(values: Tensor, rng: torch.Generator) -> Tensor:
    down, right = (int(torch.randint(-(side // 8), side // 8 + 1, (), generator=rng)) for side in values.shape[2:])
    if torch.rand((), generator=rng) < 0.5:
        values = values.flip(3)
    return values.roll((down, right), (2, 3))


def _plain_loss(task: Work, defense: BnSynthesis, values: Tensor, labels: Tensor) -> Tensor:
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
             for layer in task.teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
    logits = task.teacher((values + 1) / 2)
    for hook in hooks:
        hook.remove()
    distance = torch.zeros(())
    for x, (mean, variance) in zip(inputs, task.targets, strict=True):
        distance = distance + (x.mean((0, 2, 3)) - mean[0]).norm()
        distance = distance + (x.var((0, 2, 3), correction=0) - variance[0]).norm()
    smooth = values.diff(dim=2).square().mean() + values.diff(dim=3).square().mean()
    return (defense.bn_weight * distance + defense.ce_weight * F.cross_entropy(logits, labels)
            + defense.tv_weight * smooth + defense.l2_weight * values.square().mean())


def our_loop(task: Work, defense: BnSynthesis, seed: int = 0) -> Tensor:
    """Return as many images from `bn-synthesis`' own loop."""
    labels = torch.full((task.images,), task.label)
    return defense.optimise(task.teacher, task.shape, labels, torch.zeros_like(labels), task.targets, generator(seed))


def rate(loop: Callable[[], Tensor]) -> float:
    """Return images per second of this process's CPU time (of wall time where there is CUDA)."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    count = len(loop())
    return count / (clock() - start)


def where_time_goes(loop: Callable[[], Tensor], rows: int = 8) -> list[tuple[str, float]]:
    """Return the costliest operations and their share of the time, in [0, 1]."""
    loop()  # first calls choose kernels
    with profile(activities=[ProfilerActivity.CPU]) as found:
        loop()
    events = [(each.key, each.self_cpu_time_total) for each in found.key_averages()]
    total = sum(spent for _, spent in events)
    return sorted(((name, spent / total) for name, spent in events), key=lambda each: -each[1])[:rows]

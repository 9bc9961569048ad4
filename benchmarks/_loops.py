"""How fast a ViT is trained, against a plain loop, and where the time goes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from _real import cifar10
from _table import Figure, at_least
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppbench.lessons import Lesson
from ppbench.model import for_images
from ppbench.recipe import Recipe
from ppbench.seeding import generator
from ppbench.training import Course, Trainer

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT 6 x 128": ("timm:vit_tiny_patch16_224", VIT), "ResNet-20": ("ppbench.nets:cifar_resnet", {})}
TOP = 4  # operations named in the profile


def training_speed(quick: bool) -> list[Figure]:
    """Time one pass over the same images by the plain loop and by the product's, one after the other."""
    images, labels = (part[: 256 if quick else 2048] for part in cifar10("train"))
    found = []
    for name, (factory, kwargs) in NETWORKS.items():
        net = for_images(factory, kwargs, (3, 32, 32), 10)
        plain = per_second(lambda net=net: plain_pass(net.build(), images, labels), len(images))
        fast = Recipe(batch=128, amp=True, channels_last=True)
        trainer = Trainer(net.build(), Course(name, fast, steps=100))
        own = per_second(lambda trainer=trainer: trainer.epoch(Lesson(images, labels), generator(0)), len(images))
        found += [Figure(f"training {name}: plain loop, float32", "images/s", plain),
                  Figure(f"training {name}: amp, channels_last", "images/s", own),
                  at_least(f"training {name}", "speed against the plain loop", own / plain, 1.0)]
        found += [Figure(f"training {name}: time in {op}", "share", share)
                  for op, share in profile(lambda trainer=trainer: trainer.epoch(Lesson(images[:256], labels[:256]),
                                                                               generator(0)))]
    return found


def plain_pass(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train as a tutorial does: float32, batch after batch."""
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    net.train()
    for rows in torch.randperm(len(images)).split(128):
        optimiser.zero_grad()
        cross_entropy(net(images[rows]), labels[rows]).backward()
        optimiser.step()


def per_second(work: Callable[[], object], count: int) -> float:
    """Return images a second of the better of two runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return count / min(times)


def profile(work: Callable[[], object]) -> list[tuple[str, float]]:
    """Return the operations that take most of the time, and their shares."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        work()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [(event.key.removeprefix("aten::"), event.self_cpu_time_total / total) for event in events[:TOP]]

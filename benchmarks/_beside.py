"""Gradient matching beside other implementations: iterations a second, and what comes back for as many or as long.

All are given the same untrained network, the same gradients of one image each, and as many threads. Our
`inverting-gradients` is the attack that they run; `ppbench` is the default.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from _peers import Peer, Task, peers
from _real import cifar10
from _table import Figure, at_least
from _updates import Server
from torch import Tensor

from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.data import Images
from ppbench.metrics import psnr, ssim
from ppbench.model import for_images
from ppbench.seeding import generator, seeded
from ppbench.updates import prepare

SHAPE = (3, 32, 32)
NETS = {"ConvNet": "ppbench.nets:deep_convnet", "ResNet-18": "ppbench.nets:small_resnet18"}
TRIALS = 8
FASTER, FASTER_TOGETHER = 2, 4  # iterations a second, times theirs: one trial, and each of several together


@dataclass(frozen=True)
class _Outcome:
    """What an attack came to, image by image, one after the other.

    Attributes:
        images: `[N, 3, 32, 32]`.
        seconds: an iteration, mean.
        steps: taken for each.
    """

    images: Tensor
    seconds: float
    steps: int


def beside(quick: bool, repository: Path | None) -> Iterator[Figure]:
    """Run all on each network."""
    images, labels = cifar10("test")
    count, steps = (1, 40) if quick else (2, 300)
    others = peers(repository)
    for name, factory in list(NETS.items())[: 1 if quick else None]:
        with seeded(0):
            model = for_images(factory, {}, SHAPE, 10)
            model = model.with_state(model.build())
        server = Server(model, Images(images[100:108], labels[100:108], torch.arange(8)), 10)
        yield from _on(name, server, others, images[:count], labels[:count], steps)


def _on(name: str, server: Server, others: dict[str, Peer], images: Tensor, labels: Tensor, steps: int,
        ) -> Iterator[Figure]:
    case = f"{name}, untrained, batch 1, {len(images)} image(s), {steps} steps"
    theirs = {peer: _theirs(run, server, images, labels, steps) for peer, run in others.items()}
    for peer, outcome in theirs.items():
        yield from _shown(f"{case}: {peer}", outcome, images)
    same = GradientMatching("inverting-gradients", steps=steps)
    ours = {"inverting-gradients": same, "inverting-gradients, fast": replace(same, fast=True),
            "ppbench, fast": GradientMatching(steps=steps, rehearsals=0, fast=True)}
    found = {label: _ours(attack, server, images, labels) for label, attack in ours.items()}
    for label, outcome in found.items():
        yield from _shown(f"{case}: ours, {label}", outcome, images)
        for peer, other in theirs.items():
            target = FASTER if label.endswith("fast") else 0
            yield _times(f"{case}: ours, {label}", f"iterations a second, times {peer}'s",
                         other.seconds / outcome.seconds, target)
            yield at_least(f"{case}: ours, {label}", f"mean PSNR above {peer}'s, dB", _above(outcome, other, images), 0)
    together = _ours(replace(same, fast=True, restarts=TRIALS, cull=1.0, steps=max(20, steps // 3)), server,
                     images[:1], labels[:1])
    for peer, other in theirs.items():
        yield _times(f"{case}: ours, fast, {TRIALS} trials together", f"iterations a second a trial, times {peer}'s",
                     TRIALS * other.seconds / together.seconds, FASTER_TOGETHER)
    for peer, other in theirs.items():
        longer = round(steps * other.seconds / found["ppbench, fast"].seconds)
        outcome = _ours(GradientMatching(steps=longer, rehearsals=0, fast=True), server, images, labels)
        yield at_least(f"{case}: ours, ppbench, fast, {longer} steps ({peer}'s seconds)",
                       f"mean PSNR above {peer}'s, dB", _above(outcome, other, images), 0)


def _theirs(run: Peer, server: Server, images: Tensor, labels: Tensor, steps: int) -> _Outcome:
    net = server.model.build()
    prepare(net, False)
    found, seconds = [], []
    for number, (x, y) in enumerate(zip(images.split(1), labels.split(1), strict=True)):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        gradient = list(torch.autograd.grad(loss, list(net.parameters())))
        torch.manual_seed(number)
        image, taken = run(Task(net, gradient, y, SHAPE), steps)
        found.append(image)
        seconds.append(taken / steps)
    return _Outcome(torch.cat(found).detach(), fmean(seconds), steps)


def _ours(attack: GradientMatching, server: Server, images: Tensor, labels: Tensor) -> _Outcome:
    found, seconds, steps = [], [], attack.settings().steps
    for number, (x, y) in enumerate(zip(images.split(1), labels.split(1), strict=True)):
        view = server.sees(x, y)
        begin = time.perf_counter()
        found.append(attack.run(view, {}, generator(number)).images)
        seconds.append((time.perf_counter() - begin) / steps)
    return _Outcome(torch.cat(found), fmean(seconds), steps)


def _shown(case: str, outcome: _Outcome, images: Tensor) -> Iterator[Figure]:
    yield Figure(case, "ms an iteration", 1000 * outcome.seconds)
    yield Figure(case, "mean PSNR, dB", float(psnr(outcome.images, images).mean()))
    yield Figure(case, "mean SSIM", float(ssim(outcome.images, images).mean()))


def _times(case: str, figure: str, value: float, target: float) -> Figure:
    return at_least(case, figure, value, target) if target else Figure(case, figure, value)


def _above(outcome: _Outcome, other: _Outcome, images: Tensor) -> float:
    return float(psnr(outcome.images, images).mean() - psnr(other.images, images).mean())



"""BN synthesis with a trained ResNet-20 as teacher: what a student learns, by images and by steps, and how fast."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from _real import SHARED, cifar10
from _synthesis import our_loop, plain_loop, rate, where_time_goes, work
from _table import Figure, at_least

from ppbench.data import Images
from ppbench.defenses.bn_synthesis import BnSynthesis
from ppbench.lessons import Lesson, Same, lesson_of
from ppbench.model import Model, for_images
from ppbench.recipe import Recipe
from ppbench.seeding import generator, seeded
from ppbench.victim import accuracy, teach
from ppbench.weights import read_weights, take_over

FOLDER = SHARED / "weights" / "cifar10_resnet"
TEACHER = next(iter(sorted(FOLDER.glob("resnet20-*.th"))), FOLDER / "resnet20.th")
NETWORK = "ppbench.nets:cifar_resnet"
KNOWN, AIM, CLASSES = 0.9173, 0.8, 10
HARD, LOGITS = "hard labels", "the teacher's logits"
BATCH = 100  # images of one class that are optimised together


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        private: images whose statistics are matched.
        images: how many a student learns from, of one release: whole batches of every class.
        at: optimiser steps of that release.
        steps: optimiser steps of further releases, of `few` images.
        few: how many those have.
        batch: images of one class that are optimised together.
        student: optimiser steps of a student.
        test: images it is tested on.
    """

    private: int
    images: tuple[int, ...]
    at: int
    steps: tuple[int, ...]
    few: int
    batch: int
    student: int
    test: int


# students of logits gain most of what they gain after the first 1,000 steps
FULL = Sizes(20000, (1000, 2000, 5000), 100, (25, 50), 1000, BATCH, 3000, 10000)
QUICK = Sizes(600, (100,), 5, (), 0, 10, 10, 500)


def curves(quick: bool) -> list[Figure]:
    """Measure the teacher, then students of hard labels and of its logits."""
    if not TEACHER.is_file():
        return [Figure("ResNet-20 as teacher", f"its weights are not at hand ({TEACHER.name})", float("nan"))]
    sizes = QUICK if quick else FULL
    private, (test, answers) = in_turn(*cifar10("train"), sizes.private), cifar10("test")
    test, answers = test[: sizes.test], answers[: sizes.test]
    reached = accuracy(teacher(), test, answers)
    case = f"ResNet-20 as given, {len(test)} test images"
    found = [Figure(case, "accuracy", reached, f"= {KNOWN}", abs(reached - KNOWN) < 5e-5) if not quick else
             Figure(case, "accuracy", reached)]
    best: dict[str, float] = {}
    for name, lesson, steps in lessons(private, sizes):
        value = student(lesson, sizes.student, test, answers)
        best[name] = max(best.get(name, 0), value)
        found.append(Figure(f"student: {len(lesson)} synthetic images, {steps} steps, {name}", "accuracy", value))
        print(f"{found[-1].case}: {value:.4f}", file=sys.stderr, flush=True)
    if not quick:
        found += [at_least(f"best student of {name}", "share of the teacher's accuracy", value / reached, AIM)
                  for name, value in best.items()]
    return found + synthesis_speed(private, quick)


def in_turn(images: torch.Tensor, labels: torch.Tensor, count: int) -> Images:
    """Return so many images, the classes taking turns, the same number of each."""
    each = [torch.nonzero(labels == label)[:, 0] for label in range(CLASSES)]
    rows = torch.stack([part[: min(map(len, each))] for part in each], 1).flatten()[:count]
    return Images(images[rows], labels[rows], torch.arange(len(rows)))


def lessons(private: Images, sizes: Sizes) -> Iterator[tuple[str, Lesson, int]]:
    """Yield what students learn from, with its name and optimiser steps.

    These are parts of one release that grow, then whole ones of ever more steps.
    """
    largest = max(sizes.images)
    parts = largest // CLASSES // sizes.batch  # batches of a class, to which its images are dealt in turn
    batch = torch.arange(largest) // CLASSES % parts
    for name in (HARD, LOGITS):
        whole = synthesised(name, private, largest, sizes.at, sizes.batch)
        for count in sizes.images:
            yield name, whole[(batch < count // CLASSES // sizes.batch).nonzero()[:, 0]], sizes.at
        for steps in sizes.steps:
            yield name, synthesised(name, private, sizes.few, steps, sizes.batch), steps


@cache
def teacher() -> Model:
    """Return the trained ResNet-20."""
    model = for_images(NETWORK, {}, (3, 32, 32), 10)
    with seeded(0):
        net = model.build()
        take_over(net.net, read_weights(TEACHER), NETWORK)
    return model.with_state(net)


def recipe(name: str, images: int, steps: int, batch: int = BATCH) -> BnSynthesis:
    """Return the settings that served the ResNet-20 best.

    Hard labels need images that look like their class. Where the teacher's logits are learnt, the images that it is
    less sure of teach more, if they are 2,000 or so: they match the statistics of all classes together, and hardly
    seek their class.
    """
    how = BnSynthesis(images=images, steps=steps, batch=batch, teacher=NETWORK, teacher_weights=str(TEACHER),
                      match="relative", start="natural", bn_weight=1, ce_weight=0.1, tv_weight=0.1, amp=True, lr=0.2)
    return how if name == HARD else replace(how, stats="model", ce_weight=0.02, labels="teacher", temperature=20)


def synthesised(name: str, private: Images, images: int, steps: int, batch: int) -> Lesson:
    """Return what synthetic images teach with their labels, or with the teacher's logits."""
    return lesson_of(recipe(name, images, steps, batch).protect(private, None, generator(0)))


def student(lesson: Lesson, steps: int, test: torch.Tensor, answers: torch.Tensor) -> float:
    """Train a fresh ResNet-20 for so many steps, and return its accuracy."""
    how = Recipe(steps=steps, batch=128, learning_rate=3e-3, augment="crop-flip", amp=True, channels_last=True)
    model = for_images(NETWORK, {}, (3, 32, 32), 10)
    with seeded(1):
        model = model.with_state(model.build())
    return accuracy(teach(model, Same(lesson, how.augment), how, generator(2))[0], test, answers)


def synthesis_speed(private: Images, quick: bool) -> list[Figure]:
    """Time bn-synthesis against a plain loop, and profile it."""
    net = teacher().build()
    task = work(net, private.pixels[private.labels == 0], 0, 128, 64, 3 if quick else 20)
    paper = BnSynthesis(steps=task.steps)  # its distance and start, which the plain loop has as well
    plain = rate(lambda: plain_loop(task, paper))
    own = rate(lambda: our_loop(task, replace(paper, amp=True)))
    found = [Figure(f"synthesis, {task.steps} steps: plain loop, float32", "images a CPU second", plain),
             Figure(f"synthesis, {task.steps} steps: bn-synthesis, amp", "images a CPU second", own),
             at_least("synthesis", "speed against the plain loop", own / plain, 1.0)]
    return found + [Figure(f"synthesis: time in {op.removeprefix('aten::')}", "share", share)
                    for op, share in where_time_goes(lambda: our_loop(task, recipe(HARD, 128, task.steps)))[:4]]

"""BN synthesis with a trained ResNet-20 as teacher: what a student learns, by images and by steps, and how fast."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from _real import SHARED, cifar10
from _synthesis import our_loop, plain_loop, rate, where_time_goes, work
from _table import Figure, at_least

from ppbench.data import Images
from ppbench.defense import Release
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
KNOWN, AIM = 0.9173, 0.8
STEPS = 2000  # of a student


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        private: images whose statistics are matched.
        images: how many are synthesised, at `steps` steps each.
        steps: optimiser steps, for `few` images.
        student: optimiser steps of a student.
    """

    private: int
    images: tuple[int, ...]
    at: int
    steps: tuple[int, ...]
    few: int
    student: int
    test: int


FULL = Sizes(20000, (500, 1000, 2000, 5000), 100, (25, 50, 200), 1000, STEPS, 10000)
QUICK = Sizes(1000, (100,), 10, (), 0, 20, 1000)


def curves(quick: bool) -> list[Figure]:
    """Measure the teacher, then students of hard labels and of its logits."""
    if not TEACHER.is_file():
        return [Figure("ResNet-20 as teacher", f"its weights are not at hand ({TEACHER.name})", float("nan"))]
    sizes = QUICK if quick else FULL
    (images, labels), (test, answers) = cifar10("train"), cifar10("test")
    test, answers = test[: sizes.test], answers[: sizes.test]
    reached = accuracy(teacher(), test, answers)
    case = f"ResNet-20 as given, {len(test)} test images"
    found = [Figure(case, "accuracy", reached, f"= {KNOWN}", abs(reached - KNOWN) < 5e-5) if not quick else
             Figure(case, "accuracy", reached)]
    private = Images(images[: sizes.private], labels[: sizes.private], torch.arange(sizes.private))
    cases = [(count, sizes.at) for count in sizes.images] + [(sizes.few, steps) for steps in sizes.steps]
    best: dict[str, float] = {}
    for count, steps in cases:
        release = synthesised(private, count, steps)
        hard = Lesson(release.images, release.labels)
        for name, lesson in (("hard labels", hard), ("the teacher's logits", lesson_of(release))):
            value = student(lesson, sizes.student, test, answers)
            best[name] = max(best.get(name, 0), value)
            found.append(Figure(f"student: {count} synthetic images, {steps} steps, {name}", "accuracy", value))
    if not quick:
        found += [at_least(f"best student of {name}", "share of the teacher's accuracy", value / reached, AIM)
                  for name, value in best.items()]
    return found + synthesis_speed(private, quick)


@cache
def teacher() -> Model:
    """Return the trained ResNet-20."""
    model = for_images(NETWORK, {}, (3, 32, 32), 10)
    with seeded(0):
        net = model.build()
        take_over(net.net, read_weights(TEACHER), NETWORK)
    return model.with_state(net)


def recipe(images: int, steps: int) -> BnSynthesis:
    """Return the settings that served the ResNet-20 best."""
    return BnSynthesis(images=images, steps=steps, teacher=NETWORK, teacher_weights=str(TEACHER), labels="teacher",
                       match="relative", start="natural", bn_weight=1, ce_weight=0.1, tv_weight=0.1, amp=True,
                       batch=250, lr=0.2, temperature=20)


def synthesised(private: Images, images: int, steps: int) -> Release:
    """Return synthetic images with labels and the teacher's logits."""
    return recipe(images, steps).protect(private, None, generator(0))


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
                    for op, share in where_time_goes(lambda: our_loop(task, recipe(128, task.steps)))[:4]]

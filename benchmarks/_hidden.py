"""What a malicious trainer hides in a victim's weights: how much, how exactly, and what it costs the victim."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from _real import cifar10
from _table import Figure, at_least, at_most

from ppbench.attacks._payload import carriers, flatten
from ppbench.attacks.memorization import Memorization
from ppbench.data import Images
from ppbench.defense import Release
from ppbench.defenses.none import NoDefense
from ppbench.lessons import Same, lesson_of
from ppbench.metrics import ssim
from ppbench.model import Model
from ppbench.recipe import Recipe
from ppbench.seeding import generator, seeded
from ppbench.victim import accuracy, start, teach
from ppbench.view import Sealed, View

SHAPE, CLASSES = (3, 32, 32), 10
VIT = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4}
BITS = (4, 8, 12, 16, 18, 20, 22)
MOST = 64  # images that are read back, where more fit
ALIKE, LOST, FEWEST = 0.7, 0.02, 20  # SSIM, task accuracy and images: what is promised


@dataclass(frozen=True)
class Victim:
    """A network, its training set and tests.

    Attributes:
        name: in the table.
        model: its factory.
        kwargs: the factory's arguments.
        images: it learns from.
        epochs: of training.
    """

    name: str
    model: str
    images: int
    epochs: int
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return Recipe(self.model, self.kwargs, epochs=self.epochs, batch=64, learning_rate=3e-3)

    @property
    def release(self) -> Release:
        """What it is trained on: plain images."""
        pixels, labels = cifar10("train")
        return Release(pixels[: self.images], labels[: self.images], torch.arange(self.images))

    def begin(self) -> Model:
        """Return it untrained, the same at every call."""
        with seeded(0):
            return start(self.recipe, NoDefense(), None, SHAPE, CLASSES)

    def train(self, attack: Memorization | None = None) -> Model:
        """Train it, under the hand of an attack or honestly."""
        model, release, rng = self.begin(), self.release, generator(1)
        penalty = attack.penalty(release, model.build(), generator(2)) if attack else None
        trained, _ = teach(model, Same(lesson_of(release)), self.recipe, rng, penalty=penalty)
        return finished(attack, release, trained) if attack else trained

    def read(self, attack: Memorization, model: Model, count: int) -> torch.Tensor:
        """Return what the attack reads of the first images."""
        pixels, labels = cifar10("train")
        public = Images(pixels[-500:], labels[-500:], torch.arange(500))
        view = View(Sealed(frozenset({"model", "training", "public"}), SHAPE, SHAPE, count, CLASSES, model=model,
                           public=public))
        return attack.run(view, {}, generator(3)).images


def finished(attack: Memorization, release: Release, model: Model) -> Model:
    """Let the attack write into trained weights."""
    assert model.state is not None
    return replace(model, state=attack.finish(release, dict(model.state), generator(2)))


def hidden(quick: bool) -> Iterator[Figure]:
    """Measure every encoding on a convolutional network and a transformer."""
    images, epochs = (400, 2) if quick else (10_000, 10)
    conv = Victim("ResNet-20", "ppbench.nets:cifar_resnet", images, epochs, {"depth": 20})
    vit = Victim("ViT 32/4", "timm:vit_tiny_patch16_224", images, epochs, VIT)
    trained = conv.train()
    yield from low_bits(conv, trained, quick)
    yield from low_bits(vit, vit.train(), quick)
    honest = score(trained, quick)
    everything = () if quick else (Memorization("correlated"), Memorization("correlated", images=20, repeats=4),
                                   Memorization("sign", repeats=3))
    for attack in (Memorization("sign"), Memorization("correlated", images=22), *everything):
        yield from in_training(conv, attack, honest, quick)
    if not quick:
        small = Victim("ResNet-8", "ppbench.nets:cifar_resnet", images, epochs, {"depth": 8})
        honest = score(small.train(), quick)
        for attack in (Memorization("sign"), Memorization("correlated", images=22)):
            yield from in_training(small, attack, honest, quick)


def low_bits(victim: Victim, honest: Model, quick: bool) -> Iterator[Figure]:
    """Write images into the low bits of an honestly trained network: nothing else is exact, and nothing is free."""
    release = victim.release
    yield Figure(f"{victim.name}, honest", "task accuracy", score(honest, quick))
    for bits in BITS:
        attack = Memorization("lsb", bits=bits)
        fits = room(attack, honest)
        count = min(MOST, fits, len(release))
        model = finished(attack, release, honest)
        found = victim.read(attack, model, count)
        case = f"{victim.name}, lsb, {bits} bits"
        yield Figure(case, "images that fit", fits)
        exact = (found - release.images[:count]).abs().flatten(1).amax(1) < 1e-6
        yield at_least(case, f"share of {count} images bit-exact", float(exact.double().mean()), 1)
        yield Figure(case, "task accuracy", score(model, quick))


def in_training(victim: Victim, attack: Memorization, honest: float, quick: bool) -> Iterator[Figure]:
    """Train under a loss that draws the weights towards images; hold it against what is promised for a quarter."""
    model = victim.train(attack)
    fits = room(attack, model)
    count = min(fits, attack.images or fits)
    alike = float(ssim(victim.read(attack, model, count), victim.release.images[:count]).mean())
    lost, case = honest - score(model, quick), f"{victim.name}, {attack.encoding}, {count} of {fits} images"
    case += f", {attack.repeats} weights for each value" if attack.repeats > 1 else ""
    promised = count >= FEWEST and attack.images and not quick
    yield at_least(case, "ssim", alike, ALIKE) if promised else Figure(case, "ssim", alike)
    yield at_most(case, "task accuracy lost", lost, LOST) if promised else Figure(case, "task accuracy lost", lost)


def room(attack: Memorization, model: Model) -> int:
    """Return how many images fit."""
    assert model.state is not None
    return attack.capacity(SHAPE, len(flatten(model.state, carriers(model.state))))


def score(model: Model, quick: bool) -> float:
    """Return the accuracy on test images."""
    images, labels = (part[: 300 if quick else 10_000] for part in cifar10("test"))
    return accuracy(model, images, labels)

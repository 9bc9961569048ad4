"""Training on everything that was released, in one place."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from ppbench.codec import Tensors, under
from ppbench.lessons import Lessons
from ppbench.partial import partial
from ppbench.recipe import Recipe
from ppbench.task import Task
from ppbench.training import Course, Penalty, Shield, Trainer, falls_not, steps_of

CHECKPOINT = "training"
KEEP_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class School:
    """Where a network learns: what is common to central and federated training.

    Attributes:
        name: of the network, for messages.
        lessons: gives the images of every epoch.
        count: how many there are in each.
        recipe: how it is trained.
        task: what it learns.
        penalty: a term that a malicious trainer adds to the loss.
        until: epochs (federated: rounds) after which to stop, the schedule unchanged; None = all.
        shield: protects the updates that are learnt from: in one place the gradient of every step.
    """

    name: str
    lessons: Lessons
    count: int
    recipe: Recipe
    task: Task
    penalty: Penalty | None = None
    until: int | None = None
    shield: Shield | None = None


def train_centrally(net: nn.Module, school: School, rng: torch.Generator) -> str:
    """Train a network in place; return a warning, or "".

    A killed training goes on after the last epoch that was kept, and ends with the same weights. Under the hand of a
    malicious trainer nothing is kept: its penalty may have a state of its own.
    """
    recipe = school.recipe
    epochs = recipe.passes(school.count)
    trainer = Trainer(net, Course(school.name, recipe, school.task, school.penalty,
                                  steps=steps_of(school.count, recipe.batch, epochs), shield=school.shield))
    losses: list[list[float]] = []
    kept = partial().load(CHECKPOINT) if school.penalty is None else None
    if kept is not None:
        losses = unfolded(kept)
        rng.set_state(kept["rng"])
        trainer.restore(under(kept, "trainer/"))
    saved = time.monotonic()
    for epoch in range(len(losses), epochs if school.until is None else school.until):
        losses.append(trainer.epoch(school.lessons.of_epoch(rng), rng))
        warning = falls_not(losses, epochs)
        partial().report(epoch + 1, epochs, "epochs" + (", loss does not fall" if warning else ""))
        if time.monotonic() - saved > KEEP_EVERY and school.penalty is None:
            saved = time.monotonic()
            own = {f"trainer/{name}": value for name, value in trainer.state().items()}
            partial().save(CHECKPOINT, {"rng": rng.get_state(), **folded(losses), **own})
    return falls_not(losses, epochs)


def folded(losses: list[list[float]]) -> Tensors:
    """Write losses, epoch by epoch, as tensors."""
    return {f"loss/{i}": torch.tensor(found, dtype=torch.float64) for i, found in enumerate(losses)}


def unfolded(kept: Tensors) -> list[list[float]]:
    """Read what `folded` wrote."""
    count = sum(name.startswith("loss/") for name in kept)
    return [kept[f"loss/{i}"].tolist() for i in range(count)]

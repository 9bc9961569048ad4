"""The training loop: a network, lessons, and a count of epochs; the same for every victim, central or federated."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppbench.codec import Tensors, under
from ppbench.device import device, mixed, out_of_memory
from ppbench.errors import UserError
from ppbench.lessons import Lesson, batch_rows
from ppbench.model import Update
from ppbench.recipe import Recipe
from ppbench.task import Classification, Task

Penalty = Callable[[nn.Module], Tensor]
Shield = Callable[[Update, int], Update]  # what is sent in place of an update, of the number so and so
WARM_UP = 0.1  # share of all steps
EARLY = 0.2  # share of the epochs after which a loss should have fallen
FALLEN = 0.99  # of the first loss


@dataclass(frozen=True)
class Course:
    """What the training loop needs to know beside a network and lessons.

    Attributes:
        name: of the network, for messages.
        recipe: batch, rates, precision.
        task: gives the loss.
        penalty: a term that a malicious trainer adds to the loss.
        first: steps of the whole schedule that were taken before this call.
        steps: length of the whole schedule.
        shield: protects the gradient of every step.
    """

    name: str
    recipe: Recipe
    task: Task = field(default_factory=Classification)
    penalty: Penalty | None = None
    first: int = 0
    steps: int = 1
    shield: Shield | None = None


class Trainer:
    """A network with its optimiser, to be taken through epochs; all that it holds can be saved and restored."""

    def __init__(self, net: nn.Module, course: Course) -> None:
        self.net = net.to(device()).train()
        if course.recipe.channels_last:
            self.net.to(memory_format=torch.channels_last)
        if course.recipe.amp and device().type == "cpu":
            write_attention_out(self.net)
        self.course = course
        self.optimiser = _optimiser(self.net, course.recipe)
        self.taken = course.first

    def epoch(self, lesson: Lesson, rng: torch.Generator) -> list[float]:
        """Go once through a lesson in a random order; return the loss of every step, without the penalty.

        Raises:
            UserError: memory does not suffice, batch normalisation is given a single value, or the loss stops being
                finite.
        """
        recipe, losses = self.course.recipe, []
        for rows in batch_rows(torch.randperm(len(lesson), generator=rng), recipe.batch):
            for group in self.optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate(self.taken, self.course.steps)
            losses.append(self._step(lesson[rows]))
            self.taken += 1
        found: list[float] = torch.stack(losses).tolist()
        if not all(map(math.isfinite, found)):
            bad = next(i for i, loss in enumerate(found) if not math.isfinite(loss))
            raise UserError(f"training {self.course.name!r} diverged at step {self.taken - len(found) + bad} of "
                            f"{self.course.steps} (the loss is {found[bad]}): lower learning_rate in [victim]")
        return found

    def _step(self, lesson: Lesson) -> Tensor:
        """Take one step and return the loss, detached."""
        course = self.course
        images, goals = lesson.images.to(device()), lesson.goals.to(device())
        if course.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            with mixed(device().type, course.recipe.amp):
                outputs = self.net(images)
            loss = course.task.loss(outputs.float(), goals, lesson.temperature)
            whole = loss if course.penalty is None else loss + course.penalty(self.net)
            self.optimiser.zero_grad()
            whole.backward()
            if course.shield is not None:
                self._shield(course.shield, len(images))
            self.optimiser.step()
        except Exception as error:
            raise _explained(error, course.name, len(images)) from error
        return whole.detach() if course.penalty is not None and not whole.isfinite() else loss.detach()

    def _shield(self, shield: Shield, images: int) -> None:
        """Put what would be sent in the place of the gradients."""
        grads = {name: value.grad for name, value in self.net.named_parameters() if value.grad is not None}
        recipe = self.course.recipe
        sent = shield(Update({name: grad[None] for name, grad in grads.items()}, images, 1, recipe.learning_rate, True,
                             recipe.label_smoothing), self.taken)
        for name, grad in grads.items():
            grad.copy_(sent.values[name][0])

    def state(self) -> Tensors:
        """Return everything that the next epoch depends on, random generators of torch's own included."""
        found = {f"net/{name}": value for name, value in self.net.state_dict().items()}
        return found | moments(self.optimiser) | generators() | {"taken": torch.tensor(self.taken)}

    def restore(self, state: Tensors) -> None:
        """Return to where `state` was taken."""
        self.net.load_state_dict(under(state, "net/"))
        set_moments(self.optimiser, state)
        self.taken = int(state["taken"])
        set_generators(state)


def moments(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return what an optimiser remembers of its steps, as `optimiser/NUMBER/NAME`."""
    return {f"optimiser/{i}/{name}": torch.as_tensor(value)
            for i, slots in optimiser.state_dict()["state"].items()
            for name, value in slots.items() if value is not None}


def set_moments(optimiser: torch.optim.Optimizer, state: Tensors) -> None:
    """Let an optimiser remember what `moments` gave, whatever else stands beside it."""
    slots: dict[int, Tensors] = {}
    for key, value in under(state, "optimiser/").items():
        number, name = key.split("/", 1)
        slots.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})


def generators() -> Tensors:
    """Return the states of torch's own generators, which draw dropout."""
    found = {"torch": torch.get_rng_state()}
    if device().type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device())
    return found


def set_generators(state: Tensors) -> None:
    """Return to what `generators` gave."""
    torch.set_rng_state(state["torch"])
    if device().type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device())


def steps_of(count: int, batch: int, epochs: int) -> int:
    """Count the optimiser steps of so many epochs over `count` images."""
    return epochs * len(batch_rows(torch.arange(count), batch))


def rate(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: a linear warm-up over a tenth of all steps, then a cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def falls_not(losses: list[list[float]], epochs: int) -> str:
    """Warn in a sentence if a fifth of the epochs are over and the loss has not fallen; "" = all is well so far.

    Args:
        losses: of every step, by epoch.
        epochs: planned.
    """
    if len(losses) < max(2, math.ceil(EARLY * epochs)):
        return ""
    begin, now = losses[0][: max(1, len(losses[0]) // 10)], losses[-1]
    before, after = sum(begin) / len(begin), sum(now) / len(now)
    if after < FALLEN * before:
        return ""
    return f"the loss did not fall in {len(losses)} epochs ({before:.3f} to {after:.3f})"


def write_attention_out(net: nn.Module) -> None:
    """Let timm's attention use plain matrix products: the fused kernel's way back is very slow in bfloat16 on a CPU."""
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 (mypy: modules declare no such attribute)


def _optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)


def _explained(error: Exception, name: str, count: int) -> Exception:
    """Turn what torch says of memory and of batch norm into a sentence that names the fix."""
    if out_of_memory(error):
        return UserError(f"there is not enough memory to train {name!r} on batches of {count} images: lower batch in "
                         "[victim], or choose a smaller model")
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return UserError(f"batch normalisation in {name!r} has a single value to normalise by in a batch of {count}: "
                         "give every client more images, raise batch in [victim], or choose a model without it")
    return error

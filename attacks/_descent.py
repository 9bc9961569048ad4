"""Minimising a loss by AdamW, the iterate that was best on what was held out kept."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppbench.codec import Tensors
from ppbench.training import write_attention_out

Some = TypeVar("Some")
MOST_STEPS = 10**6  # that an attack may ask for: rows are drawn for all of them at the start
EVALUATIONS = 5  # after the start
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.02
CLIP = 1.0  # norm of a gradient


@dataclass(frozen=True)
class Descent:
    """How to descend (AdamW, Loshchilov & Hutter 2019; warm-up, then half a cosine to 0).

    Attributes:
        steps: optimiser steps.
        rate: highest learning rate.
        amp: compute losses in bfloat16.
    """

    steps: int
    rate: float
    amp: bool = False


@dataclass(frozen=True)
class Course:
    """How a descent went.

    Attributes:
        losses: held-out losses: at the start, then at each evaluation.
        best: the step of the lowest.
        steps: how many were planned.
    """

    losses: list[float]
    best: int
    steps: int

    def then(self, more: "Course") -> "Course":
        """Return the course of this descent and of another that began at its best iterate."""
        best = self.steps + more.best if more.best else self.best
        return Course(self.losses + more.losses[1:], best, self.steps + more.steps)


def descend(net: nn.Module, batches: Iterator[Some], loss_of: Callable[[Some], Tensor], judge: Callable[[], float],
            how: Descent) -> Course:
    """Minimise in place, and leave the iterate that was best on held-out data in the network, the first one included.

    Args:
        net: what is trained.
        batches: as many as there are steps.
        loss_of: a batch -> the loss, a scalar.
        judge: returns the held-out loss of the network as it is.
        how: steps, rate, precision.
    """
    if how.amp:
        net.to(memory_format=torch.channels_last)  # the kernels of bfloat16 are fastest so
        write_attention_out(net)
    device = next(net.parameters()).device.type
    optimiser = torch.optim.AdamW(net.parameters(), how.rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / how.steps))
    due = {math.ceil(how.steps * k / EVALUATIONS) for k in range(1, EVALUATIONS + 1)}
    losses, best, kept = [judge()], 0, copied(net)
    for step, some in enumerate(batches, 1):
        net.train()
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=how.amp):
            loss = loss_of(some)
        if not loss.isfinite():
            break  # diverged: what was best before stays
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        if step in due:
            now = judge()
            if not math.isfinite(now):
                break
            if now < min(losses):
                best, kept = step, copied(net)
            losses.append(now)
    net.load_state_dict(kept)
    return Course(losses, best, how.steps)


def copied(net: nn.Module) -> Tensors:
    """Return the network's weights as they are now."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _rate(passed: float) -> float:
    """Return the share of the highest learning rate after this share of the steps."""
    if passed < WARM_UP:
        return (passed + 0.01) / (WARM_UP + 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (passed - WARM_UP) / (1 - WARM_UP)))

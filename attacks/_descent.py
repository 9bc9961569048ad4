"""Minimising a loss by AdamW, the iterate that was best on what was held out kept."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppbench.codec import Tensors, digest, under
from ppbench.device import mixed
from ppbench.partial import partial
from ppbench.training import moments, set_moments, write_attention_out

Some = TypeVar("Some")
MOST_STEPS = 10**6  # that an attack may ask for: rows are drawn for all of them at the start
EVALUATIONS = 5  # after the start
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.02
CLIP = 1.0  # norm of a gradient
KEEP_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Descent:
    """How to descend (AdamW, Loshchilov & Hutter 2019; warm-up, then half a cosine to 0).

    Attributes:
        steps: optimiser steps.
        rate: highest learning rate.
        amp: compute losses in bfloat16 (`ppbench.device.mixed`).
        enough: held-out loss below which nothing is left to learn.
    """

    steps: int
    rate: float
    amp: bool = False
    enough: float = -math.inf


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

    A killed descent that begins again in the same way goes on after the last step that was kept, and ends with the
    same ones; batches before it are drawn again, and passed over.

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
    due = {math.ceil(how.steps * k / EVALUATIONS) for k in range(1, EVALUATIONS + 1)}
    start = judge()
    notes = _Notes(net, optimiser, f"descent-{digest([copied(net), how, start])[:16]}")
    done, losses, best, kept = notes.read() or (0, [start], 0, copied(net))
    for step, some in enumerate(() if start < how.enough else batches, 1):
        if step <= done:
            continue
        net.train()
        for group in optimiser.param_groups:
            group["lr"] = how.rate * _rate((step - 1) / how.steps)
        optimiser.zero_grad()
        with mixed(device, how.amp):
            loss = loss_of(some)
        if not loss.isfinite():
            break  # diverged: what was best before stays
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()
        if step in due:
            now = judge()
            if not math.isfinite(now):
                break
            if now < min(losses):
                best, kept = step, copied(net)
            losses.append(now)
            if now < how.enough:
                break
        notes.write(step, losses, best, kept)
        partial().report(step, how.steps, "steps")
    net.load_state_dict(kept)
    return Course(losses, best, how.steps)


class _Notes:
    """What a descent keeps now and then of how far it is."""

    def __init__(self, net: nn.Module, optimiser: torch.optim.Optimizer, name: str) -> None:
        self.net, self.optimiser, self.name = net, optimiser, name
        self.written = time.monotonic()

    def write(self, step: int, losses: list[float], best: int, kept: Tensors) -> None:
        """Keep network and optimiser as they are after a step, and what was best, if it is time to."""
        if time.monotonic() - self.written > KEEP_EVERY:
            partial().save(self.name, {"steps": torch.tensor([step, best]),
                                       "losses": torch.tensor(losses, dtype=torch.float64),
                                       **_named("net/", copied(self.net)), **_named("best/", kept),
                                       **moments(self.optimiser)})
            self.written = time.monotonic()

    def read(self) -> tuple[int, list[float], int, Tensors] | None:
        """Return to where a descent was; give steps taken, losses, best step and its weights. None: nothing is kept."""
        found = partial().load(self.name)
        if found is None:
            return None
        self.net.load_state_dict(under(found, "net/"))
        set_moments(self.optimiser, found)
        step, best = found["steps"].tolist()
        device = next(self.net.parameters()).device
        return step, found["losses"].tolist(), best, {name: value.to(device)
                                                      for name, value in under(found, "best/").items()}


def _named(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def copied(net: nn.Module) -> Tensors:
    """Return the network's weights as they are now."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _rate(passed: float) -> float:
    """Return the share of the highest learning rate after this share of the steps."""
    if passed < WARM_UP:
        return (passed + 0.01) / (WARM_UP + 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (passed - WARM_UP) / (1 - WARM_UP)))

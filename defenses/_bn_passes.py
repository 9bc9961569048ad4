"""Which synthetic images are optimised together, how far that is, and what of it is kept for a killed run."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ppbench.data import Shape
from ppbench.partial import Partial

EVERY = 10.0  # seconds between two saves
_BETAS, _EPS = (0.5, 0.99), 1e-8


@dataclass(frozen=True)
class Pass:
    """Some batches that share forward passes.

    Attributes:
        rows: `[N]` the released images that they make, one batch after the other.
        sizes: images of each batch.
        classes: class of each batch, counted from 0.
        seed: of everything random in the pass, so that it does not matter which passes came before.
    """

    rows: Tensor
    sizes: list[int]
    classes: list[int]
    seed: int


def single_class_batches(classes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Deal the images of every class into equal batches of at most `size`.

    Args:
        classes: `[N]` int64, 0 to K - 1, each of them present.
        size: most images in a batch.

    Returns:
        `[N]` the batch of each image, and `[batches]` the class of each batch.
    """
    batch = torch.empty_like(classes)
    batch_class: list[int] = []
    for label, count in enumerate(classes.bincount().tolist()):
        parts = math.ceil(count / size)
        batch[classes == label] = torch.arange(count, device=classes.device) % parts + len(batch_class)
        batch_class += [label] * parts
    return batch, torch.tensor(batch_class, device=classes.device)


def passes(classes: Tensor, size: int, together: int, rng: torch.Generator) -> list[Pass]:
    """Cut the images to be made, of classes `[N]`, into passes of `together` batches of at most `size` images."""
    batch, batch_class = single_class_batches(classes.cpu(), size)
    rows = [torch.nonzero(batch == number).flatten() for number in range(len(batch_class))]
    starts = range(0, len(rows), together)
    seeds = torch.randint(2**62, (len(starts),), generator=rng).tolist()
    return [Pass(torch.cat(rows[i:i + together]), [len(part) for part in rows[i:i + together]],
                 batch_class[i:i + together].tolist(), seed) for i, seed in zip(starts, seeds, strict=True)]


def start_images(kind: Literal["white", "natural"], count: int, shape: Shape, rng: torch.Generator) -> Tensor:
    """Draw `[count, C, H, W]` in [-1, 1] to start from.

    Args:
        kind: `white` noise of deviation 1, cut to the range; or noise of deviation 0.5 whose amplitude falls as
            1 / frequency and whose channels go together, as in photographs at large.
        count: number of images.
        shape: (C, H, W).
        rng: draws them.
    """
    noise = torch.randn(count, *shape, generator=rng)
    if kind == "natural":
        _, height, width = shape
        noise = noise + 1.5 * torch.randn(count, 1, height, width, generator=rng)
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
        noise = torch.fft.irfft2(torch.fft.rfft2(noise) / (frequency + 1 / max(height, width)), s=(height, width))
        noise = 0.5 * noise / noise.std()
    return noise.clamp(-1, 1)


@dataclass
class Iterate:
    """Where the optimisation of one pass stands.

    Attributes:
        values: `[N, C, H, W]` in [-1, 1].
        first: Adam's mean gradient.
        second: Adam's mean squared gradient.
        best: the values at which each batch had its lowest loss.
        lowest: `[batches]` that loss.
        rng: draws the shifts.
        step: steps done.
    """

    values: Tensor
    first: Tensor
    second: Tensor
    best: Tensor
    lowest: Tensor
    rng: torch.Generator
    step: int = 0

    @classmethod
    def start(cls, values: Tensor, batches: int, rng: torch.Generator) -> "Iterate":
        """Return the state before the first step."""
        zero = torch.zeros_like(values)
        lowest = torch.full((batches,), math.inf, device=values.device)
        return cls(values.requires_grad_(), zero, zero.clone(), values.detach().clone(), lowest, rng)

    @torch.no_grad()
    def note(self, loss: Tensor, batch: Tensor) -> None:
        """Keep the values of the batches whose loss `[batches]` is the lowest yet, by value.

        Args:
            loss: at the present values.
            batch: `[N]` the batch of each image.
        """
        better = loss < self.lowest
        self.lowest = torch.where(better, loss, self.lowest)
        torch.where(better[batch][:, None, None, None], self.values, self.best, out=self.best)

    @torch.no_grad()
    def descend(self, gradient: Tensor, lr: float) -> None:
        """Take one step of Adam, inside [-1, 1]."""
        self.step += 1
        self.first.lerp_(gradient, 1 - _BETAS[0])
        self.second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = self.second.div(1 - _BETAS[1] ** self.step).sqrt_().add_(_EPS)
        self.values.addcdiv_(self.first, scale, value=-lr / (1 - _BETAS[0] ** self.step)).clamp_(-1, 1)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as tensors."""
        return {"values": self.values.detach(), "first": self.first, "second": self.second, "best": self.best,
                "lowest": self.lowest, "rng": self.rng.get_state(), "step": torch.tensor(self.step)}

    def resume(self, kept: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        with torch.no_grad():
            for name in ("values", "first", "second", "best", "lowest"):
                getattr(self, name).copy_(kept[name])
        self.rng.set_state(kept["rng"])
        self.step = int(kept["step"])


@dataclass
class Kept:
    """Finished passes and the running one, saved now and then: a save costs time, a lost pass more.

    Attributes:
        store: the stage's folder.
        images: `[M, C, H, W]` all synthetic images, filled in pass by pass.
    """

    store: Partial
    images: Tensor
    _done: int = 0
    _pending: list[Pass] = field(default_factory=list)
    _first: int = 0
    _flushed: float = field(default_factory=time.monotonic)
    _noted: float = field(default_factory=time.monotonic)

    def todo(self, every: list[Pass]) -> Iterator[tuple[int, Pass]]:
        """Fill in the passes that were kept, and yield the others with their number."""
        while self._first < len(every) and (kept := self.store.load(f"passes-{self._first}")) is not None:
            after = self._first + int(kept["passes"])
            rows = torch.cat([one.rows for one in every[self._first:after]])
            self.images[rows] = kept["images"].to(self.images.device)
            self._done += len(rows)
            self._first = after
        yield from enumerate(every[self._first:], self._first)

    def finish(self, one: Pass, images: Tensor) -> None:
        """Take the images of a finished pass."""
        self.images[one.rows] = images
        self._done += len(images)
        self._pending.append(one)
        if time.monotonic() - self._flushed >= EVERY:
            rows = torch.cat([each.rows for each in self._pending])
            self.store.save(f"passes-{self._first}",
                            {"images": self.images[rows], "passes": torch.tensor(len(self._pending))})
            self._first += len(self._pending)
            self._pending.clear()
            self._flushed = time.monotonic()

    def begin(self, number: int, fresh: Iterate) -> Iterate:
        """Set the state of the pass `number` to where it was saved, if it was."""
        kept = self.store.load("running")
        if kept is not None and int(kept["pass"]) == number:
            fresh.resume(kept)
        return fresh

    def halfway(self, number: int, now: Iterate, steps: int) -> None:
        """Say how far the pass `number` of so many steps is, and save it as it stands where it is time to."""
        self.store.report(self._done + len(now.values) * now.step // steps, len(self.images), "images")
        if time.monotonic() - self._noted >= EVERY:
            self.store.save("running", {**now.tensors(), "pass": torch.tensor(number)})
            self._noted = time.monotonic()

"""Search in a generator: first its codes, then its features, level by level nearer to the pixels.

Source: Fang et al. 2023, "GIFD: a generative gradient inversion method with feature domain optimization"
(arXiv 2308.04699); the start from the best of many as in An et al. 2022, "MIRROR".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppbench.attacks._gan_nets import GeneratorNet
from ppbench.attacks._latent_signature import Signature, distances
from ppbench.metrics import SSIM_WINDOW, ssim

CULL = 3  # after a third of the steps on codes only the best restart goes on
AT_ONCE = 96  # images of 32 x 32 pixels in one pass: bounds the memory
LEAST_RATE = 0.1  # of the learning rate, at the end of a schedule


@dataclass(frozen=True)
class Stop:
    """Where a search stood at some point.

    Attributes:
        name: of the point.
        images: `[N, C, H, W]`.
        objective: `[N]`.
    """

    name: str
    images: Tensor
    objective: Tensor


@dataclass
class Search:
    """A search for the images whose signatures are given, each on its own.

    Attributes:
        generator: its weights need no gradient.
        signature: what images are compared by.
        wanted: `[N, D]` signatures.
        labels: `[N]` classes as the generator counts them.
        pull: weight of a code's mean squared distance from its class's centre, in standard deviations, beside the
            objective as a share of what it was at the first stop.
        stops: where the search stood, in order.
        trace: the objective `[N]` after every step and at every stop.
    """

    generator: GeneratorNet
    signature: Signature
    wanted: Tensor
    labels: Tensor
    pull: float = 0.0
    stops: list[Stop] = field(default_factory=list)
    trace: list[Tensor] = field(default_factory=list)

    def stop(self, name: str, images: Tensor) -> None:
        """Note images `[N, C, H, W]` at which the search stands."""
        self.stops.append(self.measured(name, images))
        self.trace.append(self.stops[-1].objective)

    @torch.no_grad()
    def measured(self, name: str, images: Tensor) -> Stop:
        """Return images `[N, C, H, W]` with their objectives."""
        return Stop(name, images, torch.cat([distances(self.signature.of_plain(images[rows]), self.wanted[rows])
                                             for rows in self._chunks(len(images))]))

    @torch.no_grad()
    def begin(self, bank: Tensor, bank_labels: Tensor, read: Tensor, restarts: int) -> Tensor:
        """Note what the best of many codes give, before any descent.

        Args:
            bank: `[K, latent]` codes.
            bank_labels: `[K]` their classes; an image starts from those of its own, where there are any.
            read: `[N, latent]` one more code for every image.
            restarts: how many codes to return.

        Returns:
            `[restarts or fewer, N, latent]`: every image's best codes.
        """
        self.stop("class centre", self.draw(self.generator.centre(self.labels)))
        cost = torch.cat([self._costs(self.draw(bank[rows])) for rows in self._chunks(len(bank))], 1)
        same = self.labels[:, None] == bank_labels
        cost = cost.where(same | ~same.any(1, keepdim=True), torch.inf)
        rank = cost.sort(dim=1, stable=True).indices
        for count in (4, 16):
            self.stop(f"mean of the best {count}", torch.stack([
                self.draw(bank[best[:count][seen[best[:count]].isfinite()]]).mean(0)
                for best, seen in zip(rank, cost, strict=True)]))
        starts = torch.cat([read[None], bank[rank[:, :restarts]].transpose(0, 1)])
        costs = torch.stack([distances(self.signature.of_plain(self.draw(codes)), self.wanted) for codes in starts])
        order = costs.sort(dim=0, stable=True).indices[:restarts]
        starts = starts.gather(0, order[..., None].expand(-1, -1, starts.shape[2]))
        self.stop("best start", self.draw(starts[0]))
        return starts

    def codes(self, starts: Tensor, steps: int, rate: float) -> Tensor:
        """Descend from codes `[R, N, latent]`, stop, and return the best `[N, latent]` of the R."""
        restarts, count = starts.shape[:2]
        chosen, tried = starts[0], 0
        if restarts > 1:
            tried = max(1, steps // CULL)
            rows = torch.arange(count).repeat(restarts)
            found, last = self._descend_codes(starts.flatten(0, 1), rows, range(tried), steps, rate)
            best = last[-1].reshape(restarts, count).argmin(0)
            chosen = found.reshape(starts.shape)[best, torch.arange(count)]
        codes, trace = self._descend_codes(chosen, torch.arange(count), range(tried, steps), steps, rate)
        self.trace += trace
        self.stop("codes", self.draw(codes))
        return codes

    def features(self, codes: Tensor, steps: int, rate: float) -> None:
        """Go on from codes `[N, latent]` in the features of level 1, 2, ... in turn; stop twice at each.

        Deeper features explain more: too much, where the release leaves the image open.
        """
        with torch.no_grad():
            values: tuple[Tensor, ...] = (self.generator.enter(codes),)
        for level in range(1, self.generator.levels + 1):
            for part, span in (("half-way", range(steps // 2)), ("done", range(steps // 2, steps))):
                values, trace = self._descend_features(values, level, span, steps, rate)
                self.trace += trace
                self.stop(f"features {level} {part}", self._finished(values, level))
            if level < self.generator.levels:
                with torch.no_grad():
                    values = self.generator.advance(values, level)

    @torch.no_grad()
    def draw(self, codes: Tensor) -> Tensor:
        """Return the images of codes, without derivatives."""
        return torch.cat([self.generator(codes[rows]) for rows in self._chunks(len(codes))])

    @torch.no_grad()
    def _finished(self, values: tuple[Tensor, ...], level: int) -> Tensor:
        return torch.cat([self.generator.finish(tuple(value[rows] for value in values), level)
                          for rows in self._chunks(len(values[0]))])

    def _descend_codes(self, codes: Tensor, which: Tensor, span: range, steps: int,
                       rate: float) -> tuple[Tensor, list[Tensor]]:
        """Run part of the schedule on codes of the images `which`; return them and the objectives."""
        wanted, labels = self.wanted[which], self.labels[which]
        centre, spread = self.generator.centre(labels), self.generator.spread(labels)
        scale = self.stops[0].objective.mean().clamp(min=1e-12)

        def loss(values: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, Tensor]:
            objective = distances(self.signature.of_plain(self.generator(values[0])), wanted[rows])
            far = ((values[0] - centre[rows]).square() * (-spread[rows]).exp()).mean(1)
            return objective, objective / scale + self.pull * far

        (found,), trace = self._descend((codes,), loss, span, steps, rate)
        return found, trace

    def _descend_features(self, values: tuple[Tensor, ...], level: int, span: range, steps: int,
                          rate: float) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        def loss(values: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, Tensor]:
            objective = distances(self.signature.of_plain(self.generator.finish(values, level)), self.wanted[rows])
            return objective, objective

        return self._descend(values, loss, span, steps, rate)

    def _descend(self, values: tuple[Tensor, ...], loss: "Loss", span: range, steps: int,
                 rate: float) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Run part of a schedule of `steps` steps of Adam, its rate falling along half a cosine.

        Args:
            values: tensors with the images as leading axis; every row descends on its own.
            loss: (values, rows) -> the objective `[n]`, which is traced, and what is minimised `[n]`.
            span: which steps.
            steps: length of the schedule.
            rate: at its start.
        """
        values = tuple(value.detach().clone().requires_grad_() for value in values)
        optimiser = torch.optim.Adam(values, lr=rate, betas=(0.9, 0.99))
        trace = []
        for step in span:
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            optimiser.param_groups[0]["lr"] = rate * (LEAST_RATE + (1 - LEAST_RATE) * cosine)
            optimiser.zero_grad()
            objectives = []
            for rows in self._chunks(len(values[0])):
                with torch.enable_grad():
                    objective, minimised = loss(tuple(value[rows] for value in values), rows)
                    minimised.sum().backward()
                objectives.append(objective.detach())
            optimiser.step()
            trace.append(torch.cat(objectives))
        return tuple(value.detach() for value in values), trace

    def _costs(self, images: Tensor) -> Tensor:
        """Return the objective `[N, K]` of each of K images, were it an estimate of each of the N."""
        return torch.cdist(self.wanted, self.signature.of_plain(images)).square() / self.wanted.shape[1]

    def _chunks(self, count: int) -> list[slice]:
        size = max(1, AT_ONCE * 32**2 // math.prod(self.generator.canvas.shape[1:]))
        return [slice(first, first + size) for first in range(0, count, size)]


def best_stop(stops: list[Stop], truth: Tensor) -> Stop:
    """Return the stop whose last images are most like the truth `[n, C, H, W]`; without a truth the last stop."""
    if not len(truth):
        return stops[-1]
    return max(stops, key=lambda stop: likeness(stop.images[-len(truth):], truth))


def likeness(found: Tensor, truth: Tensor) -> float:
    """Return the mean SSIM; for images too small for its window, minus the mean squared error."""
    if min(truth.shape[2:]) < SSIM_WINDOW:
        return -float((found - truth).square().mean())
    return float(ssim(found, truth).mean())


Loss = Callable[[tuple[Tensor, ...], slice], tuple[Tensor, Tensor]]

"""Gradient matching: find the images whose gradient is the one that a federated client sent.

Source: Geiping et al. 2020, "Inverting gradients - how easy is it to break privacy in federated learning?"
(arXiv 2003.14053): cosine distance and total variation, signed Adam with step decay, a box constraint.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, vmap
from torch.nn.functional import cross_entropy

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.attacks._closed_form import vit_inputs
from ppbench.attacks._labels import infer_labels
from ppbench.bounds import above_zero, at_least
from ppbench.codec import Tensors
from ppbench.defense import resize
from ppbench.errors import NotApplicable
from ppbench.seeding import spawn
from ppbench.updates import prepare
from ppbench.view import View

AT_ONCE = 64  # images whose gradients are computed together: bounds the memory
EXPLAINED = 1e-6  # a closed form whose gradient is as near as this (cosine distance) needs no optimisation
CULL = 10  # restarts are compared after one step in ten
DECAY, MILESTONES = 0.3, (3 / 8, 5 / 8, 7 / 8)


@dataclass(frozen=True)
class Problem:
    """Gradients to be explained, one a batch of images.

    Attributes:
        net: the network, prepared for second derivatives.
        target: parameter name -> `[batches, *parameter shape]`.
        labels: `[batches, size]`.
        smoothing: of the labels in the clients' loss.
    """

    net: nn.Module
    target: Tensors
    labels: Tensor
    smoothing: float = 0.0

    def __getitem__(self, rows: Tensor) -> "Problem":
        target = {name: value[rows] for name, value in self.target.items()}
        return Problem(self.net, target, self.labels[rows], self.smoothing)

    def distances(self, images: Tensor) -> Tensor:
        """Return the cosine distances `[batches]` between the gradients of `images` and the target."""
        params = {name: value.detach() for name, value in self.net.named_parameters()}
        own = {name: params.pop(name) for name in self.target}

        def loss(own: Tensors, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(functional_call(self.net, (own, params), (x,)), y, label_smoothing=self.smoothing)

        found = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(own, images, self.labels)
        return cosine_distance(found, self.target)


@dataclass(frozen=True)
class GradientMatching(Attack):
    """Invert federated gradients: labels and ViT inputs in closed form, the rest by cosine + TV (Geiping et al. 2020).

    Recovers the *released* images. With more than one image a gradient, their order within a batch is unknown.

    Attributes:
        steps: of signed Adam.
        learning_rate: at the start, in units of the pixel range [0, 1]; times 0.3 after 3/8, 5/8 and 7/8 of the steps.
        tv: weight of the total variation (mean absolute difference of neighbours).
        restarts: starts a batch; the best after a tenth of the steps goes on.
        init: grey, uniform noise, or the mean of protected public images; the first and last with slight noise.
        closed_form: try the linear system of vision transformers first (batch 1 only).
    """

    requires = frozenset({"model", "gradients", "public", "algorithm"})
    uses = frozenset({"labels"})
    default_threat = "federated-server"
    ceiling = 0.9
    steps: int = 200
    learning_rate: float = 0.1
    tv: float = 0.003
    restarts: int = 1
    init: Literal["grey", "noise", "public"] = "grey"
    closed_form: bool = True

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "restarts")
        at_least(self, 0, "tv")
        above_zero(self, "learning_rate")

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Reconstruct the released images of every batch of targets."""
        update = view.update
        if not all(torch.isfinite(value).all() for value in update.values.values()):
            raise NotApplicable("the update holds values that are not finite: lower the client's learning rate")
        net = view.model.build()
        prepare(net, update.bn_train)
        if update.bn_train:
            replace_all_batch_norm_modules_(net)  # running statistics written in place do not batch
        scale = 1 if update.local_steps == 1 else update.learning_rate * update.local_steps
        like = _like_released(view, rng)
        found, notes, objective = [], [], []
        for size, rows in _equal_batches(view.n_targets, update.batch):
            target = {name: value[rows] / scale for name, value in update.values.items()}
            labels = (torch.stack(view.labels.split(update.batch)[rows]) if "labels" in view.granted
                      else infer_labels(net, target, size, view.classes, like))
            problem = Problem(net, target, labels, update.label_smoothing)
            starts = self._starts((self.restarts, *labels.shape, *view.released_shape), like, rng)
            images, note = self._solve(problem, starts)
            found.append(images.flatten(0, 1))
            notes.append(note)
            objective.append(torch.stack([_distances(problem, starts[0]), _distances(problem, images)]))
        single = update.batch == 1
        notes.append("labels given" if "labels" in view.granted else "labels inferred")
        return Reconstruction(torch.cat(found), aligned=single, of="released", within=None if single else update.batch,
                              note="; ".join(dict.fromkeys(notes)), objective=torch.cat(objective, 1))

    def _solve(self, problem: Problem, starts: Tensor) -> tuple[Tensor, str]:
        """Return images `[batches, size, c, h, w]`, and how they were found."""
        batches, size = problem.labels.shape
        shape = (starts.shape[-3], starts.shape[-2], starts.shape[-1])
        exact = vit_inputs(problem.net, problem.target, shape) if self.closed_form and size == 1 else None
        if exact is None:
            return self._matched(problem, starts)
        images = exact[:, None]
        rest = torch.nonzero(_distances(problem, images) > EXPLAINED).flatten()
        if len(rest) == 0:
            return images, "closed form"
        found, note = self._matched(problem[rest], torch.cat([images[None], starts])[:, rest])
        return images.index_copy(0, rest, found), f"closed form for {batches - len(rest)} of {batches}, others {note}"

    def _matched(self, problem: Problem, starts: Tensor) -> tuple[Tensor, str]:
        images = self.match(problem, starts)
        return images, (f"cosine+tv {self.steps} steps, {len(starts)} start(s), "
                        f"cosine distance {_distances(problem, images).mean():.2g}")

    def match(self, problem: Problem, starts: Tensor) -> Tensor:
        """Optimise from starts `[restarts, batches, size, c, h, w]`; return the images of the best, less one axis."""
        restarts, batches = starts.shape[:2]
        if restarts == 1:
            return self._descend(problem, starts[0], 0, self.steps)
        tried = max(1, self.steps // CULL)
        every = problem[torch.arange(batches).repeat(restarts)]
        images = self._descend(every, starts.flatten(0, 1), 0, tried)
        best = _distances(every, images).reshape(restarts, batches).argmin(0)
        chosen = images.reshape(starts.shape)[best, torch.arange(batches)]
        return self._descend(problem, chosen, tried, self.steps)

    def _descend(self, problem: Problem, images: Tensor, first: int, last: int) -> Tensor:
        """Run steps `first` to `last` of the schedule on `[batches, size, c, h, w]`, each batch on its own."""
        images = images.clone()
        optimiser = torch.optim.Adam([images], lr=self.learning_rate)
        for step in range(first, last):
            passed = sum(step >= part * self.steps for part in MILESTONES)
            optimiser.param_groups[0]["lr"] = self.learning_rate * DECAY**passed
            images.grad = self._gradient(problem, images).sign()
            optimiser.step()
            images.clamp_(0, 1)
        return images

    def _gradient(self, problem: Problem, images: Tensor) -> Tensor:
        parts = []
        for rows in _chunks(images):
            x = images[rows].detach().requires_grad_()
            loss = problem[rows].distances(x) + self.tv * total_variation(x)
            parts.append(torch.autograd.grad(loss.sum(), x)[0])
        return torch.cat(parts)

    def _starts(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        if self.init == "noise":
            return torch.rand(shape, generator=rng)
        centre = torch.tensor(0.5) if self.init == "grey" else like.mean(0)
        return (centre + 0.1 * torch.randn(shape, generator=rng)).clamp(0, 1)


def cosine_distance(found: Tensors, target: Tensors) -> Tensor:
    """Return 1 - cosine `[batches]` between two sets of gradients, each `[batches, ...]` by parameter name.

    Computed as half the squared distance of the unit vectors, which does not cancel near 0 as 1 - cosine does.
    """
    def unit(values: Tensors) -> Tensors:
        squared = sum((value.flatten(1).square().sum(1) for value in values.values()), torch.tensor(1e-24))
        return {name: value.flatten(1) / squared.sqrt()[:, None] for name, value in values.items()}

    first, second = unit(found), unit(target)
    return sum(((first[name] - second[name]).square().sum(1) / 2 for name in target), torch.tensor(0.0))


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels `[batches]` of `[batches, size, c, h, w]`."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs()
    right = (images[..., 1:] - images[..., :-1]).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)


def _chunks(images: Tensor) -> list[Tensor]:
    return list(torch.arange(len(images)).split(max(1, AT_ONCE // images.shape[1])))


def _distances(problem: Problem, images: Tensor) -> Tensor:
    return torch.cat([problem[rows].distances(images[rows]).detach() for rows in _chunks(images)])


def _equal_batches(count: int, batch: int) -> list[tuple[int, slice]]:
    """Group `count` targets in batches as (size, rows of the update): the full ones, and a smaller last one."""
    full, rest = divmod(count, batch)
    return [(size, rows) for size, rows in ((batch, slice(0, full)), (rest, slice(full, None)))
            if size and (rows.stop is None or rows.stop)]


def _like_released(view: View, rng: torch.Generator, count: int = 256) -> Tensor:
    """Return images like the released ones: public images, protected with keys of one's own.

    A defense that works on the whole set rather than image by image (synthesis) is too costly to run again.
    """
    public = view.public[:count]
    if view.algorithm.defense.partnered:
        return view.algorithm.protect(public, spawn(rng)).images
    return resize(public.pixels, view.released_shape)

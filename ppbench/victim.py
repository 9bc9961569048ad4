"""The victim: the network that is trained on a release, and the updates that its federated twin sends."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Defense, Keys, Release
from ppbench.errors import UserError
from ppbench.model import Model, Update, for_images
from ppbench.seeding import seeded

Penalty = Callable[[nn.Module], Tensor]
WARM_UP = 0.1  # share of all steps


@dataclass(frozen=True)
class Recipe:
    """How a victim is built and trained: the suite's `[victim]` table.

    Attributes:
        model: `timm:NAME`, `torchvision:NAME` or `package.module:function`.
        kwargs: the factory's keyword arguments; image size, channels and classes are filled in.
        epochs: passes over the release.
        batch: images a step.
        learning_rate: AdamW's peak, reached after a tenth of all steps, then along a cosine to 0.
        weight_decay: AdamW's.
    """

    model: str = "ppbench.nets:convnet"
    kwargs: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch: int = 32
    learning_rate: float = 6e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative")


def start(recipe: Recipe, defense: Defense, keys: Keys | None, shape: Shape, classes: int) -> Model:
    """Return the public starting point: the architecture for protected images, with fresh weights.

    The weights come from the global generator, which the frame has seeded.

    Args:
        recipe: names the architecture.
        defense: may adapt it.
        keys: the client's keys, if any.
        shape: (C, H, W) of the private images.
        classes: number of classes.

    Raises:
        UserError: the architecture is unknown or refuses its arguments.
    """
    model = defense.adapt(for_images(recipe.model, recipe.kwargs, shape, classes), keys)
    return model.with_state(model.build())


def train(model: Model, release: Release, recipe: Recipe, rng: torch.Generator,
          penalty: Penalty | None = None) -> Model:
    """Train on a release with AdamW and cross-entropy; return the model with its last weights.

    There is no augmentation: a server cannot augment protected images.

    Args:
        model: where to start.
        release: `[M, c, h, w]` images and their labels.
        recipe: epochs, batch size and rates.
        rng: draws the order of the images (and, where the network has it, dropout).
        penalty: a term that a malicious trainer adds to the loss.

    Raises:
        UserError: the network does not fit the released images or labels, or the loss stops being finite.
    """
    with seeded(_draw(rng)) as own:
        net = model.build()
        goals = lessons(release)
        check_fits(model, net, release.images, release.labels)
        net.train()
        steps = recipe.epochs * len(_batches(torch.arange(len(release)), recipe.batch))
        optimiser = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        for step, rows in enumerate(_orders(len(release), recipe, own)):
            loss = _loss(net(release.images[rows]), goals[rows])
            if penalty is not None:
                loss = loss + penalty(net)
            if not math.isfinite(loss.item()):
                raise UserError(f"training {model.factory!r} diverged at step {step} of {steps} (the loss is "
                                f"{loss.item()}): lower learning_rate in [victim]")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        return model.with_state(net)


def lessons(release: Release) -> Tensor:
    """Return what a victim learns of each released image: its label `[M]`, or shares of classes `[M, classes]`."""
    return release.labels if release.soft_labels is None else release.soft_labels


def accuracy(model: Model, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Return the share of images `[N, c, h, w]` that are classified right, in [0, 1]."""
    with seeded(0), torch.no_grad():
        net = model.build().eval()
        check_fits(model, net, images, labels)
        right = [net(x).argmax(1) == y for x, y in zip(images.split(batch), labels.split(batch), strict=True)]
    return torch.cat(right).double().mean().item()


def client_update(model: Model, images: Tensor, labels: Tensor, *, batch: int, local_steps: int,
                  learning_rate: float, bn_train: bool) -> Update:
    """Compute what federated clients send: one update for every consecutive batch of images.

    Args:
        model: the global model, at which the updates are taken.
        images: `[N, c, h, w]`, protected.
        labels: `[N]`, or shares of classes `[N, classes]`.
        batch: images a client; the last may have fewer.
        local_steps: 1 = the plain gradient; more = weights before minus after so many SGD steps on the batch.
        learning_rate: of the local SGD steps.
        bn_train: whether batch normalisation uses the batch's own statistics. Dropout is off.

    Raises:
        UserError: the model does not fit the images, or an update is not finite.
    """
    if batch < 1 or local_steps < 1:
        raise UserError(f"batch={batch} and local_steps={local_steps} must be at least 1")
    with seeded(0):
        net = model.build()
        check_fits(model, net, images, labels if labels.ndim == 1 else labels.argmax(1))
        prepare(net, bn_train)
        before = {name: value.detach().clone() for name, value in net.state_dict().items()}
        found = []
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            net.load_state_dict(before)
            found.append(_local(net, x, y, local_steps, learning_rate))
    values = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    if not all(torch.isfinite(value).all() for value in values.values()):
        raise UserError(f"the update of {model.factory!r} is not finite: lower learning_rate or local_steps")
    return Update(values, batch, local_steps, learning_rate, bn_train)


def prepare(net: nn.Module, bn_train: bool) -> None:
    """Set a network up for updates: dropout off, batch normalisation as asked, attention written out.

    Fused attention has no second derivative, which gradient matching needs; both sides use the same kernel so that
    the true images reproduce the update.
    """
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(bn_train)
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 (mypy: modules declare no such attribute)


def check_fits(model: Model, net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Hold a network against the images and labels it is to see.

    Raises:
        UserError: it refuses the images' shape, or has too few classes for the labels.
    """
    if len(images) == 0:
        raise UserError("there are no images for the victim: raise the number of images in the data set's table")
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            logits = net(images[:1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"the victim {model.factory!r} cannot take images of shape {list(images.shape[1:])}: choose "
                        f"another model in [victim] ({str(error).splitlines()[0]})") from error
    net.train(was_training)
    if logits.ndim != 2 or int(labels.max()) >= logits.shape[1]:
        raise UserError(f"the victim {model.factory!r} gives logits of shape {list(logits.shape[1:])}, but the labels "
                        f"go up to {int(labels.max())}: give it one logit a class in [victim]")


def _loss(logits: Tensor, goals: Tensor) -> Tensor:
    """Return the cross-entropy with labels `[N]` or shares `[N, classes]`; classes beyond their end have no share."""
    if goals.ndim == 2:
        goals = torch.nn.functional.pad(goals, (0, logits.shape[1] - goals.shape[1]))
    return cross_entropy(logits, goals)


def _draw(rng: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=rng))


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def _orders(count: int, recipe: Recipe, rng: torch.Generator) -> Iterator[Tensor]:
    for _ in range(recipe.epochs):
        yield from _batches(torch.randperm(count, generator=rng), recipe.batch)


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    """Cut rows into batches; a last one of a single row joins its neighbour (batch normalisation refuses one)."""
    batches = list(rows.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches


def _local(net: nn.Module, images: Tensor, labels: Tensor, steps: int, learning_rate: float) -> Tensors:
    """Return one client's update by parameter name: the gradient, or what `steps` SGD steps subtract."""
    params = {name: value for name, value in net.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for _ in range(steps):
        try:
            loss = _loss(net(images), labels)
        except ValueError as error:  # batch statistics of a single value
            raise UserError(f"the victim cannot take a batch of {len(images)} in train mode ({error}): set "
                            "bn_train = false or raise batch") from error
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        with torch.no_grad():
            for (name, value), grad in zip(params.items(), grads, strict=True):
                if grad is not None:
                    total[name] += grad if steps == 1 else learning_rate * grad
                    value.sub_(learning_rate * grad)
    return total

"""Synthetic images that share the private images' batch-norm statistics.

Source: Soufleri, Saha & Roy 2022, "Synthetic dataset generation for privacy-preserving machine learning"
(arXiv 2210.03205); settings after the same authors' DP-ImgSyn where the paper gives none.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.data import Images, Shape
from ppbench.defense import Defense, Keys, Release
from ppbench.defenses._bn_statistics import Moments, distance, group_statistics, pool, recorded, running_statistics
from ppbench.defenses._bn_teacher import fresh_teacher, shifted, train
from ppbench.errors import UserError
from ppbench.seeding import seeded


@dataclass(frozen=True)
class BnSynthesis(Defense):
    """Release synthetic images whose batch-norm statistics match each private class (Soufleri et al. 2022).

    A teacher is trained on the private images. For every class, noise is optimised, a batch of one class at a time,
    until the inputs of the teacher's batch-norm layers have the mean and variance that the private images of that
    class give them, and the teacher recognises the class.

    There is no partner: released image i carries the label of private image i, so that every target has a row
    and the class mix is kept, but it is made from the whole class and is nobody's image (`source` is None).
    A score between the two says nothing; match the sets instead.

    Attributes:
        images: how many to release at the least; as many as there are private images in any case.
        steps: optimiser steps for a batch.
        batch: most images of one class that are optimised together; small batches lack diversity.
        teacher: `timm:NAME`, `torchvision:NAME` (colour only) or `package.module:function` of `num_classes` and
            `in_chans`; it must have batch norm.
        teacher_epochs: passes over the private images.
        stats: match the statistics of the `class`, or the teacher's own running ones (`model`), alike for all classes.
        bn_weight: weight of the distance between statistics.
        ce_weight: weight of the teacher's cross-entropy.
        tv_weight: weight of the total variation: the mean squared difference of neighbouring pixels.
        l2_weight: weight of the mean squared value (0 = mid-grey).
        lr: Adam's learning rate, for pixels in [-1, 1].
    """

    partnered = False
    images: int = 0
    steps: int = 150
    batch: int = 64
    teacher: str = "ppbench.defenses._bn_teacher:conv_net"
    teacher_epochs: int = 20
    stats: Literal["class", "model"] = "class"
    bn_weight: float = 10.0
    ce_weight: float = 1.0
    tv_weight: float = 10.0
    l2_weight: float = 0.01
    lr: float = 0.1

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images is {self.images}; it must be 0 (as many as are private) or more")
        for name in ("steps", "batch", "teacher_epochs", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("bn_weight", "ce_weight", "tv_weight", "l2_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    def check(self, shape: Shape) -> None:
        """Refuse a teacher that cannot be built, does not take such images or has no batch norm."""
        with seeded(0):
            fresh_teacher(self.teacher, shape, classes=2)

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Train the teacher, record the statistics and optimise noise until it has the same.

        Raises:
            UserError: fewer than two private images, or nothing finite comes out.
        """
        labels = self._labels(private.labels)
        # library initialisers draw from global state: fenced off, and seeded from rng
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            teacher = fresh_teacher(self.teacher, private.shape, int(private.labels.max()) + 1)
            teacher.to(private.pixels.device)
            train(teacher, private.pixels, private.labels, self.teacher_epochs, own)
            teacher.requires_grad_(False)
            images = self._synthesise(teacher, private, labels, own)
        return Release(images, labels, source=None)

    def _labels(self, private: Tensor) -> Tensor:
        """Return the private labels in their order, repeated from the start until there are enough."""
        count = max(self.images, len(private))
        if len(private) < 2:
            raise UserError("bn-synthesis cannot train its teacher on fewer than 2 private images: raise `private`")
        return private.repeat(math.ceil(count / len(private)))[:count]

    def _synthesise(self, teacher: nn.Module, private: Images, labels: Tensor, rng: torch.Generator) -> Tensor:
        present, private_class = private.labels.unique(return_inverse=True)
        if self.stats == "class":
            targets = group_statistics(teacher, private.pixels, private_class, len(present))
        else:
            targets = running_statistics(teacher, private.pixels[:1], len(present))
        group, group_class = single_class_batches(torch.searchsorted(present, labels), self.batch)
        noise = torch.randn(len(labels), *private.shape, generator=rng).to(private.pixels.device)
        images = torch.empty_like(noise)
        for together in torch.arange(len(group_class)).split(max(1, _TOGETHER // self.batch)):
            rows = (group >= together[0]) & (group <= together[-1])
            wanted = [Moments(*(part[group_class[together]] for part in layer)) for layer in targets]
            images[rows] = self._optimise(teacher, noise[rows], labels[rows], group[rows] - together[0], wanted, rng)
        return images

    def _optimise(self, teacher: nn.Module, noise: Tensor, labels: Tensor, group: Tensor, wanted: list[Moments],
                  rng: torch.Generator) -> Tensor:
        """Return each batch's best iterate, `[N, C, H, W]` in [0, 1]."""
        values = noise.clamp(-1, 1).requires_grad_()
        best, lowest = values.detach().clone(), torch.full((len(wanted[0].mean),), math.inf, device=noise.device)
        optimiser = torch.optim.Adam([values], self.lr, betas=(0.5, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        for _ in range(self.steps):
            loss = self.loss(teacher, shifted(values, rng), labels, group, wanted)
            better = loss.detach() < lowest
            lowest = torch.where(better, loss.detach(), lowest)
            best = torch.where(better[group][:, None, None, None], values.detach(), best)  # a copy: values go on
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                values.clamp_(-1, 1)
        if not lowest.isfinite().all():
            raise UserError(f"bn-synthesis found no finite loss with the teacher {self.teacher!r}: choose another "
                            "teacher, more teacher_epochs or smaller weights")
        return (best + 1) / 2

    def loss(self, teacher: nn.Module, values: Tensor, labels: Tensor, group: Tensor,
             wanted: list[Moments]) -> Tensor:
        """Return the objective `[groups]` of single-class batches.

        Args:
            teacher: takes images in [0, 1]; in eval mode.
            values: `[N, C, H, W]` in [-1, 1].
            labels: `[N]` their classes.
            group: `[N]` the batch each belongs to.
            wanted: for each BN layer the mean and variance `[groups, channels]` to match.
        """
        groups = len(wanted[0].mean)
        with recorded(teacher) as found:
            logits = teacher((values + 1) / 2)
        smooth = (values.diff(dim=2) ** 2).mean((1, 2, 3)) + (values.diff(dim=3) ** 2).mean((1, 2, 3))
        each = (self.ce_weight * F.cross_entropy(logits, labels, reduction="none") + self.tv_weight * smooth
                + self.l2_weight * (values ** 2).mean((1, 2, 3)))
        count = torch.bincount(group, minlength=groups)
        per_group = torch.zeros(groups, device=each.device).index_add(0, group, each) / count
        return self.bn_weight * distance([pool(m, group, groups) for m in found], wanted) + per_group


_TOGETHER = 512  # images in one forward pass: batches do not depend on each other, only memory does


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

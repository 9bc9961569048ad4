"""Synthetic images that share the private images' batch-norm statistics.

Source: Soufleri, Saha & Roy 2022, "Synthetic dataset generation for privacy-preserving machine learning"
(arXiv 2210.03205); settings after the same authors' DP-ImgSyn where the paper gives none.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.bounds import above_zero, at_least
from ppbench.data import Images, Shape
from ppbench.defense import Defense, Keys, Release
from ppbench.defenses._bn_memory import activations, batches_at_once, free
from ppbench.defenses._bn_passes import Iterate, Kept, Pass, passes, start_images
from ppbench.defenses._bn_statistics import (
    Moments,
    absolute_distance,
    group_statistics,
    places,
    relative_distance,
    running_statistics,
    tapped,
)
from ppbench.defenses._bn_teacher import fresh_teacher, shifted, train
from ppbench.device import mixed, out_of_memory
from ppbench.errors import UserError
from ppbench.partial import partial
from ppbench.seeding import generator, seeded


@dataclass(frozen=True)
class BnSynthesis(Defense):
    """Release synthetic images whose batch-norm statistics match each private class (Soufleri et al. 2022).

    A teacher is trained on the private images, or given. For every class, noise is optimised, a batch of one class at
    a time, until the inputs of the teacher's batch-norm layers have the mean and variance that the private images of
    that class give them, and the teacher recognises the class.

    There is no partner: released image i carries the label of private image i (again from the first where there are
    more), so that every target has a row, but it is made from the whole class and is nobody's image (`source` is
    None). A score between the two says nothing; match the sets instead.

    The defaults suit the small teacher. With a ResNet-20 of CIFAR-10, `start = "natural"`, `match = "relative"`,
    `bn_weight = 1`, `ce_weight = 0.1` and `tv_weight = 0.1` taught more in as many steps; with its logits,
    `stats = "model"` and `ce_weight = 0.02` did from 2,000 images on: those that it is less sure of tell more of it.

    Attributes:
        images: how many to release, at least as many as there are targets; 0 = as many as are private.
        steps: optimiser steps for a batch.
        batch: most images of one class that are optimised together; small batches lack diversity.
        teacher: `timm:NAME`, `torchvision:NAME` (colour only) or `package.module:function` of `num_classes` and
            `in_chans`; it must have batch norm. It gets pixels in [-1, 1], images of any size as they are.
        teacher_weights: a file of the teacher's parameters by name, `.safetensors` or of `torch.save` (also under
            `state_dict`); empty = train it on the private images.
        teacher_epochs: passes over the private images.
        stats: match the statistics of the `class`, or the teacher's own running ones (`model`), alike for all classes.
        labels: what is released with the images: the `hard` labels, or also the `teacher`'s logits, from which
            the victim learns (`extras["logits"]`, float32 `[M, classes]`).
        temperature: divides those logits where the victim learns them; above 1 the classes that the teacher thinks
            less likely weigh more.
        match: distance between statistics: `absolute`, the sum of unsquared norms (the paper's), in which layers with
            large values count most, or `relative`, the squared error in each channel's own units.
        start: `white` noise, or noise with the spectrum of photographs (`natural`).
        bn_weight: weight of the distance between statistics.
        ce_weight: weight of the teacher's cross-entropy.
        tv_weight: weight of the total variation: the mean squared difference of neighbouring pixels.
        l2_weight: weight of the mean squared value (0 = mid-grey).
        lr: Adam's learning rate, for pixels in [-1, 1].
        amp: let the teacher compute in bfloat16 while it learns and while images are optimised (sums stay in float32):
            some twice as fast on a GPU or a CPU that has bfloat16; others go on in float32. The images differ.
    """

    partnered = False
    files: ClassVar[tuple[str, ...]] = ("teacher_weights",)
    networks: ClassVar[tuple[str, ...]] = ("teacher",)
    images: int = 0
    steps: int = 150
    batch: int = 64
    teacher: str = "ppbench.defenses._bn_teacher:conv_net"
    teacher_weights: str = ""
    teacher_epochs: int = 20
    stats: Literal["class", "model"] = "class"
    labels: Literal["hard", "teacher"] = "hard"
    temperature: float = 4.0
    match: Literal["absolute", "relative"] = "absolute"
    start: Literal["white", "natural"] = "white"
    bn_weight: float = 10.0
    ce_weight: float = 1.0
    tv_weight: float = 10.0
    l2_weight: float = 0.01
    lr: float = 0.1
    amp: bool = False

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images is {self.images}; it must be 0 (as many as are private) or more")
        above_zero(self, "steps", "batch", "teacher_epochs", "temperature", "lr")
        at_least(self, 0, "bn_weight", "ce_weight", "tv_weight", "l2_weight")

    def count(self, private: int) -> int:
        """Release as many as are asked for, or as are private."""
        return self.images or private

    def check(self, shape: Shape) -> None:
        """Refuse a teacher that cannot be built, does not take such images or has no batch norm."""
        with seeded(0):
            fresh_teacher(self.teacher, shape, 2, self.teacher_weights)

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Train the teacher, record the statistics and optimise noise until it has the same.

        What is done is kept now and then, so that a killed run goes on from there, to the same images.

        Raises:
            UserError: fewer than two images to train on, a class without images, too little memory, or nothing
                finite comes out.
        """
        labels = self._labels(private.labels)
        # library initialisers draw from global state: fenced off, and seeded from rng
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            try:
                teacher = self._teacher(private, own)
                images = self._synthesise(teacher, private, labels, own)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise UserError(f"bn-synthesis ran out of memory with the teacher {self.teacher!r}: lower batch "
                                f"(now {self.batch}) or choose a smaller teacher") from error
            release = Release(images, labels, source=None)
            return release if self.labels == "hard" else self._taught(teacher, release, int(private.labels.max()) + 1)

    def _labels(self, private: Tensor) -> Tensor:
        """Return the private labels in their order, repeated from the start until there are enough."""
        count = self.count(len(private))
        if len(private) == 0 or (len(private) < 2 and not self.teacher_weights):
            raise UserError("bn-synthesis cannot train its teacher on fewer than 2 private images, as batch norm "
                            "has nothing to normalise by: raise `private` or give teacher_weights")
        missing = torch.nonzero(private.bincount() == 0).flatten().tolist()
        if self.stats == "class" and missing:
            raise UserError(f"bn-synthesis has no statistics of class {missing[0]}, of which no private image is left "
                            f"({len(missing)} classes in all): raise `private`, or take stats=model")
        return private.repeat(math.ceil(count / len(private)))[:count]

    def _teacher(self, private: Images, rng: torch.Generator) -> nn.Module:
        """Return the teacher in eval mode and without gradients: read, trained, or kept from a killed run."""
        teacher = fresh_teacher(self.teacher, private.shape, int(private.labels.max()) + 1, self.teacher_weights)
        teacher.to(private.pixels.device)
        if not self.teacher_weights:
            store = partial()
            kept = store.load("teacher")
            if kept is None:
                train(teacher, private.pixels, private.labels, self.teacher_epochs, rng, amp=self.amp)
                store.save("teacher", {**teacher.state_dict(), _RNG: rng.get_state()})
            else:
                rng.set_state(kept.pop(_RNG))
                teacher.load_state_dict(kept)
        return teacher.eval().requires_grad_(False)

    def _synthesise(self, teacher: nn.Module, private: Images, labels: Tensor, rng: torch.Generator) -> Tensor:
        present, private_class = private.labels.unique(return_inverse=True)
        if self.stats == "class":
            targets = group_statistics(teacher, private.pixels, private_class, len(present))
        else:
            targets = running_statistics(teacher, private.pixels[:1], len(present))
        return self.optimise(teacher, private.shape, labels, torch.searchsorted(present, labels), targets, rng)

    def optimise(self, teacher: nn.Module, shape: Shape, labels: Tensor, group: Tensor, targets: list[Moments],
                 rng: torch.Generator) -> Tensor:
        """Turn noise into images of given classes and statistics.

        Args:
            teacher: takes images in [0, 1]; in eval mode, without gradients, on the labels' device.
            shape: (C, H, W) of the images.
            labels: `[M]` what the teacher is to recognise.
            group: `[M]` the row of `targets` that each is to match; 0 to K - 1, each of them present.
            targets: for each BN layer the mean and variance `[K, channels]`.
            rng: draws noise and shifts.

        Returns:
            `[M, C, H, W]` in [0, 1].

        Raises:
            UserError: too little memory, a batch without variance, or nothing finite comes out.
        """
        device = labels.device
        blank = torch.zeros(1, *shape, device=device)
        image = activations(teacher, blank)
        together = batches_at_once(image, self.batch, _TOGETHER[device.type])
        every = passes(group, self.batch, together, rng)
        if min(min(one.sizes) for one in every) == 1 and 1 in places(teacher, blank):
            raise UserError(f"bn-synthesis cannot match the variance of a batch of one image: the teacher "
                            f"{self.teacher!r} has batch norm where one place is left of it; raise batch or images")
        self._check_memory(image * max(len(one.rows) for one in every), device)
        teacher.to(memory_format=torch.channels_last)  # the kernels of batch norm are fastest so
        kept = Kept(partial(), torch.empty(len(labels), *shape, device=device))
        for number, one in kept.todo(every):
            wanted = [Moments(*(part[one.classes] for part in layer)) for layer in targets]
            kept.finish(one, self._optimise(teacher, one, number, labels[one.rows.to(device)], wanted, kept))
        return kept.images

    def _check_memory(self, activations: int, device: torch.device) -> None:
        """Refuse a pass that cannot fit: every activation is kept for the way back, which needs some of its own."""
        wanted, there = 1.5 * activations, free(device)
        if wanted > there:
            raise UserError(f"bn-synthesis needs about {wanted / 2**30:.1f} GiB to optimise {self.batch} images at "
                            f"once with the teacher {self.teacher!r}, and {there / 2**30:.1f} GiB are free: lower "
                            "batch or choose a smaller teacher")

    def _optimise(self, teacher: nn.Module, one: Pass, number: int, labels: Tensor, wanted: list[Moments],
                  kept: Kept) -> Tensor:
        """Return the best iterate of each batch in a pass, `[N, C, H, W]` in [0, 1]."""
        rng, device = generator(one.seed), labels.device
        _, channels, height, width = kept.images.shape
        noise = start_images(self.start, len(labels), (channels, height, width), rng).to(device)
        now = kept.begin(number, Iterate.start(noise, len(one.sizes), rng))
        batch = torch.repeat_interleave(torch.arange(len(one.sizes)), torch.tensor(one.sizes)).to(device)
        while now.step < self.steps:
            # each batch its own shift: it is then the same whichever others share the pass
            moved = torch.cat([shifted(part, rng) for part in now.values.split(one.sizes)])
            loss = self.loss(teacher, moved, labels, one.sizes, wanted)
            (gradient,) = torch.autograd.grad(loss.sum(), now.values)
            now.note(loss.detach(), batch)
            now.descend(gradient, self.lr * (1 + math.cos(math.pi * now.step / self.steps)) / 2)
            kept.halfway(number, now, self.steps)
        if not now.lowest.isfinite().all():
            raise UserError(f"bn-synthesis found no finite loss with the teacher {self.teacher!r}: choose another "
                            "teacher, more teacher_epochs or smaller weights")
        return (now.best + 1) / 2

    def loss(self, teacher: nn.Module, values: Tensor, labels: Tensor, sizes: list[int],
             wanted: list[Moments]) -> Tensor:
        """Return the objective `[batches]` of single-class batches.

        Args:
            teacher: takes images in [0, 1]; in eval mode.
            values: `[N, C, H, W]` in [-1, 1], one batch after the other.
            labels: `[N]` their classes.
            sizes: images of each batch.
            wanted: for each BN layer the mean and variance `[batches, channels]` to match.
        """
        images = ((values + 1) / 2).contiguous(memory_format=torch.channels_last)
        with tapped(teacher, sizes) as found, mixed(values.device.type, self.amp):
            logits = teacher(images)
        smooth = (values.diff(dim=2) ** 2).mean((1, 2, 3)) + (values.diff(dim=3) ** 2).mean((1, 2, 3))
        each = (self.ce_weight * F.cross_entropy(logits.float(), labels, reduction="none") + self.tv_weight * smooth
                + self.l2_weight * (values ** 2).mean((1, 2, 3)))
        distance = relative_distance if self.match == "relative" else absolute_distance
        return self.bn_weight * distance(found, wanted) + torch.stack([part.mean() for part in each.split(sizes)])

    @torch.no_grad()
    def _taught(self, teacher: nn.Module, release: Release, classes: int) -> Release:
        """Add the teacher's logits of the data set's classes, and what the victim learns of them."""
        logits = torch.cat([teacher(part).float()[:, :classes] for part in release.images.split(_CHUNK)])
        shares = (logits / self.temperature).softmax(1)
        return replace(release, extras={"logits": logits}, soft_labels=shares, temperature=self.temperature)


_TOGETHER = {"cpu": 256, "cuda": 2048}  # images in a pass: more help a GPU, and outgrow a CPU's cache
_CHUNK = 256  # images in a forward pass alone
_RNG = "rng"  # beside the teacher's parameters, whose names have dots

"""Synthetic images with a formal guarantee: `bn-synthesis` from noised statistics and a teacher trained by DP-SGD.

After Soufleri et al.'s differentially private variant of their method (DP-ImgSyn); the noise is counted here by Renyi
accounting over training and statistics together.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppbench.bounds import above_zero, at_least
from ppbench.data import Images, Shape
from ppbench.defense import Defense, Guarantee, Keys, Release
from ppbench.defenses._accountant import Mechanism, epsilon_of, noise_for
from ppbench.defenses._bn_passes import start_images
from ppbench.defenses._bn_teacher import fresh_teacher
from ppbench.defenses._dp_statistics import noised_statistics, units_of
from ppbench.defenses._dp_teacher import Course, train_privately
from ppbench.defenses.bn_synthesis import BnSynthesis
from ppbench.errors import UserError
from ppbench.partial import partial
from ppbench.seeding import seeded

_NOISE_IMAGES = 256  # from which units are taken
_RNG = "rng"


@dataclass(frozen=True)
class DpSynthesis(Defense):
    """Release synthetic images that satisfy (epsilon, delta) differential privacy for every private image.

    The teacher is trained by DP-SGD, the statistics of each class are a noised sum, and all that follows looks at
    nothing else. Labels are those of all classes in turn, not the private ones. Two sets are neighbours where one has
    an image more; the number of private images and of classes is taken to be known.

    Attributes:
        budget: epsilon of everything that is released.
        delta: of the guarantee.
        share: of the budget, for the statistics alone; training gets what the accountant finds left.
        images: how many to release; 0 = as many as are private.
        steps: optimiser steps for a batch of synthetic images.
        batch: most images of one class that are optimised together.
        teacher: `timm:NAME`, `torchvision:NAME` (colour only) or `package.module:function` of `num_classes` and
            `in_chans`; it must have batch norm.
        teacher_epochs: passes over the private images, on average.
        teacher_batch: private images in a step, on average.
        teacher_lr: Adam's learning rate.
        clip: highest norm of an image's gradient.
        clip_statistics: highest norm of an image's statistics, each in units of its deviation over noise images, as a
            multiple of the square root of their number.
        bn_weight: weight of the distance between statistics.
        ce_weight: weight of the teacher's cross-entropy.
        tv_weight: weight of the total variation.
    """

    partnered = False
    networks: ClassVar[tuple[str, ...]] = ("teacher",)
    budget: float = 8.0
    delta: float = 1e-5
    share: float = 0.6
    images: int = 0
    steps: int = 150
    batch: int = 64
    teacher: str = "ppbench.defenses._bn_teacher:conv_net"
    teacher_epochs: int = 20
    teacher_batch: int = 256
    teacher_lr: float = 5e-3
    clip: float = 1.0
    clip_statistics: float = 1.0
    bn_weight: float = 1.0
    ce_weight: float = 1.0
    tv_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images is {self.images}; it must be 0 (as many as are private) or more")
        above_zero(self, "budget", "steps", "batch", "teacher_epochs", "teacher_batch", "teacher_lr", "clip",
                   "clip_statistics")
        at_least(self, 0, "bn_weight", "ce_weight", "tv_weight")
        for name in ("delta", "share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")

    def count(self, private: int) -> int:
        """Release as many as are asked for, or as are private."""
        return self.images or private

    def check(self, shape: Shape) -> None:
        """Refuse a teacher that cannot be built, does not take such images or has no batch norm."""
        with seeded(0):
            fresh_teacher(self.teacher, shape, 2)

    def mechanisms(self, private: int) -> tuple[Mechanism, Mechanism]:
        """Return what looks at so many private images: training, and the statistics.

        Raises:
            UserError: the budget is too small for any noise.
        """
        rate = min(1.0, self.teacher_batch / private)
        steps = math.ceil(self.teacher_epochs / rate)
        try:
            statistics = Mechanism(noise_for(self.share * self.budget, self.delta))
            return Mechanism(noise_for(self.budget, self.delta, steps, rate, (statistics,)), steps, rate), statistics
        except ValueError as error:
            raise UserError(f"dp-synthesis: {error}: raise budget or delta") from error

    def guarantee(self, private: int) -> Guarantee:
        """Return what the accountant finds for training and statistics together."""
        return Guarantee(epsilon_of(self.mechanisms(private), self.delta), self.delta)

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Train the teacher, sum up the classes, and optimise noise until it has their statistics.

        Raises:
            UserError: there are fewer images to release than classes, or no private image.
        """
        classes = int(private.labels.max()) + 1 if len(private) else 0
        count = self.count(len(private))
        if not 0 < classes <= count:
            raise UserError(f"dp-synthesis releases images of every class, {classes} in all, but only {count}: raise "
                            "images or private")
        device = private.pixels.device
        labels = (torch.arange(count) % classes).to(device)
        training, summing = self.mechanisms(len(private))
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            teacher = self._teacher(private, classes, training, own)
            shown = (start_images("natural", _NOISE_IMAGES, private.shape, own).to(device) + 1) / 2
            targets = noised_statistics(teacher, private, classes, units_of(teacher, shown), summing,
                                        self.clip_statistics, own)
            images = self._synthesis.optimise(teacher, private.shape, labels, labels, targets, own)
        return Release(images, labels, source=None)

    @cached_property
    def _synthesis(self) -> BnSynthesis:
        return BnSynthesis(steps=self.steps, batch=self.batch, teacher=self.teacher, match="relative", start="natural",
                           bn_weight=self.bn_weight, ce_weight=self.ce_weight, tv_weight=self.tv_weight)

    def _teacher(self, private: Images, classes: int, training: Mechanism, rng: torch.Generator) -> nn.Module:
        """Return the teacher in eval mode and without gradients: trained, or kept from a killed run."""
        teacher = fresh_teacher(self.teacher, private.shape, classes).to(private.pixels.device)
        kept = partial().load("teacher")
        if kept is None:
            course = Course(training.rate, training.times, training.noise, self.clip, self.teacher_lr)
            train_privately(teacher, private.pixels, private.labels, course, rng)
            state: dict[str, Tensor] = {**teacher.state_dict(), _RNG: rng.get_state()}
            partial().save("teacher", state)
        else:
            rng.set_state(kept.pop(_RNG))
            teacher.load_state_dict(kept)
        return teacher.eval().requires_grad_(False)

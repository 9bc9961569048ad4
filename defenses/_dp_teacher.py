"""Training with differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ppbench.codec import Tensors
from ppbench.partial import partial

_CHUNK = 64  # images whose gradients are held at a time


@dataclass(frozen=True)
class Course:
    """How a teacher is trained.

    Attributes:
        rate: with which probability an image is in a step's batch.
        steps: of the optimiser.
        noise: standard deviation of the noise on a step's sum of gradients, in units of `clip`.
        clip: highest norm of one image's gradient.
        lr: Adam's learning rate.
    """

    rate: float
    steps: int
    noise: float
    clip: float = 1.0
    lr: float = 5e-3


def train_privately(net: nn.Module, images: Tensor, labels: Tensor, course: Course, rng: torch.Generator) -> None:
    """Train a classifier by clipped and noised gradients of images `[N, C, H, W]`; leave it in eval mode.

    Batch norm stays in eval mode, with the mean 0 and the variance 1 that it begins with: statistics of a batch would
    mix its images, and no image's share of a gradient could be told. The number of images is taken to be known.
    """
    net.eval()
    weights = {name: value for name, value in net.named_parameters() if value.requires_grad}
    optimiser = torch.optim.Adam(weights.values(), course.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, course.steps)
    batch = course.rate * len(images)
    for step in range(course.steps):
        partial().report(step, course.steps, "private steps")
        rows = torch.nonzero(torch.rand(len(images), generator=rng) < course.rate)[:, 0].to(images.device)
        sums = clipped_sum(net, images[rows], labels[rows], course.clip)
        for name, value in weights.items():
            drawn = torch.randn(value.shape, generator=rng).to(value)
            value.grad = (sums[name] + course.clip * course.noise * drawn) / batch
        optimiser.step()
        schedule.step()


def clipped_sum(net: nn.Module, images: Tensor, labels: Tensor, clip: float) -> Tensors:
    """Return the sum over images of their gradients, each cut to a norm over all parameters; 0 for no images."""
    weights = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}
    buffers = dict(net.named_buffers())
    sums = {name: torch.zeros_like(value) for name, value in weights.items()}

    def loss(these: Tensors, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, (these, buffers), (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for part, wanted in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
        if len(part):
            found = each(weights, part, wanted)
            norm = torch.stack([value.flatten(1).square().sum(1) for value in found.values()]).sum(0).sqrt()
            factor = clip / norm.clamp(min=clip)
            for name, value in found.items():
                sums[name] += torch.einsum("n,n...->...", factor, value)
    return sums

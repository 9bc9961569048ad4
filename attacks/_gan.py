"""The generator prior: a variational autoencoder and a GAN in one, trained on the public images.

Source: Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric" (arXiv 1512.09300); hinge
loss and projection of Miyato & Koyama 2018; differentiable augmentation of Zhao et al. 2020 (arXiv 2006.10738), by
which a few hundred images suffice.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.attack import Prior
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._gan_nets import Design, DiscriminatorNet, EncoderNet, GeneratorNet, frozen
from ppbench.bounds import above_zero, at_least, between
from ppbench.codec import Tensors, under
from ppbench.data import Images
from ppbench.metrics import SSIM_WINDOW, ssim
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import seeded
from ppbench.view import View

HELD_OUT_MOST, HELD_OUT_SHARE = 32, 8  # at most 32 public images, and at most one in 8, are kept from training
UNKNOWN = 0.1  # share of training images whose class the generator is not told


def held_out(public: Images) -> Tensor:
    """Return which public images, `[N]` bool, no generator is trained on; they are spread evenly over all.

    An attack tunes itself on these: on images that the generator has learnt it would look better than it is.
    """
    count = min(HELD_OUT_MOST, len(public) // HELD_OUT_SHARE)
    mask = torch.zeros(len(public), dtype=torch.bool)
    mask[torch.linspace(0, len(public) - 1, count).long()] = True
    return mask


@dataclass(frozen=True)
class Nets:
    """A trained prior's networks, in eval mode; their weights need no gradient."""

    generator: GeneratorNet
    encoder: EncoderNet


@dataclass(frozen=True)
class Generator(Prior):
    """A class-conditional generator of images like the public ones, with an encoder that starts a latent search.

    Attributes:
        steps: of training, at 32 x 32 pixels; fewer in proportion for larger images.
        batch: images a step.
        latent: length of a latent code.
        width: channels at the two finest resolutions.
        lr: Adam's learning rate; it falls to 0 along half a cosine.
        kl: weight of the Kullback-Leibler divergence of the codes from the normal distribution, a pixel.
        adversarial: weight of the discriminator; 0 = a variational autoencoder.
        alone: share of the steps before the discriminator comes in. From the start it costs time and inverts worse.
    """

    needs = frozenset({"public"})
    steps: int = 340
    batch: int = 32
    latent: int = 64
    width: int = 24
    lr: float = 2e-3
    kl: float = 1e-3
    adversarial: float = 0.02
    alone: float = 0.6

    def __post_init__(self) -> None:
        at_least(self, 1, "batch", "latent", "width")
        between(self, 1, MOST_STEPS, "steps")
        at_least(self, 0, "kl", "adversarial")
        above_zero(self, "lr")
        if not 0 <= self.alone <= 1:
            raise ValueError(f"alone is {self.alone}; it must lie between 0 and 1")

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return the weights of generator (their moving average) and encoder."""
        public = view.public[~held_out(view.public)]
        design = self.design(view)
        # library initialisers draw from global state: fenced off, and seeded from rng
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            nets = (GeneratorNet(design), EncoderNet(design), DiscriminatorNet(design))
            average = _fit(self, public, design, nets, own)
            _gather(average, nets[1], public)
        states = {"generator": average.state_dict(), "encoder": nets[1].state_dict()}
        return {f"{net}.{name}": value.contiguous() for net, state in states.items() for name, value in state.items()}

    def design(self, view: View) -> Design:
        """Return what the networks for a view's images are built from."""
        return Design(view.image_shape, view.classes, self.latent, self.width)

    def load(self, view: View, weights: Tensors) -> Nets:
        """Return the networks with what `train` returned."""
        design = self.design(view)
        with seeded(0):
            nets = GeneratorNet(design), EncoderNet(design)
        for name, net in zip(("generator", "encoder"), nets, strict=True):
            net.load_state_dict(under(weights, f"{name}."))
            net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        return Nets(*nets)


def _fit(prior: Generator, public: Images, design: Design, nets: tuple[GeneratorNet, EncoderNet, DiscriminatorNet],
         rng: torch.Generator) -> GeneratorNet:
    """Train the networks in place; return the moving average of the generator."""
    for net in nets:
        net.to(memory_format=torch.channels_last)
    generator, encoder, discriminator = nets
    average = deepcopy(generator).requires_grad_(False)
    steps = _steps(prior.steps, design)
    makers = torch.optim.Adam([*generator.parameters(), *encoder.parameters()], prior.lr, betas=(0.5, 0.99))
    critic = torch.optim.Adam(discriminator.parameters(), prior.lr, betas=(0.5, 0.99))
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda k: 0.5 + 0.5 * math.cos(math.pi * k / steps))
                 for each in (makers, critic)]
    for step, rows in enumerate(shuffled_passes(len(public), prior.batch, steps, rng)):
        criticised = prior.adversarial > 0 and step >= prior.alone * steps
        real, labels = _mirrored(public.pixels[rows], rng), public.labels[rows]
        told = torch.where(torch.rand(len(rows), generator=rng) < UNKNOWN, design.classes, labels)
        mean, spread = encoder(real)
        codes = mean + (spread / 2).exp() * torch.randn(mean.shape, generator=rng)
        drawn = generator.codes(torch.randn(mean.shape, generator=rng), told)
        copied, new = generator(torch.cat([codes, drawn])).chunk(2)
        loss = (_distance(copied, real)
                + prior.kl * _divergence(mean, spread, generator.centre(told), generator.spread(told)))
        if criticised:
            augment = augmentation(len(rows), design, rng)
            _step(critic, _hinge(discriminator, augment, real, torch.stack([copied, new]).detach(), told))
            with frozen(discriminator):
                fooled = [discriminator(augment(images), told).mean() for images in (copied, new)]
            loss = loss - prior.adversarial * (fooled[0] + fooled[1])
        _step(makers, loss)
        for schedule in schedules if criticised else schedules[:1]:
            schedule.step()
        _follow(average, generator, min(0.98, step / (step + 10)))
    return average


@torch.no_grad()
def _gather(generator: GeneratorNet, encoder: EncoderNet, public: Images) -> None:
    """Set each class's distribution of codes, and that of all, to the moments of what its images are encoded to."""
    parts = [encoder(pixels) for pixels in public.pixels.split(256)]
    mean, variance = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]).exp()
    for label in range(generator.classes, -1, -1):
        mine = public.labels == label if label < generator.classes else torch.ones_like(public.labels, dtype=torch.bool)
        if mine.any():
            generator.centre.weight[label] = mean[mine].mean(0)
            generator.spread.weight[label] = (mean[mine].var(0, correction=0) + variance[mine].mean(0)).log()
        else:  # a class without images: as if its label were unknown
            generator.centre.weight[label] = generator.centre.weight[-1]
            generator.spread.weight[label] = generator.spread.weight[-1]


def _steps(steps: int, design: Design) -> int:
    """Take fewer steps where one costs more than at 32 x 32 pixels."""
    return max(1, round(steps * min(1.0, 32**2 / math.prod(design.canvas.size))))


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _hinge(discriminator: DiscriminatorNet, augment: Callable[[Tensor], Tensor], real: Tensor, fakes: Tensor,
           labels: Tensor) -> Tensor:
    seen = torch.cat([augment(real), *(augment(fake) for fake in fakes)])
    real_score, *fake_scores = discriminator(seen, labels.repeat(3)).chunk(3)
    fake = torch.stack([F.relu(1 + score).mean() for score in fake_scores]).mean()
    return F.relu(1 - real_score).mean() + fake


def _distance(found: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference plus, where the images are large enough for its window, 1 - SSIM."""
    distance = (found - real).abs().mean()
    if min(real.shape[2:]) < SSIM_WINDOW:
        return distance
    return distance + 0.5 * (1 - ssim(found, real, torch.float32)).mean()


def _divergence(mean: Tensor, spread: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """Return the divergence of one normal distribution from another, given as means and log variances `[N, d]`."""
    ratio = spread - width
    return 0.5 * ((mean - centre).square() * (-width).exp() + ratio.exp() - 1 - ratio).sum(1).mean()


def _mirrored(images: Tensor, rng: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, images, images.flip(3))


def _follow(average: nn.Module, net: nn.Module, keep: float) -> None:
    """Move a network's moving average."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)


def augmentation(count: int, design: Design, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Draw one differentiable augmentation an image: brightness, contrast, a shift by up to 1/8, a square cut out."""
    _, height, width = design.shape
    bright = torch.rand(count, 1, 1, 1, generator=rng) - 0.5
    contrast = torch.rand(count, 1, 1, 1, generator=rng) + 0.5
    rows, inside_rows, kept_rows = _window(count, height, rng)
    columns, inside_columns, kept_columns = _window(count, width, rng)
    visible = ((inside_rows[:, :, None] & inside_columns[:, None]) & (kept_rows[:, :, None] | kept_columns[:, None]))

    def augment(images: Tensor) -> Tensor:
        images = images + 0.5 * bright
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * contrast + mean
        which = torch.arange(count)[:, None, None]
        moved = images[which, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        return moved * visible[:, None]

    return augment


def _window(count: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a shift and a hole along one axis: source places `[count, side]`, which of them exist, which stay."""
    reach = max(1, side // 8)
    place = torch.arange(side) + torch.randint(-reach, reach + 1, (count, 1), generator=rng)
    hole = torch.randint(0, side, (count, 1), generator=rng)
    kept = (torch.arange(side) - hole).abs() > side // 5
    return place.clamp(0, side - 1), (place >= 0) & (place < side), kept

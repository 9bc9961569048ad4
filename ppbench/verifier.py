"""The verifier: a network trained on public people, by which a reconstruction is taken for a person or not.

It stands in for a face recognition system: what it learns of faces comes from people of whom no private photo exists,
and whom a reconstruction shows is decided against *other* photos of the person.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.codec import Tensors
from ppbench.data import Images
from ppbench.errors import UserError
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import seeded
from ppbench.trunk import WIDTH, trunk

FALSE_ACCEPTS = 0.01
VERIFICATION_DEFINITION = ("share of the other photos of the same class accepted at 1% false accepts among plain "
                           "photos of different classes; cosine, 4-conv BN width 16, CosFace on disjoint public "
                           "classes, 800 steps")
SMALLEST = 16
_FEATURES = 128
_STEPS, _BATCH, _RATE, _DECAY, _DROPOUT = 800, 64, 5e-3, 0.05, 0.3
_SCALE, _MARGIN = 16.0, 0.2  # CosFace, Wang et al. 2018 (arXiv 1801.09414)
_SHIFT = 10  # images are moved by up to one part in so many of their side
_CONTRAST = 0.2
_CHUNK = 256
_COMPARED = 4000  # photos whose pairs set the threshold


class Verifier:
    """A trained verifier; frozen, in eval mode, on the CPU.

    Images are looked at with 64 x 64 pixels, those of 32 x 32 or fewer with 32 x 32.
    """

    def __init__(self, tensors: Tensors) -> None:
        channels, pixels = tensors["body.0.0.weight"].shape[1], tensors["head.weight"].shape[1]
        self._side = 16 * round((pixels / (4 * WIDTH)) ** 0.5)
        with seeded(0):
            self._net = _Net(channels, self._side)
        self._net.load_state_dict(tensors)
        self._net.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return vectors `[N, 128]` of length 1 for images `[N, C, H, W]` in [0, 1], the same for a mirrored one."""
        found = []
        for part in images.float().split(_CHUNK):
            some = _prepared(part, self._side)
            found.append(F.normalize(self._net(some) + self._net(some.flip(3)), dim=1))
        return torch.cat(found)


class Album:
    """Plain photos of people, against which an estimate is held.

    Args:
        verifier: reads faces.
        photos: the targets' originals first, then other photos.
        targets: how many of them are targets.
    """

    def __init__(self, verifier: Verifier, photos: Images, targets: int) -> None:
        self.verifier, self.features = verifier, verifier.features(photos.pixels)
        labels = photos.labels
        self.others = (labels[:targets, None] == labels) & ~torch.eye(targets, len(photos), dtype=torch.bool)
        some, theirs = self.features[:_COMPARED], labels[:_COMPARED]
        strangers = (some @ some.T)[theirs[:, None] != theirs]
        if not len(strangers):
            raise UserError("verification needs photos of at least two private classes: raise private or test")
        self.threshold = strangers.kthvalue(max(1, int((1 - FALSE_ACCEPTS) * len(strangers)))).values
        self.plain = self._accepted(self.features[:targets])

    def verified(self, estimates: Tensor) -> Tensor:
        """Return for each target which share of the other photos of its person its estimate is accepted with.

        Args:
            estimates: `[targets, C, H, W]` in [0, 1].

        Returns:
            `[targets]` in [0, 1]; NaN where there is no other photo.
        """
        return self._accepted(self.verifier.features(estimates))

    def _accepted(self, features: Tensor) -> Tensor:
        parts = zip(features.split(_CHUNK), self.others.split(_CHUNK), strict=True)
        accepted = [((some @ self.features.T > self.threshold) & others).sum(1) for some, others in parts]
        return torch.cat(accepted).double() / self.others.sum(1)


def train_verifier(public: Images, rng: torch.Generator) -> Tensors:
    """Train a verifier: 800 steps of AdamW (one cycle), random flips, shifts and contrast; about a minute on one core.

    Args:
        public: plain images of people; their labels say who.
        rng: decides initial weights, minibatches and augmentation.

    Returns:
        The weights, for `Verifier`.

    Raises:
        UserError: the public images show fewer than two people, or are too small.
    """
    people, labels = public.labels.unique(return_inverse=True)
    if len(people) < 2:
        raise UserError("verification learns to tell people apart: set public so high that it holds two classes "
                        "or more")
    side = _side(public.pixels)
    with seeded(int(torch.randint(2**62, (), generator=rng))):
        net = _Net(public.shape[0], side).to(memory_format=torch.channels_last)
        heads = nn.Parameter(0.1 * torch.randn(len(people), _FEATURES))
        optimiser = torch.optim.AdamW([*net.parameters(), heads], _RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS, pct_start=0.25)
        padded = F.pad(_prepared(public.pixels, side), [side // _SHIFT] * 4, mode="reflect")
        for rows in shuffled_passes(len(public), _BATCH, _STEPS, rng):
            likeness = F.normalize(net(_augmented(padded[rows], side, rng)), dim=1) @ F.normalize(heads, dim=1).T
            logits = _SCALE * (likeness - _MARGIN * F.one_hot(labels[rows], len(people)))
            optimiser.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimiser.step()
            schedule.step()
    return {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}


class _Net(nn.Module):
    """Four 3 x 3 convolutions with batch normalisation, and one linear layer."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.body = trunk(channels)
        self.dropout = nn.Dropout(_DROPOUT)
        self.head = nn.Linear(4 * WIDTH * (side // 16) ** 2, _FEATURES, bias=False)
        self.norm = nn.BatchNorm1d(_FEATURES, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return `[N, 128]` for images `[N, C, side, side]`."""
        features: Tensor = self.norm(self.head(self.dropout(self.body(4 * images - 2).flatten(1))))
        return features


def _side(images: Tensor) -> int:
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise UserError(f"verification needs images of at least {SMALLEST} x {SMALLEST} pixels, but these are "
                        f"{height} x {width}: choose a larger size, or leave verification out of the score groups")
    return 64 if min(height, width) > 32 else 32


def _prepared(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _augmented(padded: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Cut all images of a minibatch at one random place, mirror half of them, and change their contrast."""
    top, left = torch.randint(2 * (side // _SHIFT) + 1, (2,), generator=rng).tolist()
    images = padded[:, :, top: top + side, left: left + side]
    images = torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, images, images.flip(3))
    contrast = 1 + _CONTRAST * (2 * torch.rand(len(images), 1, 1, 1, generator=rng) - 1)
    return (0.5 + contrast * (images - 0.5)).contiguous(memory_format=torch.channels_last)

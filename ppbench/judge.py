"""The judge: a small classifier of plain public images, whose frozen features and verdicts score reconstructions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppbench.codec import Tensors
from ppbench.data import Images
from ppbench.errors import UserError
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import seeded
from ppbench.trunk import WIDTH, trunk

FEATURE_DEFINITION = "top-1 judge all layers unit-length places pooled to 8x8 L2 ties 1/number-tied"
RECOGNITION_DEFINITION = "judge 4-conv BN width 16 on public images at 32 px, 500 steps"

_SIDE = 32
SMALLEST = 8
_STEPS, _BATCH, _RATE, _DECAY, _SMOOTHING = 500, 32, 5e-3, 0.05, 0.1
_SHIFT = 3
_PLACES = 8
_CHUNK = 256


class Judge:
    """A trained judge; frozen, in eval mode, on the CPU.

    Images of any size are judged at 32 x 32 pixels.
    """

    def __init__(self, tensors: Tensors) -> None:
        channels, classes = tensors["body.0.0.weight"].shape[1], len(tensors["head.weight"])
        with seeded(0):
            self._net = _Net(channels, classes)
        self._net.load_state_dict(tensors)
        self._net.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the vectors `[N, 4352]` by which images `[N, C, H, W]` in [0, 1] are told apart.

        All layers' activations, pooled to at most 8 x 8 places, of length 1 at every place (as in LPIPS), every layer
        of equal weight: the last layer alone hardly tells a blurred image from others of its class.

        Raises:
            UserError: an image is smaller than 8 pixels.
        """
        return _chunked(self._net.fingerprint, images)

    def predict(self, images: Tensor) -> Tensor:
        """Return the most likely classes `[N]` int64 of images `[N, C, H, W]` in [0, 1].

        Raises:
            UserError: an image is smaller than 8 pixels.
        """
        return _chunked(self._net, images).argmax(1)


def train_judge(public: Images, classes: int, rng: torch.Generator) -> Tensors:
    """Train a judge: 500 steps of AdamW (one cycle), random flips and shifts; 5 to 10 s on one core.

    Args:
        public: plain labelled images, at least two.
        classes: number of classes.
        rng: decides initial weights, minibatches and augmentation.

    Returns:
        The weights, for `Judge`.

    Raises:
        UserError: there are fewer than two public images, or they are smaller than 8 pixels.
    """
    if len(public) < 2:
        raise UserError("the judge needs labelled public images: set public to at least 2 (better 1,000)")
    pixels = _prepare(public.pixels)
    padded = nn.functional.pad(pixels, [_SHIFT] * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    with seeded(int(torch.randint(2**62, (), generator=rng))):
        net = _Net(pixels.shape[1], classes)
    net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS, pct_start=0.25)
    for rows in shuffled_passes(len(public), _BATCH, _STEPS, rng):
        optimiser.zero_grad()
        logits = net(_augmented(padded[rows], rng))
        nn.functional.cross_entropy(logits, public.labels[rows], label_smoothing=_SMOOTHING).backward()
        optimiser.step()
        schedule.step()
    return {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}


class _Net(nn.Module):
    """Four 3 x 3 convolutions with batch normalisation, a maximum over places, and one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = trunk(channels)
        self.head = nn.Linear(4 * WIDTH, classes)

    def fingerprint(self, images: Tensor) -> Tensor:
        """Return `[N, 4352]` for images `[N, C, 32, 32]`."""
        maps, found = _scaled(images), []
        for block in self.body:
            maps = block(maps)
            side = min(_PLACES, maps.shape[-1])
            pooled = nn.functional.adaptive_avg_pool2d(maps, side)
            found.append(nn.functional.normalize(pooled, dim=1).flatten(1) / side)
        return torch.cat(found, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, classes]` for images `[N, C, 32, 32]`."""
        logits: Tensor = self.head(self.body(_scaled(images)).amax((2, 3)))
        return logits


def _scaled(images: Tensor) -> Tensor:
    return images * 4 - 2


def _prepare(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise UserError(f"the judge needs images of at least {SMALLEST} x {SMALLEST} pixels, but these are "
                        f"{height} x {width}: choose a larger size, or leave recognition out of the score groups")
    if (height, width) == (_SIDE, _SIDE):
        return images
    return nn.functional.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True)


def _augmented(padded: Tensor, rng: torch.Generator) -> Tensor:
    """Cut all images of a minibatch at one random place, and mirror half of them."""
    top, left = torch.randint(2 * _SHIFT + 1, (2,), generator=rng).tolist()
    images = padded[:, :, top: top + _SIDE, left: left + _SIDE]
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, images, images.flip(3))


@torch.no_grad()
def _chunked(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    parts = [function(_prepare(part)) for part in images.float().split(_CHUNK)]
    return torch.cat(parts)

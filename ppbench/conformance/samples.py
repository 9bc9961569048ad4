"""Images to check with: made up, of any shape, with the falling spectrum of photographs."""

import torch
from torch import Tensor

from ppbench.codec import to_bytes8
from ppbench.data import Images, Shape, Split
from ppbench.seeding import generator

CLASSES = 3
PRIVATE, PUBLIC, TEST = 12, 48, 6
_SPREAD, _COLOUR = 0.18, 0.3


def sample_split(shape: Shape) -> Split:
    """Return private, public and test images of a shape, of three classes in turn."""
    everything = sample_images(PRIVATE + PUBLIC + TEST, shape)
    private, rest = everything[:PRIVATE], everything[PRIVATE:]
    return Split(private, rest[:PUBLIC], rest[PUBLIC:], CLASSES)


def sample_images(count: int, shape: Shape, seed: int = 0) -> Images:
    """Return random images with the spectrum 1/f, whose channels differ little, in 8 bit."""
    channels, height, width = shape
    rng = generator(seed)
    common = _noise(count, 1, height, width, rng)
    pixels = common + _COLOUR * _noise(count, channels, height, width, rng)
    pixels = _SPREAD * (pixels - pixels.mean((1, 2, 3), keepdim=True)) / pixels.std((1, 2, 3), keepdim=True)
    levels = 0.3 + 0.4 * torch.rand(count, channels, 1, 1, generator=rng)
    return Images(to_bytes8(pixels + levels), torch.arange(count) % CLASSES, torch.arange(count))


def _noise(count: int, channels: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    phases = torch.view_as_complex(torch.randn(count, channels, height, width // 2 + 1, 2, generator=rng))
    found: Tensor = torch.fft.irfft2(phases / (frequency + 1 / max(height, width)), s=(height, width))
    return found / found.std()

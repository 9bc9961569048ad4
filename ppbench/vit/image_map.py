"""What a cipher does under one key, read off by showing it images: which value goes where, and which are negated."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.data import Shape
from ppbench.errors import UserError

TOLERANCE = 1e-9  # float64 is good for 1e-16; neighbouring values of the ramp are more than 1e-7 apart


@dataclass(frozen=True)
class ImageMap:
    """A signed permutation of an image's values: encrypted value i is plain value `source[i]`, or 1 minus it.

    Attributes:
        source: `[C, H, W]` int64, indices into the flattened plain image.
        negative: `[C, H, W]` bool.
    """

    source: Tensor
    negative: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Encrypt images `[N, C, H, W]`."""
        values = images.flatten(1)[:, self.source]
        return torch.where(self.negative, 1 - values, values)


def image_map(cipher: Callable[[Tensor], Tensor], shape: Shape) -> ImageMap:
    """Read off what a cipher does to images of `shape` under one key.

    Args:
        cipher: encrypts images `[N, C, H, W]` in [0, 1], all of them alike; it is called once, on three in float64:
            black, a ramp of distinct values, and noise, on which the map found is put to the test.
        shape: (C, H, W).

    Raises:
        UserError: the cipher is no signed permutation of the image's values.
    """
    size = shape[0] * shape[1] * shape[2]
    ramp = (torch.arange(size, dtype=torch.float64) + 1) / (size + 1)
    noise = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = torch.stack([torch.zeros_like(ramp), ramp, noise]).reshape(3, *shape)
    black, moved, _ = out = cipher(probes)
    if out.shape == probes.shape:
        negative = black > 0.5
        source = (torch.where(negative, 1 - moved, moved) * (size + 1)).round().long() - 1
        found = ImageMap(source, negative)
        if torch.equal(source.flatten().sort().values, torch.arange(size)) and _agree(found(probes), out):
            return found
    raise UserError("the cipher does more than move an image's values and turn some to their negatives, so that no "
                    "vision transformer can absorb its key: choose steps that only do that")


def _agree(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() < TOLERANCE).all())

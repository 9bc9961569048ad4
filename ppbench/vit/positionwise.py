"""A timm ViT whose patch projection can serve ciphers that treat every block its own way, or halves of values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ppbench.errors import UserError
from ppbench.model import make_network
from ppbench.vit.shape import patch_embedding, patches

HIGH, LOW = 240 / 255, 15 / 255  # an 8-bit value is 16 h + l, its halves h and l are 0 to 15


class KeyedProjection(nn.Module):
    """A patch projection with one kernel a position, or on the halves of 8-bit values, or both.

    It stands in for the convolution of timm's `PatchEmbed` and starts as the same function. All positions share the
    bias: no cipher needs another.

    Attributes:
        weight: `[patches, D, C * patch]` with a kernel a position, else `[D, C, *patch]`; halves double C.
        bias: `[D]` or None.
    """

    def __init__(self, plain: nn.Conv2d, grid: tuple[int, int], *, positions: bool, nibbles: bool) -> None:
        super().__init__()
        kernel = plain.weight.detach()
        kernel = split_kernel(kernel) if nibbles else kernel
        self.in_channels, self.out_channels = plain.in_channels, plain.out_channels
        self.kernel_size = self.stride = (plain.kernel_size[0], plain.kernel_size[1])
        self.grid, self.positions, self.nibbles = grid, positions, nibbles
        self.weight = nn.Parameter(kernel.flatten(1).repeat(grid[0] * grid[1], 1, 1) if positions else kernel.clone())
        self.bias = plain.bias

    def forward(self, images: Tensor) -> Tensor:
        """Project images `[N, C, H, W]` in [-1, 1] to `[N, D, *grid]`."""
        values = halves(images) if self.nibbles else images
        if not self.positions:
            return conv2d(values, self.weight, self.bias, self.stride)
        tokens = torch.einsum("bnk,ndk->bdn", patches(values, self.kernel_size), self.weight)
        if self.bias is not None:
            tokens = tokens + self.bias[:, None]
        return tokens.reshape(len(images), -1, *self.grid)


def keyed_vit(base: str, kwargs: Mapping[str, Any], positions: bool = False, nibbles: bool = False) -> nn.Module:
    """Build a timm ViT whose patch projection is a `KeyedProjection`.

    From the same generator it draws the weights of the plain ViT and is the same function, until it is trained.

    Args:
        base: `timm:NAME`.
        kwargs: the keyword arguments of the plain ViT.
        positions: one kernel for every position (196 x 768 x 768 weights for ViT-B/16 at 224: 460 MB).
        nibbles: the kernels see the high and low 4 bits of 8-bit values as channels of their own.

    Raises:
        UserError: timm refuses the arguments, or the network has no patch embedding.
    """
    net = make_network(base, kwargs)
    embed = patch_embedding(net)
    if embed is None:
        raise UserError(f"{base!r} has no patch projection to replace: name one of timm's plain vision transformers")
    embed.proj = KeyedProjection(embed.proj, embed.grid_size, positions=positions, nibbles=nibbles)
    return net


def halves(images: Tensor) -> Tensor:
    """Split 8-bit values in [-1, 1] into their high and low 4 bits: twice the channels, high first, in [-1, 1].

    The low half keeps whatever a value has between two levels, and with it a gradient for those who look for one.
    """
    levels = (images + 1) * 127.5
    high = (levels.detach().round() / 16).floor()
    return torch.cat([high, levels - 16 * high], 1) / 7.5 - 1


def split_kernel(kernel: Tensor) -> Tensor:
    """Turn a kernel `[D, C, *patch]` for values in [-1, 1] into the one for their `halves`, `[D, 2 C, *patch]`.

    A value is linear in its halves, and 240 + 15 = 255, so that the bias stays as it is.
    """
    return torch.cat([HIGH * kernel, LOW * kernel], 1)

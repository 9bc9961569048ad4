"""The few facts about a timm vision transformer that matter when its images are protected block by block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppbench.data import Shape
from ppbench.model import Model, make_network

KERNEL = "net.patch_embed.proj.weight"
"""Name of the patch projection in the state of a built model, `[D, C, *patch]`."""
POSITIONS = "net.pos_embed"
"""Name of the position embedding, `[1, tokens, D]`."""


@dataclass(frozen=True)
class VitShape:
    """What a ViT takes in.

    Attributes:
        image: (C, H, W).
        patch: height and width of a patch in pixels.
        width: D, of a token.
    """

    image: Shape
    patch: tuple[int, int]
    width: int


def vit_shape(model: Model) -> VitShape | None:
    """Read the shape of a plain ViT of timm (`VisionTransformer`); None for any other network.

    Plain means that images are not padded and that nothing behind the position embedding knows where a token comes
    from: no relative positions, no windows, no convolutions.

    Raises:
        UserError: the factory refuses its arguments.
    """
    if not model.factory.startswith("timm:"):
        return None
    with torch.device("meta"):  # only the shapes are wanted
        embed = patch_embedding(make_network(model.factory, model.kwargs))
    if embed is None or getattr(embed, "dynamic_img_pad", False):  # padding moves the grid
        return None
    height, width = embed.img_size
    return VitShape((embed.proj.in_channels, height, width), embed.patch_size, embed.proj.out_channels)


def patch_embedding(net: nn.Module) -> Any:
    """Return the patch embedding of a plain ViT of timm (its `PatchEmbed`); None for any other network."""
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    embed = net.patch_embed if isinstance(net, VisionTransformer) else None
    return embed if isinstance(embed, PatchEmbed) else None


def patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images `[N, C, H, W]` into patches `[N, patches, C * patch]`, row by row, as a patch embedding counts them.

    Rows and columns beyond the last whole patch are left out.
    """
    n, c, h, w = images.shape
    rows, columns = h // patch[0], w // patch[1]
    grid = images[..., :rows * patch[0], :columns * patch[1]].reshape(n, c, rows, patch[0], columns, patch[1])
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)

"""Patch shuffle ("RS"): every image's patches in an order of their own.

Source: Hao et al., "Human-imperceptible, machine-recognizable images", IJCAI 2023 (arXiv 2306.03679).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join, permutations, permute_rows
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Keys, PerImageDefense, Pieces
from ppbench.model import Model, is_timm_vit


@dataclass(frozen=True)
class PatchShuffle(PerImageDefense):
    """Shuffle the patches of every image by a fresh uniform permutation that nobody keeps (Hao et al. 2023).

    Attributes:
        patch: side of a patch in pixels (the paper: 16 at 224).
    """

    key_scopes = ("image",)
    patch: int = 4

    def check(self, shape: Shape) -> None:
        """Refuse patches that do not tile the image."""
        check_divides("patch", self.patch, shape)

    def keys(self, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        """Draw one order of the patches a key: `order` `[count, patches]`."""
        _, h, w = shape
        return {"order": permutations(count, (h // self.patch) * (w // self.patch), rng)}

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Put patch `order[i]` at place i."""
        patches = permute_rows(cut(images, self.patch), key["order"])
        return join(patches, (images.shape[1], images.shape[2], images.shape[3]))

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Put every patch back."""
        return join(permute_rows(cut(images, self.patch), key["order"].argsort(1)), shape)

    def adapt(self, model: Model, keys: Keys | None) -> Model:
        """Drop the position embedding of a timm ViT: the order of the patches means nothing."""
        return model.with_kwargs(pos_embed="none") if is_timm_vit(model.factory) else model

    def pieces(self, shape: Shape) -> Pieces:
        """Whole patches move; their pixels stay."""
        return Pieces(self.patch, moved=True)

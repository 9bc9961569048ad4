"""Patch shuffle ("RS"): every image's patches in an order of their own.

Source: Hao et al., "Human-imperceptible, machine-recognizable images", IJCAI 2023 (arXiv 2306.03679).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join, permutations, permute_rows
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Keys, PerImageDefense, Pieces
from ppbench.errors import UserError
from ppbench.model import Model
from ppbench.vit.pevit import without_order
from ppbench.vit.shape import vit_shape


@dataclass(frozen=True)
class PatchShuffle(PerImageDefense):
    """Shuffle the patches of every image by a fresh uniform permutation that nobody keeps (Hao et al. 2023).

    The victim is PEViT: a ViT (any plain one of timm's) whose output does not depend on the order of the patches.

    Attributes:
        patch: side of a patch in pixels (the paper: 16 at 224).
        positions: leave the ViT its position embedding, against the paper.
        rpe: give the ViT the paper's reference-based encoding of every patch (ImageNet, DeiT-B: 78.7 % without, about
            79.9 % with it).
    """

    key_scopes = ("image",)
    victim_params: ClassVar[frozenset[str]] = frozenset({"positions", "rpe"})
    patch: int = 4
    positions: bool = False
    rpe: bool = True

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
        """Return a timm ViT as a PEViT, its weights taken over; any other network as it is.

        Raises:
            UserError: patches of the ViT would hold pieces of several shuffled ones.
        """
        vit = vit_shape(model)
        if vit is None:
            return model
        if not self.positions and any(self.patch % side for side in vit.patch):
            height, width = vit.patch
            raise UserError(f"patch-shuffle: the ViT's patches of {height} x {width} pixels mix shuffled patches of "
                            f"{self.patch} x {self.patch}, so that their order shows: set patch_size = {self.patch} in "
                            f"the kwargs of [victim]" + (f", or patch = {height}" if height == width else "")
                            + ", or positions = true")
        return without_order(model, positions=self.positions, rpe=self.rpe)

    def pieces(self, shape: Shape) -> Pieces:
        """Whole patches move; their pixels stay."""
        return Pieces(self.patch, moved=True)

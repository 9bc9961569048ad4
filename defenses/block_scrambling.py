"""Block scrambling with the ViT cipher: blocks permuted, and pixels permuted inside every block alike.

Source: Nagamori & Kiya 2023, "Combined use of federated learning and image encryption for privacy-preserving
image classification with vision transformer" (arXiv 2301.09255).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join, permutations, permute_rows
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import PerImageDefense, Pieces


@dataclass(frozen=True)
class BlockScrambling(PerImageDefense):
    """Permute the blocks, and the pixels and channels inside every block by one shared order (Nagamori & Kiya 2023).

    Attributes:
        block: side of a block in pixels; the paper takes the ViT's patch (16 at 224).
    """

    key_scopes = ("global", "client", "image")
    block: int = 4

    def check(self, shape: Shape) -> None:
        """Refuse blocks that do not tile the image."""
        check_divides("block", self.block, shape)

    def keys(self, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        """Draw `blocks` `[count, blocks]` (the paper's k1) and `pixels` `[count, C * block**2]` (k2)."""
        c, h, w = shape
        return {"blocks": permutations(count, (h // self.block) * (w // self.block), rng),
                "pixels": permutations(count, c * self.block**2, rng)}

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Put block `blocks[i]` at place i, and entry `pixels[j]` of every block (C, h, w order) at place j."""
        blocks = permute_rows(cut(images, self.block), key["blocks"])
        return self._shuffle_entries(blocks, key["pixels"], (images.shape[1], images.shape[2], images.shape[3]))

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Undo both permutations."""
        blocks = permute_rows(cut(images, self.block), key["blocks"].argsort(1))
        return self._shuffle_entries(blocks, key["pixels"].argsort(1), shape)

    def pieces(self, shape: Shape) -> Pieces:
        """Blocks move, and their pixels are shuffled by one order for all."""
        return Pieces(self.block, moved=True, pixels="shared")

    @staticmethod
    def _shuffle_entries(blocks: Tensor, order: Tensor, shape: Shape) -> Tensor:
        entries = blocks.flatten(2)
        shuffled = entries.gather(2, order[:, None, :].expand_as(entries))
        return join(shuffled.reshape(blocks.shape), shape)

"""Mix-up of sub-patches ("MI"): every patch averaged over its quarters.

Source: Hao et al., "Human-imperceptible, machine-recognizable images", IJCAI 2023 (arXiv 2306.03679).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Keys, PerImageDefense, resize
from ppbench.errors import UserError
from ppbench.model import Model, vit_patch


@dataclass(frozen=True)
class Mixup(PerImageDefense):
    """Cut every patch into 2 x 2 sub-patches and release their average: half the side, order kept (Hao et al. 2023).

    Attributes:
        patch: side of a patch in pixels, even (the paper: 16 at 224).
    """

    patch: int = 4

    def check(self, shape: Shape) -> None:
        """Refuse patches that do not tile the image or cannot be halved."""
        check_divides("patch", self.patch, shape)
        if self.patch % 2:
            raise UserError(f"patch={self.patch} cannot be cut into 2 x 2 sub-patches: choose an even side")

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Average the four sub-patches of every patch: `[N, C, H, W]` -> `[N, C, H/2, W/2]`."""
        n, c, h, w = images.shape
        patches = cut(images, self.patch)
        quarters = cut(patches.flatten(0, 1), self.patch // 2)
        mixed = quarters.mean(1).reshape(n, -1, c, self.patch // 2, self.patch // 2)
        return join(mixed, (c, h // 2, w // 2))

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Return the best there is without a prior: the mixture, enlarged (there is no key)."""
        return resize(images, shape)

    def adapt(self, model: Model, keys: Keys | None) -> Model:
        """Halve the image and patch side of a timm ViT, so that it sees one mixture a token."""
        patch = vit_patch(model)
        if patch is None:
            return model
        size = model.kwargs["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return model.with_kwargs(img_size=[height // 2, width // 2], patch_size=max(1, patch // 2))

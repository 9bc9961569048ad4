"""Mix-up: of sub-patches ("MI"), every patch averaged over its quarters, or of several whole images.

Sources: Hao et al., "Human-imperceptible, machine-recognizable images", IJCAI 2023 (arXiv 2306.03679); Zhang, Cisse,
Dauphin & Lopez-Paz, "mixup: Beyond empirical risk minimization", ICLR 2018 (arXiv 1710.09412).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join
from ppbench.bounds import above_zero, at_least
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import Keys, PerImageDefense, Release, resize
from ppbench.defenses._mixing import Mixture, dirichlet_shares, members
from ppbench.errors import UserError
from ppbench.model import Model
from ppbench.vit.mixed import for_mixtures
from ppbench.vit.pevit import without_order
from ppbench.vit.shape import vit_shape


@dataclass(frozen=True)
class Mixup(PerImageDefense):
    """Average the 2 x 2 sub-patches of every patch (Hao et al. 2023), or mix k whole images (Zhang et al. 2018).

    Sub-patches (`images` = 1): half the side, the order of the patches kept. The victim is a ViT (any plain one of
    timm's) with one token a mixture; in the paper its position embedding stays, and the reference-based encoding
    goes with shuffled patches.

    Whole images (`images` >= 2): release i is a weighted sum of private image i and others of the set, drawn anew for
    each; `soft_labels` are the shares by class. Image i has the largest share (in the paper any share), so that the two
    are partners and every private image leads once. Mixing acts in training: test images are sent plain. There is no
    key; who was mixed with whom is forgotten. A set of fewer images than `images` is mixed as a whole.

    Attributes:
        patch: side of a patch in pixels, even (the paper: 16 at 224); only for sub-patches.
        images: how many whole images make up a release (the paper: 2); 1 = sub-patches.
        alpha: of the Dirichlet distribution of the shares (two images: the paper's Beta(alpha, alpha); there 1 on
            CIFAR-10): small = one image dominates, large = equal shares; only for whole images.
        positions: leave the ViT its position embedding; only for sub-patches.
        rpe: give the ViT the reference-based encoding of `patch-shuffle`; only for sub-patches.
    """

    victim_params: ClassVar[frozenset[str]] = frozenset({"positions", "rpe"})
    patch: int = 4
    images: int = 1
    alpha: float = 1.0
    positions: bool = True
    rpe: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "images")
        above_zero(self, "alpha")

    @property
    def _whole(self) -> bool:
        return self.images > 1

    @property
    def mixes(self) -> bool:
        """Whole images are mixed with one another."""
        return self._whole

    def check(self, shape: Shape) -> None:
        """Refuse patches that do not tile the image or cannot be halved."""
        if self._whole:
            return
        check_divides("patch", self.patch, shape)
        if self.patch % 2:
            raise UserError(f"patch={self.patch} cannot be cut into 2 x 2 sub-patches: choose an even side")

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Mix the sub-patches of every image, or every image with others."""
        if not self._whole:
            return super().protect(private, keys, rng)
        count, size = len(private), min(self.images, len(private))
        mixture = Mixture(members(count, size, rng), dirichlet_shares(count, size, self.alpha, rng))
        return Release(mixture.mix(private.pixels), private.labels, torch.arange(count),
                       soft_labels=mixture.soft_labels(private.labels))

    def query(self, images: Tensor, keys: Keys | None, rng: torch.Generator) -> Tensor:
        """Mix the sub-patches of test images; whole images are sent plain."""
        return images if self._whole else super().query(images, keys, rng)

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
        """Return a timm ViT that sees one mixture a token, its weights taken over; any other network as it is.

        Raises:
            UserError: a patch of the ViT would see a part of a mixture.
        """
        vit = None if self._whole else vit_shape(model)
        if vit is None:
            return model
        if any(side % self.patch for side in vit.patch):
            height, width = vit.patch
            other = "" if height % 2 else f", or patch = {height}"  # only an even patch can be mixed
            raise UserError(f"mixup: the ViT's patches of {height} x {width} pixels do not hold whole mixed patches of "
                            f"{self.patch} x {self.patch}: set patch_size = {self.patch} in the kwargs of [victim]"
                            f"{other}")
        return without_order(for_mixtures(model, vit, self.patch), positions=self.positions, rpe=self.rpe)

"""InstaHide: images mixed with others, then a random sign for every value.

Source: Huang, Song, Li & Arora 2020, "InstaHide: Instance-hiding schemes for private distributed learning" (ICML,
arXiv 2010.02772); broken by Carlini et al. 2021, "Is private learning possible with instance encoding?".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppbench.bounds import at_least
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import Defense, Keys, Release, resize
from ppbench.defenses._mixing import Mixture, capped_shares, members
from ppbench.defenses._negative import negate


@dataclass(frozen=True)
class InstaHide(Defense):
    """Mix every image with others of the set, then flip the signs of its values at random (Huang et al. 2020).

    Inside-dataset variant: private images are mixed with private ones only; the paper also has a variant with public
    images. Signs are those of values in [-1, 1]: v becomes 1 - v in [0, 1]. The signs are the one-time key; who was
    mixed with whom is drawn and forgotten, so that the key holder's inverse is the mixture. Image i has the largest
    share of release i (in the paper any share), so that the two are partners. A set of fewer images than `images` is
    mixed as a whole.

    Attributes:
        images: how many make up a mixture, the image itself included (the paper's k; 1 = signs alone).
        cap: the largest share of one image (the paper's c1), from 1 / `images` to 1.
        queries: a client sends test images `encrypted` alike (mixed with the other test images of the batch, signs of
            their own), or `plain`, as the authors' code tests: the victim is then classified better, and the queries
            are in the open.
    """

    key_scopes = ("image",)
    images: int = 4
    cap: float = 0.65
    queries: Literal["encrypted", "plain"] = "encrypted"

    def __post_init__(self) -> None:
        at_least(self, 1, "images")
        if self.images > 1 and not 1 / self.images <= self.cap <= 1:
            raise ValueError(f"cap is {self.cap}; it must lie between 1 / images = {1 / self.images:.4g} and 1")
        if self.queries not in ("encrypted", "plain"):
            raise ValueError(f"queries is {self.queries!r}; it must be one of encrypted, plain")

    def keys(self, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        """Draw `signs` `[count, C, H, W]` (bool; True = flipped), a fair coin for every value."""
        return {"signs": torch.randint(2, (count, *shape), generator=rng).bool()}

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Mix and mask the private images; `soft_labels` are the shares by class, `labels` the images' own."""
        mixture = self._mixture(len(private), rng)
        images = _masked(mixture.mix(private.pixels), keys)
        return Release(images, private.labels, torch.arange(len(private)),
                       soft_labels=mixture.soft_labels(private.labels))

    @property
    def mixes(self) -> bool:
        """Every release is made of several private images."""
        return True

    def query(self, images: Tensor, keys: Keys | None, rng: torch.Generator) -> Tensor:
        """Encrypt test images alike, or leave them plain."""
        if self.queries == "plain":
            return images
        return _masked(self._mixture(len(images), rng).mix(images), keys)

    def invert(self, release: Release, keys: Keys | None, shape: Shape) -> Tensor:
        """Take the signs off: what is left is the mixture."""
        return resize(_masked(release.images, keys), shape)

    def _mixture(self, count: int, rng: torch.Generator) -> Mixture:
        size = min(self.images, count)
        return Mixture(members(count, size, rng), capped_shares(count, size, self.cap, rng))


def _masked(images: Tensor, keys: Keys | None) -> Tensor:
    """Flip the values that the keys name; doing it twice undoes it."""
    return images if keys is None else negate(images, keys.per_image()["signs"])

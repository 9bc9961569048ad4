"""The defense contract: keys, release, and the class a defense derives from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.model import Model, Update

KeyScope = Literal["image", "global"]


@dataclass(frozen=True)
class Keys:
    """The secrets of a keyed defense.

    Attributes:
        values: what `Defense.keys` drew; the leading axis counts the keys.
        owner: `[N]` int64: which key protects which image.
    """

    values: Tensors
    owner: Tensor

    def per_image(self) -> Tensors:
        """Return every value with the images as the leading axis."""
        return {name: value[self.owner] for name, value in self.values.items()}

    def __getitem__(self, rows: Tensor | slice) -> "Keys":
        return Keys(self.values, self.owner[rows])


@dataclass(frozen=True)
class Release:
    """What a defense lets out.

    Attributes:
        images: `[M, c, h, w]` in [0, 1]; the shape may differ from the private images' (mix-up halves it).
        labels: `[M]` int64.
        source: `[M]` int64, the private image behind each released one; None = there is no such partner.
        extras: whatever else is published with the images, say a teacher's logits.
    """

    images: Tensor
    labels: Tensor
    source: Tensor | None
    extras: Tensors = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> Shape:
        """Return (c, h, w) of the released images."""
        _, c, h, w = self.images.shape
        return c, h, w


@dataclass(frozen=True)
class Pieces:
    """What a cipher does to square blocks: public facts that an attack may use (Kerckhoffs).

    Attributes:
        size: side of a block in pixels.
        moved: the blocks of an image change places.
        pixels: how the pixels inside a block are shuffled: not at all, all blocks alike, or each its own way.
    """

    size: int
    moved: bool
    pixels: Literal["kept", "shared", "own"] = "kept"


class Defense(ABC):
    """Protects images before they leave the client. Subclasses are frozen dataclasses of parameters.

    Attributes:
        key_scopes: how far one key may be reused, the default first; empty = the defense has no key.
    """

    key_scopes: ClassVar[tuple[KeyScope, ...]] = ()

    def check(self, shape: Shape) -> None:
        """Refuse images of a shape (C, H, W) that the parameters cannot serve.

        Raises:
            UserError: say which parameter to change.
        """
        return

    def keys(self, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        """Draw `count` independent keys for images of `shape`; the leading axis counts the keys."""
        return {}

    @abstractmethod
    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Return what may leave the client in place of the private images."""

    def query(self, images: Tensor, keys: Keys | None, rng: torch.Generator) -> Tensor:
        """Return test images `[N, C, H, W]` as a client would send them to be classified."""
        return images

    def invert(self, release: Release, keys: Keys | None, shape: Shape) -> Tensor:
        """Return the key holder's best estimate `[M, C, H, W]` of what is behind each released image.

        The default fits the released images to the private shape, which is all a defense without inverse allows.
        """
        return resize(release.images, shape)

    def adapt(self, model: Model, keys: Keys | None) -> Model:
        """Return the victim's architecture for protected images."""
        return model

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Return the update that the client sends in place of its own (gradient-side defenses)."""
        return update

    def pieces(self, shape: Shape) -> Pieces | None:
        """Say what happens to square blocks of an image of `shape`; None = the defense has no blocks."""
        return None


class PerImageDefense(Defense):
    """A defense that maps every image on its own: one method to write, two if there is an inverse."""

    @abstractmethod
    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Protect images `[N, C, H, W]`; every tensor in `key` has one row an image."""

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Undo `encrypt` as far as the key allows; the default only restores the shape."""
        return resize(images, shape)

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        """Encrypt every private image; released image i comes from private image i."""
        images = self.encrypt(private.pixels, keys.per_image() if keys else {}, rng)
        return Release(images, private.labels, torch.arange(len(private)))

    def query(self, images: Tensor, keys: Keys | None, rng: torch.Generator) -> Tensor:
        """Encrypt test images exactly like training images."""
        return self.encrypt(images, keys.per_image() if keys else {}, rng)

    def invert(self, release: Release, keys: Keys | None, shape: Shape) -> Tensor:
        """Decrypt every released image with its key."""
        return self.decrypt(release.images, keys.per_image() if keys else {}, shape)


def draw_keys(defense: Defense, scope: KeyScope | None, count: int, shape: Shape,
              rng: torch.Generator) -> Keys | None:
    """Draw the keys for `count` images: one each (`image`) or one for all (`global`); None = no key."""
    if scope is None:
        return None
    owner = torch.arange(count) if scope == "image" else torch.zeros(count, dtype=torch.int64)
    return Keys(defense.keys(count if scope == "image" else 1, shape, rng), owner)


def keys_for_more(defense: Defense, keys: Keys | None, scope: KeyScope | None, count: int, shape: Shape,
                  rng: torch.Generator) -> Keys | None:
    """Return the keys under which the same clients protect `count` further images.

    A global key serves again; keys of one image each are drawn anew.
    """
    if keys is None or scope == "image":
        return draw_keys(defense, scope, count, shape, rng)
    return Keys(keys.values, torch.zeros(count, dtype=torch.int64))


def resize(images: Tensor, shape: Shape) -> Tensor:
    """Fit images `[N, c, h, w]` to `shape` (C, H, W): bilinear in space, channels averaged or repeated."""
    channels, height, width = shape
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = torch.nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.clamp(0, 1)

"""The defense contract: keys, release, and the class a defense derives from."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.model import Model, Update

KeyScope = Literal["image", "client", "global"]


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
        soft_labels: `[M, classes]` shares that sum to 1, where a released image stands for several classes; the
            victim learns these. A class that no private image has may be missing at the end.
        temperature: at which the shares were taken (a teacher's logits are divided by it; Hinton et al. 2015).
        clients: `[M]` int64: who sent each image, where clients have keys of their own (the frame fills it in).
    """

    images: Tensor
    labels: Tensor
    source: Tensor | None
    extras: Tensors = field(default_factory=dict)
    soft_labels: Tensor | None = None
    temperature: float = 1.0
    clients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> Shape:
        """Return (c, h, w) of the released images."""
        _, c, h, w = self.images.shape
        return c, h, w


def on_cpu(release: Release) -> Release:
    """Return a release whose tensors live in main memory."""
    parts: dict[str, Any] = {name: value.cpu() for name, value in vars(release).items() if isinstance(value, Tensor)}
    return replace(release, **parts, extras={name: value.cpu() for name, value in release.extras.items()})


@dataclass(frozen=True)
class Pieces:
    """What a cipher does to square blocks: public facts that an attack may use (Kerckhoffs).

    Attributes:
        size: side of a block in pixels.
        moved: the blocks of an image change places.
        pixels: how the values inside a block are shuffled: not at all, all blocks alike, or each its own way.
        turned: every block is turned and mirrored its own way (8 states).
        negated: every block (or, where the pixels are not kept, every value) may be turned to its negative, 1 - v.
        recoloured: every block's colour channels are permuted its own way (6 states).
        nibbles: all this happens to the high and low 4 bits of the 8-bit values, not to the values.
    """

    size: int
    moved: bool
    pixels: Literal["kept", "shared", "own"] = "kept"
    turned: bool = False
    negated: bool = False
    recoloured: bool = False
    nibbles: bool = False


class Guarantee(NamedTuple):
    """(epsilon, delta) differential privacy."""

    epsilon: float
    delta: float


class Defense(ABC):
    """Protects images before they leave the client. Subclasses are frozen dataclasses of parameters.

    Attributes:
        key_scopes: how far one key may be reused, the default first; empty = the defense has no key.
        partnered: released image i is made from private image i (with others, maybe), and making it costs little, so
            that an adversary may run the defense again and again; False: the release is made from the whole set.
        victim_params: names of parameters that only `adapt` reads: defenses that differ in these alone share keys and
            release.
        files: names of parameters that are paths of files, relative to the suite; the plug-in is given absolute ones.
            They are public, like all parameters: an adversary runs the defense with them.
        networks: names of parameters that name networks (`package.module:function`), whose sources results rest on.
    """

    key_scopes: ClassVar[tuple[KeyScope, ...]] = ()
    partnered: ClassVar[bool] = True
    victim_params: ClassVar[frozenset[str]] = frozenset()
    files: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[tuple[str, ...]] = ()

    @property
    def mixes(self) -> bool:
        """Say whether one released image is made of several private ones, so that clients cannot protect alone."""
        return False

    def count(self, private: int) -> int:
        """Return how many images are released for so many private ones."""
        return private

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
        """Return the victim's network for protected images.

        Args:
            model: the plain network with its starting weights, the same for every defense.
            keys: the clients' (K clients with keys of their own: K of them).

        Returns:
            The network to start from; without weights (`state` None), fresh ones are drawn.

        Raises:
            UserError: the network does not fit the protection, say patches of another size than the blocks.
        """
        return model

    @classmethod
    def shields(cls) -> bool:
        """Say whether the updates of clients are protected."""
        return cls.protect_update is not Defense.protect_update

    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Return the update that the client sends in place of its own (gradient-side defenses)."""
        return update

    def epsilon(self, updates: int, delta: float = 1e-5) -> float | None:
        """Return the epsilon of (epsilon, delta) differential privacy for one image in so many protected updates.

        None = the defense guarantees none.
        """
        return None

    def guarantee(self, private: int) -> Guarantee | None:
        """Return the differential privacy of one image in a release made of so many; None = there is none."""
        return None

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


class UpdateDefense(PerImageDefense):
    """A defense of what federated clients send: images stay as they are; one method to write, `protect_update`.

    A victim learns from protected updates: in a federation those of every client in every round, in central training
    the gradient of every step.
    """

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Return the images unchanged."""
        return images

    @abstractmethod
    def protect_update(self, update: Update, rng: torch.Generator) -> Update:
        """Return the update that the client sends in place of its own."""

    def imitate(self, made: Tensors, sent: Tensors) -> Tensors:
        """Imitate `protect_update` by something differentiable, for an adversary who knows the defense.

        A defense that loses much of an update without hiding what is lost (all but the signs, all but the largest
        values) is matched by what it leaves of a candidate's gradient; matched by the whole of it, it would look
        safer than it is.

        Args:
            made: parameter name -> `[N, *parameter shape]`, gradients of candidates.
            sent: likewise, what clients sent, up to a factor; `[1, ...]` = the same for all candidates.

        Returns:
            As `made`; by default `made` itself.
        """
        return made


def draw_keys(defense: Defense, scope: KeyScope | None, count: int, shape: Shape,
              rng: torch.Generator, clients: int = 1, owner: Tensor | None = None) -> Keys | None:
    """Draw the keys for `count` images; None = no key.

    Args:
        defense: draws a key.
        scope: one key each (`image`), one a client (`client`) or one for all (`global`).
        count: number of images.
        shape: (C, H, W) of them.
        rng: draws the keys, and who holds which image.
        clients: how many there are (scope `client`).
        owner: `[count]` who holds which image (scope `client`); None = each as many as the others, or one more.
    """
    if scope is None:
        return None
    if scope == "image":
        return Keys(defense.keys(count, shape, rng), torch.arange(count))
    if scope == "global":
        return Keys(defense.keys(1, shape, rng), torch.zeros(count, dtype=torch.int64))
    return Keys(defense.keys(clients, shape, rng), _dealt(count, clients, rng) if owner is None else owner)


def keys_for_more(defense: Defense, keys: Keys | None, scope: KeyScope | None, count: int, shape: Shape,
                  rng: torch.Generator, clients: int = 1) -> Keys | None:
    """Return the keys under which the same clients protect `count` further images.

    Keys of one image each are drawn anew; clients take equal shares, at random.
    """
    if keys is None or scope == "image":
        return draw_keys(defense, scope, count, shape, rng, clients)
    return Keys(keys.values, _dealt(count, clients, rng))


def _dealt(count: int, clients: int, rng: torch.Generator) -> Tensor:
    """Deal images to clients at random: in its own order a split lists one image of every class in turn."""
    return torch.randperm(count, generator=rng) % clients


def resize(images: Tensor, shape: Shape) -> Tensor:
    """Fit images `[N, c, h, w]` to `shape` (C, H, W): bilinear in space, channels averaged or repeated."""
    channels, height, width = shape
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = torch.nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.clamp(0, 1)

"""The view: exactly what a threat model grants, and the only thing an attack gets."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ppbench.codec import to_bytes8
from ppbench.data import Images, Shape
from ppbench.defense import Defense, Keys, KeyScope, Release, draw_keys
from ppbench.errors import NotGranted
from ppbench.model import Model, Update
from ppbench.plugins import build
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import spawn

Capability = Literal["images", "labels", "public", "algorithm", "pairs", "model", "gradients", "oracle",
                     "candidates", "training", "server", "key"]
T = TypeVar("T")


@dataclass(frozen=True)
class Algorithm:
    """The defense as everyone knows it (Kerckhoffs): its class and parameters, and how it is deployed.

    Attributes:
        ref: names the defense.
        key_scope: how far one key is reused; None = no key.
        quantise: bits of a released pixel; 0 = float.
        clients: how many clients have a key of their own (key scope `client`; otherwise 1).
    """

    ref: Ref
    key_scope: KeyScope | None
    quantise: int
    clients: int = 1

    @cached_property
    def defense(self) -> Defense:
        """The defense itself, to run with keys of one's own."""
        defense: Defense = build(self.ref)
        return defense

    def protect(self, images: Images, rng: torch.Generator) -> Release:
        """Run the defense on one's own images with one's own keys, as the client would."""
        keys = draw_keys(self.defense, self.key_scope, len(images), images.shape, spawn(rng), self.clients)
        return quantised(self.defense.protect(images, keys, spawn(rng)), self.quantise)


@dataclass(frozen=True)
class Pairs:
    """Plain images `[k, C, H, W]` and the same ones protected with the victim's key.

    There are none (k = 0) where the release has no partners.

    Attributes:
        clients: `[k]` int64: whose key protects each, where clients have keys of their own.
    """

    plain: Tensor
    protected: Tensor
    clients: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """Private images of which some were used and the others kept from the defense, mixed.

    Attributes:
        images: `[N]` plain, with the labels that they would be learnt with.
        sent: `[N, c, h, w]`: each as a client sends it to the victim to be classified.
        public: `[P, c, h, w]`: the public images, sent alike.
    """

    images: Images
    sent: Tensor
    public: Tensor


@dataclass(frozen=True)
class Sealed:
    """What a view holds, as plain data; a part that was not granted is None."""

    granted: frozenset[str]
    image_shape: tuple[int, int, int]
    released_shape: tuple[int, int, int]
    n_targets: int
    classes: int
    labels: Tensor | None = None
    release: Release | None = None
    target_rows: Tensor | None = None
    public: Images | None = None
    algorithm: Algorithm | None = None
    pairs: Pairs | None = None
    answers: Tensor | None = None
    model: Model | None = None
    start: Model | None = None
    update: Update | None = None
    keys: Keys | None = None
    n_queries: int = 0
    candidates: Candidates | None = None
    recipe: Recipe | None = None


PARTS: dict[str, tuple[str, ...]] = {
    "images": ("release", "target_rows"),
    "labels": ("labels",),
    "public": ("public",),
    "algorithm": ("algorithm",),
    "pairs": ("pairs",),
    "model": ("model", "start"),
    "gradients": ("update",),
    "oracle": ("answers",),
    "candidates": ("candidates", "recipe"),
    "training": (),
    "server": (),
    "key": ("keys",),
}


class View:
    """What the adversary sees. Reading a part that the threat model does not grant raises NotGranted.

    Attributes:
        granted: the capabilities.
        image_shape: (C, H, W) of the private images.
        released_shape: (c, h, w) of the released ones.
        n_targets: how many private images are to be reconstructed.
        n_queries: how many images the oracle protects, where there is one.
        classes: number of classes.
    """

    def __init__(self, sealed: Sealed) -> None:
        self.sealed = sealed
        self.granted = sealed.granted
        self.image_shape: Shape = sealed.image_shape
        self.released_shape: Shape = sealed.released_shape
        self.n_targets = sealed.n_targets
        self.n_queries = sealed.n_queries
        self.classes = sealed.classes

    def _get(self, capability: Capability, value: T | None) -> T:
        if value is None or capability not in self.granted:
            raise NotGranted(f"the threat model does not grant {capability!r}: name it in `requires`")
        return value

    @property
    def release(self) -> Release:
        """All that was released (capability `images`)."""
        return self._get("images", self.sealed.release)

    @property
    def target_rows(self) -> Tensor:
        """`[n_targets]` rows of the release that stand for the targets (capability `images`)."""
        return self._get("images", self.sealed.target_rows)

    @property
    def images(self) -> Tensor:
        """`[n_targets, c, h, w]`: the released images of the targets (capability `images`)."""
        return self.release.images[self.target_rows]

    @property
    def has_partner(self) -> bool:
        """Whether `images[i]` comes from target i (capability `images`)."""
        return self.release.source is not None

    @property
    def labels(self) -> Tensor:
        """`[n_targets]` int64: the targets' labels (capability `labels`)."""
        return self._get("labels", self.sealed.labels)

    @property
    def public(self) -> Images:
        """The adversary's own plain images (capability `public`)."""
        return self._get("public", self.sealed.public)

    @property
    def algorithm(self) -> Algorithm:
        """The defense, to be run with keys of one's own (capability `algorithm`)."""
        return self._get("algorithm", self.sealed.algorithm)

    @property
    def start(self) -> Model | None:
        """The plain victim with the published weights that its training starts from (capability `model`).

        A classifier of other classes than the published one is the victim's own. None = it starts from weights that
        nobody published.
        """
        if "model" not in self.granted:
            raise NotGranted("the threat model does not grant 'model': name it in `requires`")
        return self.sealed.start

    @property
    def pairs(self) -> Pairs:
        """Known pairs under the victim's key (capability `pairs`)."""
        return self._get("pairs", self.sealed.pairs)

    @property
    def answers(self) -> Tensor:
        """What the oracle gave for `Attack.queries`, in their order (capability `oracle`).

        Where every client has a key of its own, query i was put to client i modulo their number.
        """
        return self._get("oracle", self.sealed.answers)

    @property
    def model(self) -> Model:
        """The victim's weights (with gradients: those at which they were taken) (capability `model`)."""
        return self._get("model", self.sealed.model)

    @property
    def update(self) -> Update:
        """The clients' updates (capability `gradients`)."""
        return self._get("gradients", self.sealed.update)

    @property
    def candidates(self) -> Candidates:
        """Members and others, mixed (capability `candidates`)."""
        return self._get("candidates", self.sealed.candidates)

    @property
    def recipe(self) -> Recipe:
        """How the victim is built and trained (capability `candidates`)."""
        return self._get("candidates", self.sealed.recipe)

    @property
    def keys(self) -> Keys | None:
        """The keys of the released images; None = the defense has none (capability `key`)."""
        if "key" not in self.granted:
            raise NotGranted("the threat model does not grant 'key': name it in `requires`")
        return self.sealed.keys

    def only(self, capabilities: frozenset[str]) -> "View":
        """Return the view with all but these capabilities taken away."""
        kept = self.granted & capabilities
        gone: dict[str, Any] = {part: None for name, parts in PARTS.items() if name not in kept for part in parts}
        if not kept & {"images", "algorithm"}:  # nothing that remains depends on the defense
            gone["released_shape"] = self.image_shape
        return View(without_labels(replace(self.sealed, granted=kept, **gone)))

    def with_images(self, images: Tensor, labels: Tensor) -> "View":
        """Return the view with estimates of the targets' released images in place of the release."""
        rows = torch.arange(len(images))
        before, keys = self.sealed.release, self.sealed.keys
        senders = None if before is None or before.clients is None or self.sealed.target_rows is None else \
            before.clients[self.sealed.target_rows]
        release = Release(images, labels, rows, clients=senders)
        if keys is not None and self.sealed.target_rows is not None:
            keys = keys[self.sealed.target_rows]
        return View(replace(self.sealed, granted=self.granted | {"images"}, release=release, target_rows=rows,
                            keys=keys))


def without_labels(sealed: Sealed) -> Sealed:
    """Take the labels out of the release as well (-1 = unknown), where they are not granted."""
    release = sealed.release
    if "labels" in sealed.granted or release is None:
        return sealed
    extras = {name: value for name, value in release.extras.items() if name != "logits"}
    return replace(sealed, release=replace(release, labels=torch.full_like(release.labels, -1), soft_labels=None,
                                           extras=extras))


def quantised(release: Release, bits: int) -> Release:
    """Round a release to what a client could send in an image file of `bits` (8; 0 = float, unchanged)."""
    return replace(release, images=to_bytes8(release.images)) if bits == 8 else release

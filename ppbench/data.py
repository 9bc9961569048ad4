"""Image sets: what a data set plug-in provides, and how it is split into private, public and test."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppbench.errors import ContractError, UserError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: `[N, C, H, W]` float32 in [0, 1]; C is 1 (grey) or 3 (RGB).
        labels: `[N]` int64 class numbers.
        ids: `[N]` int64, which image of the data set each one is.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor | slice) -> "Images":
        return Images(self.pixels[rows], self.labels[rows], self.ids[rows])

    def to(self, device: torch.device) -> "Images":
        """Return the images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.ids.to(device))

    @property
    def shape(self) -> Shape:
        """Return (C, H, W)."""
        _, c, h, w = self.pixels.shape
        return c, h, w


class Pool(NamedTuple):
    """Images of one origin, before they are split: uint8 `[N, H, W, C]`, and int64 labels `[N]`."""

    pixels: np.ndarray
    labels: np.ndarray


class Dataset(ABC):
    """A source of images. Subclasses are frozen dataclasses: their fields are their parameters.

    Attributes:
        default_size: the side in pixels when the suite names none; None = the files' own size.
    """

    default_size: ClassVar[int | None] = 32

    @abstractmethod
    def pools(self, size: int | None) -> Mapping[str, Pool]:
        """Return the images, `size` pixels square (None: as they are).

        The keys say what may become what: `private`, `public` and `test` where the source itself keeps them
        apart; `train` and `test` where private and public both come from the training images; `all` where
        all three come from one pool. Every pool holds images of one shape, labelled 0 to K - 1.

        Raises:
            UserError: files are missing, unreadable or of unequal sizes.
        """


@dataclass(frozen=True)
class Split:
    """The three disjoint parts of a data set; the targets are the first rows of `private`.

    Where private images are halved, `held` are those that were kept from the defense: drawn like the others, so that
    nothing but what the defense and the victim did tells both apart.
    """

    private: Images
    public: Images
    test: Images
    classes: int
    held: Images | None = None


@dataclass(frozen=True)
class Halving:
    """How private images are halved, for whoever asks which of them were used.

    Attributes:
        canaries: so many images get a label of another class before they are halved: what is learnt of such an image
            is learnt by heart, and shows the worst case, which an average hides (Aerni et al. 2024, arXiv 2404.17399).
        copies: how often each canary that is used stands among the private images.
    """

    canaries: int = 0
    copies: int = 1

    def kept(self, private: int) -> int:
        """Count the private images that the defense gets."""
        return (private + 1) // 2 + (self.copies - 1) * (self.canaries // 2)


@dataclass(frozen=True)
class SplitSizes:
    """How many images each part gets, and whether the adversary knows anyone in the private ones.

    Attributes:
        private: to be protected.
        public: the adversary's own.
        test: that measure task accuracy.
        disjoint: public images are of other classes (of faces: of other people) than private and test images.
    """

    private: int
    public: int
    test: int
    disjoint: bool = False

    def described(self) -> dict[str, Any]:
        """Return the sizes as JSON values; `disjoint` only where it holds."""
        return {name: value for name, value in asdict(self).items() if name != "disjoint" or value}


def split(pools: Mapping[str, Pool], sizes: SplitSizes, seed: int) -> Split:
    """Draw disjoint private, public and test images, each as balanced over classes as the pool allows.

    Exact duplicates are dropped first, so that no private image also stands in public or test. Parts that come
    from one pool share a class that is too small for all of them in proportion to their sizes. As long as no class
    runs short, the first private images (the targets) are the same whatever the sizes.

    Where public is to be `disjoint`, classes are drawn for it until they hold enough images, and all others are left
    to private and test; then the targets depend on how many public images there are.

    Raises:
        UserError: a pool is too small for what is asked of it.
        ContractError: the pools are not what `Dataset.pools` promises.
    """
    check_pools(pools)
    wanted = {"private": sizes.private, "public": sizes.public, "test": sizes.test}
    origin = {part: _origin(part, pools) for part in wanted}
    rng = np.random.default_rng(seed)
    seen: set[bytes] = set()
    distinct = {name: _distinct(pools[name].pixels, seen) for name in dict.fromkeys(origin.values())}
    known = None
    if sizes.disjoint:
        known = _known_classes(pools[origin["public"]].labels[distinct[origin["public"]]], sizes.public, rng)
    drawn: dict[str, Images] = {}
    offset = 0
    for name, rows_of_pool in distinct.items():
        pool = pools[name]
        parts = [part for part in wanted if origin[part] == name]
        shuffled = rng.permutation(rows_of_pool)
        for group in _groups(parts, sizes.disjoint):
            rows = shuffled if known is None else shuffled[np.isin(pool.labels[shuffled], known) == ("public" in group)]
            counts = [wanted[part] for part in group]
            _check_enough(len(rows), group, counts, apart=known is not None and "public" not in group)
            for part, mine in zip(group, _deal(pool.labels, rows, counts), strict=True):
                drawn[part] = _as_images(pool, mine, offset)
        offset += len(pool.labels)
    classes = 1 + max(int(pool.labels.max(initial=0)) for pool in pools.values())
    return Split(**drawn, classes=classes)


def _known_classes(labels: np.ndarray, public: int, rng: np.random.Generator) -> np.ndarray:
    """Draw classes for public alone, in a random order, until their images suffice."""
    classes, counts = np.unique(labels, return_counts=True)
    order = rng.permutation(len(classes))
    enough = int(np.searchsorted(counts[order].cumsum(), public)) + 1
    return classes[order[:enough]]


def _groups(parts: list[str], disjoint: bool) -> list[list[str]]:
    """Return which parts share the images of a pool."""
    if not disjoint:
        return [parts]
    groups = [[part for part in parts if part == "public"], [part for part in parts if part != "public"]]
    return [group for group in groups if group]


def _check_enough(count: int, parts: list[str], counts: list[int], apart: bool) -> None:
    """Refuse to draw more images than there are; `apart`: only those of classes that public does not have."""
    if sum(counts) > count:
        others = " in classes that public leaves" if apart else ""
        raise UserError(f"the data set has {count} distinct images for {' + '.join(parts)}{others}, "
                        f"but {sum(counts)} are asked for: lower {' or '.join([*parts, 'public'] if apart else parts)}")


def check_pools(pools: Mapping[str, Pool]) -> None:
    """Hold a data set's pools to what `Dataset.pools` promises.

    Raises:
        ContractError: keys, types, shapes or labels are not as promised.
    """
    for part in ("private", "public", "test"):
        _origin(part, pools)
    for name, (pixels, labels) in pools.items():
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            raise ContractError(f"the pool {name!r} must hold uint8 images [N, H, W, 1 or 3], "
                                f"not {pixels.dtype} {list(pixels.shape)}")
        if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            raise ContractError(f"the pool {name!r} must hold one integer label from 0 upwards for each of its "
                                f"{len(pixels)} images, not {labels.dtype} {list(labels.shape)}")
    if len({pool.pixels.shape[1:] for pool in pools.values()}) > 1:
        raise ContractError("the pools of a data set must hold images of one shape")


def _origin(part: str, pools: Mapping[str, Pool]) -> str:
    """Name the pool that a part is drawn from."""
    candidates = ("test", "all") if part == "test" else (part, "train", "all")
    found = next((name for name in candidates if name in pools), None)
    if found is None:
        raise ContractError(f"a data set must have a pool {' or '.join(map(repr, candidates))}, "
                            f"not only {', '.join(map(repr, pools)) or 'none at all'}")
    return found


def _distinct(pixels: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """Return the rows whose image was not seen before, and remember them."""
    rows = []
    for row, image in enumerate(pixels):
        content = blake2b(image.tobytes(), digest_size=16).digest()
        if content not in seen:
            seen.add(content)
            rows.append(row)
    return np.array(rows, dtype=np.int64)


def _deal(labels: np.ndarray, rows: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    """Deal shuffled rows to parts of the given sizes, in each part one of every class in turn."""
    parts = []
    for i, count in enumerate(counts):
        _, kind = np.unique(labels[rows], return_inverse=True)
        # Rounded up, so that the shares always suffice; without them the first part would use up small classes.
        share = -(-np.bincount(kind) * count // max(1, sum(counts[i:])))
        turn = _turns(kind)
        turn[turn >= share[kind]] += len(rows)
        taken = np.argsort(turn, kind="stable")[:count]
        parts.append(rows[taken])
        rows = np.delete(rows, taken)
    return parts


def _turns(kind: np.ndarray) -> np.ndarray:
    """Number the members of every class from 0, in their order."""
    turn = np.empty(len(kind), dtype=np.int64)
    for value in range(kind.max(initial=-1) + 1):
        mine = np.flatnonzero(kind == value)
        turn[mine] = np.arange(len(mine))
    return turn


def _as_images(pool: Pool, rows: np.ndarray, offset: int) -> Images:
    pixels = torch.from_numpy(np.ascontiguousarray(pool.pixels[rows].transpose(0, 3, 1, 2)))
    return Images(pixels.float() / 255, torch.from_numpy(pool.labels[rows].astype(np.int64)),
                  torch.from_numpy(rows + offset))

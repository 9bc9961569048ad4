"""Nearest-neighbour audit: is a private image nearer to the release than images can be that it has never seen?

Each private image's distance to the nearest released one is divided by that to the nearest of as many public images,
as plain images are near to everything. Held-out images of the same distribution show which ratios chance gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from ppbench.audit.spaces import Search
from ppbench.audit.tail import fit_tail
from ppbench.errors import UserError

ROUNDING = 1 / 255 / 12**0.5  # RMS error of a pixel of 8 bits


@dataclass(frozen=True)
class Parts:
    """What a release is audited with, all of one shape `[., C, H, W]`.

    Attributes:
        released: the release.
        private: the images that it was made from.
        held: images of the same distribution that it was not made from; they show how near chance comes.
        public: others, as a measure of how near images are to each other.
    """

    released: Tensor
    private: Tensor
    held: Tensor
    public: Tensor


@dataclass(frozen=True)
class Space:
    """The audit in one space.

    Attributes:
        ratio: `[private]`: distance to the nearest released image, over that to the nearest public one.
        held: `[held]`, the same of held-out images.
        index: `[private]`: the nearest released image.
        p: `[private]`: how likely a held-out image comes as near.
        closer: p-value of private images being no nearer on the whole than held-out ones (Mann-Whitney, one-sided).
        least: a ratio below this is a copy, even if it is the only one.
    """

    ratio: Tensor
    held: Tensor
    index: Tensor
    p: Tensor
    closer: float
    least: float


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        spaces: name -> the audit in that space.
        level: how often an honest release may be accused, at most: half of it of copies, half of being near.
    """

    spaces: Mapping[str, Space]
    level: float

    @property
    def p(self) -> Tensor:
        """`[spaces, private]`: how likely a held-out image comes as near."""
        return torch.stack([space.p for space in self.spaces.values()])

    @property
    def copied(self) -> Tensor:
        """`[spaces, private]` bool: which images the release copies (Holm 1979, over images and spaces)."""
        p = self.p.flatten()
        order = p.argsort()
        passed = p[order] * torch.arange(len(p), 0, -1) <= self.level / 2
        found = torch.zeros(len(p), dtype=torch.bool)
        found[order] = passed.long().cumprod(0).bool()
        return found.reshape(len(self.spaces), -1)

    @property
    def near(self) -> bool:
        """Whether private images are nearer on the whole than held-out ones (Bonferroni over spaces)."""
        return min(space.closer for space in self.spaces.values()) * len(self.spaces) <= self.level / 2


def audit(parts: Parts, searches: Mapping[str, Search], level: float = 0.05) -> Audit:
    """Audit a release in several spaces.

    Args:
        parts: the images.
        searches: name of a space -> how the nearest is found there.
        level: how often an honest release may be accused, at most.

    Raises:
        UserError: there are too few held-out images, or none of another part.
    """
    for name in ("released", "private", "public"):
        if not len(getattr(parts, name)):
            raise UserError(f"an audit needs {name} images, but there are none: set {name} to at least 1")
    chance = level / 2 / (len(searches) * len(parts.private))
    return Audit({name: _in_space(parts, search, chance) for name, search in searches.items()}, level)


def _in_space(parts: Parts, search: Search, chance: float) -> Space:
    images = torch.cat([parts.private, parts.held])
    found, usual = search(images, parts.released), search(images, parts.public[: len(parts.released)])
    ratio = (found.distance + ROUNDING) / (usual.distance + ROUNDING)
    own, held = ratio[: len(parts.private)], ratio[len(parts.private):]
    tail = fit_tail(held.log())
    closer = mannwhitneyu(own.numpy(), held.numpy(), alternative="less").pvalue
    return Space(own, held, found.index[: len(parts.private)], tail.p_values(own.log()), float(closer),
                 float(torch.tensor(tail.quantile(min(chance, tail.share))).exp()))

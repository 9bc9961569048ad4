"""Private images in two halves, one of them kept from the defense: the ground truth of membership and of copies."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.data import Halving, Images, Split


@dataclass(frozen=True)
class Lineup:
    """Members and others, mixed.

    Attributes:
        order: `[N]` int64: which of the distinct private images, or of those held behind them, each candidate is.
        members: `[N]` bool: the defense got it.
        canaries: `[N]` bool: its label is wrong on purpose.
    """

    order: Tensor
    members: Tensor
    canaries: Tensor


def halve(whole: Split, halving: Halving, rng: torch.Generator) -> Split:
    """Keep every second private image, drawn class by class, from the defense; canaries are drawn first.

    Both halves stay in the order of the private images; further copies of canaries stand behind them.
    """
    private, canaries = _mislabelled(whole.private, halving.canaries, whole.classes, rng)
    kind = private.labels + 1
    kind[canaries] = 0  # an even number that stands first: exactly one half of them on either side
    order = torch.randperm(len(private), generator=rng)
    order = order[kind[order].argsort(stable=True)]
    used, held = order[::2].sort().values, order[1::2].sort().values
    again = used[torch.isin(used, canaries)].repeat(halving.copies - 1)
    return replace(whole, private=private[torch.cat([used, again])], held=private[held])


def lineup(whole: Split, split: Split, rng: torch.Generator) -> Lineup:
    """Mix the private images of a halved split with those that were held; `whole` knows the true labels."""
    used, found = distinct(split.private), suspects(split)
    by_id = whole.private.ids.argsort()
    truth = whole.private.labels[by_id][torch.searchsorted(whole.private.ids[by_id], found.ids)]
    order = torch.randperm(len(found), generator=rng)
    return Lineup(order, (order < used), (truth != found.labels)[order])


def suspects(split: Split) -> Images:
    """Return every image of a halved split once: those that the defense got, then those that were held."""
    used, held = split.private[: distinct(split.private)], held_of(split)
    return Images(torch.cat([used.pixels, held.pixels]), torch.cat([used.labels, held.labels]),
                  torch.cat([used.ids, held.ids]))


def held_of(split: Split) -> Images:
    """Return the private images that were kept from the defense.

    Raises:
        ValueError: the split is not halved.
    """
    if split.held is None:
        raise ValueError("the split is not halved")
    return split.held


def distinct(images: Images) -> int:
    """Count images, the further copies behind them left out."""
    return len(images.ids.unique())


def _mislabelled(images: Images, count: int, classes: int, rng: torch.Generator) -> tuple[Images, Tensor]:
    """Give some images the label of another class; return all images, and the rows of those."""
    rows = torch.randperm(len(images), generator=rng)[:count].sort().values
    labels = images.labels.clone()
    labels[rows] = (labels[rows] + torch.randint(1, classes, (count,), generator=rng)) % classes
    return replace(images, labels=labels), rows

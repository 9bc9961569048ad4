"""One one-to-one assignment of an unordered set of estimates to the targets, reused for every metric."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppbench.errors import UserError


@dataclass(frozen=True)
class Link:
    """How the estimates of one attack come; the fields are those of its `Reconstruction`."""

    of: str = "private"
    aligned: bool = True
    within: int | None = None


@dataclass(frozen=True)
class Order:
    """How estimates stand to the targets.

    Attributes:
        aligned: estimate i is of target i.
        within: where it is not, the size of the batches inside which it may stand anywhere; None = of them all.
    """

    aligned: bool = True
    within: int | None = None

    def matched(self, estimates: Tensor, targets: Tensor) -> Tensor:
        """Return estimates, `[N, C, H, W]` as the targets are, in the order of the targets."""
        return estimates if self.aligned else estimates[assign(estimates, targets, self.within)]

    def __str__(self) -> str:
        return "true" if self.aligned else f"within {self.within}" if self.within else "false"


def order_of(partnered: bool, found: Link, outer: Link | None = None) -> Order:
    """Say whether estimate i is of target i, all along a chain; otherwise within which batches it may stand.

    Args:
        partnered: every released image has one private image behind it.
        found: the last attack's estimates.
        outer: in a chain, the estimates of the released images.
    """
    if (found.of == "released" or outer is not None) and not partnered:
        return Order(False)
    widths = [link.within for link in (outer, found) if link is not None and not link.aligned]
    if not widths:
        return Order()
    return Order(False, None if None in widths else max(width for width in widths if width is not None))


def assign(estimates: Tensor, targets: Tensor, within: int | None = None) -> Tensor:
    """Match estimates to targets one-to-one so that the summed pixel error is least (Kuhn 1955; scipy's solver).

    Args:
        estimates: `[N, C, H, W]`.
        targets: the same shape.
        within: match only inside consecutive batches of this many (the last may be smaller); None = over all.

    Returns:
        `[N]` int64 index: `estimates[index]` is aligned with `targets`.

    Raises:
        UserError: shapes differ or `within` is not positive.
    """
    if estimates.shape != targets.shape:
        raise UserError(f"estimates {list(estimates.shape)} cannot be matched to targets {list(targets.shape)}: "
                        "return as many images as there are targets, of their shape")
    if within is not None and within < 1:
        raise UserError(f"within is {within}: give the size of a batch, or none to match over all")
    count = len(estimates)
    size = within or max(1, count)
    parts = [start + _assign(estimates[start: start + size], targets[start: start + size])
             for start in range(0, count, size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _assign(estimates: Tensor, targets: Tensor) -> Tensor:
    """Return, for every target, the row of the estimate assigned to it."""
    mine, true = (side.flatten(1).double().cpu() for side in (estimates, targets))
    # The squared norms of both sides are constant over one-to-one assignments: only the products matter.
    _, index = linear_sum_assignment((true @ mine.T).numpy(), maximize=True)
    return torch.as_tensor(index, dtype=torch.int64)

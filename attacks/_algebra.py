"""What algebra tells of the images behind single gradients, and whether it holds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Solved:
    """Images that solve a layer's equations.

    Attributes:
        images: `[N, C, H, W]` in [0, 1].
        residual: `[N]`, the share of the equations' right side that is left (squares): 0 = they hold exactly; noise
            or several images in one gradient leave more.
    """

    images: Tensor
    residual: Tensor


def residual(left: Tensor, right: Tensor) -> Tensor:
    """Return how much of the right sides `[N, ...]` the left ones leave, as a share of their squares `[N]`."""
    apart = (left - right).flatten(1).square().sum(1)
    share: Tensor = apart / right.flatten(1).square().sum(1).clamp(min=1e-300)
    return share.float()

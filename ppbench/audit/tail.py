"""How unlikely a distance is that is shorter than any seen: the lower tail of a sample, carried on beyond its end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.errors import UserError

FEWEST = 20
_SHARE, _LEAST = 0.1, 10  # of the sample, and at least so many values, make the tail
_SHAPE = 0.1  # lighter tails are not believed: a sample this small cannot show them


@dataclass(frozen=True)
class Tail:
    """The lower tail of a sample: a generalised Pareto distribution of what lies below a threshold.

    Pickands 1975 (Annals of Statistics 3(1):119); fitted by probability-weighted moments (Hosking & Wallis 1987,
    Technometrics 29(3):339), its scale widened by one standard error, its shape at least .1, so that the smallest of
    many p-values, times their number, errs on the safe side.

    Attributes:
        sample: the values, in order.
        size: how many of them make the tail.
        shape: of the distribution of what lies below the threshold.
        scale: of the same.
    """

    sample: Tensor
    size: int
    shape: float
    scale: float

    @property
    def threshold(self) -> float:
        """Where the tail begins: the smallest value that is not of it."""
        return float(self.sample[self.size])

    @property
    def share(self) -> float:
        """How likely a value below the threshold is."""
        return (self.size + 1) / (len(self.sample) + 1)

    def p_values(self, values: Tensor) -> Tensor:
        """Return for each value `[m]` how likely one as low, or lower, is: its rank above the threshold, else the tail.

        Returns:
            `[m]` float64 in (0, 1].
        """
        values = values.double()
        ranks = (1 + torch.searchsorted(self.sample, values, right=True)) / (len(self.sample) + 1)
        below = ((self.threshold - values) / self.scale).clamp(min=0)
        far = self.share * (1 + self.shape * below) ** (-1 / self.shape)
        return torch.where(below > 0, far, ranks.double()).clamp(min=1e-300)

    def quantile(self, p: float) -> float:
        """Return the value that is as unlikely as `p`, which must be within the tail."""
        return self.threshold - self.scale / self.shape * float((p / self.share) ** -self.shape - 1)


def check_enough(count: int) -> None:
    """Hold the number of held-out images against what a tail can be fitted to.

    Raises:
        UserError: there are fewer than 20.
    """
    if count < FEWEST:
        raise UserError(f"an audit needs at least {FEWEST} held-out images, but there are {count}: set private higher")


def fit_tail(sample: Tensor) -> Tail:
    """Fit the lower tail of a sample `[n]`.

    Raises:
        UserError: there are fewer than 20 values.
    """
    check_enough(len(sample))
    ordered = sample.double().sort().values
    size = max(_LEAST, -int(-_SHARE * len(ordered) // 1))
    below = (ordered[size] - ordered[:size]).flip(0)
    mean, moment = float(below.mean()), float((torch.linspace(1, 0, size).double() * below).mean())
    spread = mean - 2 * moment  # 0 where all values are equal
    shape = 2 - mean / spread if spread > 0 else _SHAPE
    scale = 2 * mean * moment / spread if shape > _SHAPE else mean * (1 - _SHAPE)
    return Tail(ordered, size, max(shape, _SHAPE), max(scale * (1 + size**-0.5), 1e-12))

"""What noise costs in privacy: Renyi accounting (Mironov 2017, arXiv 1702.07476), by opacus."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from scipy.optimize import brentq

ORDERS = (1.1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, *range(4, 33), *range(34, 65, 2), 96, 128, 192, 256, 512)
_CLOSE = 1e-3  # relative, to the noise that is looked for
_MOST = 1e6
_NEARLY_NONE = 1e-12


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism that is applied several times.

    Attributes:
        noise: standard deviation, in units of the L2 sensitivity.
        times: how often.
        rate: with which probability an image takes part, each time anew (Poisson sampling).
    """

    noise: float
    times: int = 1
    rate: float = 1.0


def epsilon_of(mechanisms: Sequence[Mechanism], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the epsilon of (epsilon, delta) differential privacy of several mechanisms together."""
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    spent = sum(compute_rdp(q=one.rate, noise_multiplier=one.noise, steps=one.times, orders=orders)
                for one in mechanisms)
    return float(get_privacy_spent(orders=orders, rdp=spent, delta=delta)[0])


@cache
def noise_for(budget: float, delta: float, times: int = 1, rate: float = 1.0,
              beside: tuple[Mechanism, ...] = ()) -> float:
    """Return the least noise with which a mechanism, together with others, keeps to a budget of epsilon.

    Raises:
        ValueError: no noise does; the others alone spend too much.
    """
    def over(noise: float) -> float:
        return math.log(max(epsilon_of([*beside, Mechanism(noise, times, rate)], delta), _NEARLY_NONE) / budget)

    high = 1.0
    while over(high) > 0:
        high *= 2
        if high > _MOST:
            raise ValueError(f"no noise keeps to a budget of {budget:g} at delta = {delta:g}")
    low = high / 2
    while over(low) <= 0:
        low /= 2
    return float(brentq(over, low, high, xtol=_CLOSE * low / 2)) * (1 + _CLOSE)

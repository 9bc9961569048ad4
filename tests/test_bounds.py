"""Bounds of parameters: what is refused, and how it is said."""

import math
from dataclasses import dataclass

import pytest

from ppbench.bounds import above_zero, at_least


@dataclass
class Two:
    one: float
    other: float


def test_what_lies_within_is_accepted() -> None:
    at_least(Two(1, 5), 1, "one", "other")
    above_zero(Two(1e-9, 3), "one", "other")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
def test_what_lies_outside_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^other is {value}; it must be at least 1$"):
        at_least(Two(1, value), 1, "one", "other")
    with pytest.raises(ValueError, match=rf"^other is {value}; it must be above 0$"):
        above_zero(Two(1, value), "one", "other")

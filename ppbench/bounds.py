"""What parameters may be: a sentence that names the parameter, its value and what it must be."""

import math


def at_least(owner: object, least: float, *names: str) -> None:
    """Refuse a component whose parameters of these names are below `least`, or not finite.

    Raises:
        ValueError: names the first.
    """
    for name in names:
        if not least <= getattr(owner, name) < math.inf:
            raise ValueError(f"{name} is {getattr(owner, name)}; it must be at least {least:g}")


def between(owner: object, least: float, most: float, *names: str) -> None:
    """Refuse a component whose parameters of these names are below `least` or above `most`.

    Raises:
        ValueError: names the first.
    """
    for name in names:
        if not least <= getattr(owner, name) <= most:
            raise ValueError(f"{name} is {getattr(owner, name)}; it must be from {least:g} to {most:,}")


def above_zero(owner: object, *names: str) -> None:
    """Refuse a component whose parameters of these names are not above 0, or not finite.

    Raises:
        ValueError: names the first.
    """
    for name in names:
        if not 0 < getattr(owner, name) < math.inf:
            raise ValueError(f"{name} is {getattr(owner, name)}; it must be above 0")

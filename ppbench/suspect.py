"""Flags that a cell earns by itself: signs that its figure may say less than it seems to."""

import torch
from torch import Tensor

from ppbench.attack import Reconstruction

FEWEST = 16
"""Targets below which an interval over them says little."""
SAME = 1 / 255


def flags(found: Reconstruction, released: Tensor, chained: bool = False) -> list[str]:
    """Return what is suspect about a reconstruction.

    - `too-few-targets`: fewer than 16.
    - `same-output`: one image for all targets, although their released images differ.
    - `objective-never-fell`: what the attack minimised ended no lower than it began.

    Args:
        found: the attack's, as it returned it.
        released: `[n, c, h, w]`, the targets' released images.
        chained: the attack saw another one's estimate of the release, whatever was released.
    """
    suspect = []
    if len(found.images) < FEWEST:
        suspect.append("too-few-targets")
    if len(found.images) > 1 and _alike(found.images) and (chained or not _alike(released)):
        suspect.append("same-output")
    if found.objective is not None and not _fell(found.objective):
        suspect.append("objective-never-fell")
    return suspect


def interval_condition(key_scope: str | None, keys: int) -> str:
    """Say what an interval over the targets of one run is conditional on; fewer than 5 keys count as one.

    Args:
        key_scope: of the defense; None = no key.
        keys: how many keys the targets were protected with.
    """
    return "this key and seed" if key_scope is not None and keys < 5 else "this seed"


def _alike(images: Tensor) -> bool:
    return bool((images.amax(0) - images.amin(0)).max() < SAME)


def _fell(objective: Tensor) -> bool:
    trace = objective.double().reshape(len(objective), -1).mean(1)
    return len(trace) > 1 and bool(torch.isfinite(trace).all()) and bool(trace[-1] < trace[0])

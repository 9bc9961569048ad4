"""Audit of what a defense of the registry releases, made of one half of the private images; the other is held out.

Which half is drawn, so that nothing but the release tells both apart: test images may be of another kind, say crops of
other photographs.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ppbench import codec
from ppbench.audit.copies import Audit, Parts, audit
from ppbench.audit.spaces import Search, by_features, by_lpips, by_pixels
from ppbench.audit.tail import check_enough
from ppbench.data import Halving, Split
from ppbench.defense import resize
from ppbench.engine.inline import Inline
from ppbench.errors import UserError
from ppbench.flow import Flow, StageFailed
from ppbench.halving import held_of
from ppbench.judge import SMALLEST, Judge
from ppbench.perceptual import Lpips, Trunk, find_trunk
from ppbench.plan import Plan
from ppbench.precheck import check_data
from ppbench.stages.values import Protected, Table
from ppbench.store import Store

SHIFT = 16  # copies are looked for at shifts of up to a 16th of the side


@dataclass(frozen=True)
class Audited:
    """An audit, and the images that it is of."""

    parts: Parts
    audit: Audit
    notes: list[str]


def audit_release(plan: Plan, output: Path, level: float) -> Audited:
    """Make the release of a plan's first cell, or find it in the store of `output`, and audit it.

    Raises:
        UserError: the defense, the data set or its sizes do not serve.
    """
    split, released, judge = asyncio.run(_made(plan, Flow(plan, Store(output / ".store"), Inline(), {})))
    shape = split.private.shape
    public = split.public.pixels
    parts = Parts(resize(released.release.images, shape), split.private.pixels, held_of(split).pixels, public)
    notes = [] if len(public) >= len(parts.released) else [
        f"{len(public)} public images stand beside {len(parts.released)} released ones: set public to as many"]
    find, missing = searches(min(shape[1:]) // SHIFT, judge)
    return Audited(parts, audit(parts, find, level), notes + missing)


async def _made(plan: Plan, flow: Flow) -> tuple[Split, Protected, Judge | None]:
    cell = replace(plan.cells[0], dataset=replace(plan.cells[0].dataset, halving=Halving()))
    await check_data(replace(plan, cells=(cell,)), flow)
    try:
        split = await flow.split(cell.dataset, cell.seed)
        images = codec.load(Split, split.path)
        check_enough(len(held_of(images)))
        released = await flow.release(cell)
        small = min(split.info["shape"][1:]) < SMALLEST
        judge = None if small else Judge(codec.load(Table, (await flow.judge(cell)).path).values)
    except StageFailed as failure:
        raise UserError(f"there is nothing to audit: {failure.reason}") from None
    return images, codec.load(Protected, released.path), judge


def searches(shift: int, judge: Judge | None) -> tuple[Mapping[str, Search], list[str]]:
    """Return how the nearest is found in each space, and why it is not in others."""
    found: dict[str, Search] = {"pixels": lambda images, among: by_pixels(images, among, shift)}
    trunk = find_trunk("squeeze")
    if isinstance(trunk, Trunk):
        lpips = Lpips(trunk)
        found["lpips"] = lambda images, among: by_lpips(images, among, lpips)
    if judge is not None:
        features = judge.features
        found["judge"] = lambda images, among: by_features(images, among, features)
    return found, [] if isinstance(trunk, Trunk) else [trunk]

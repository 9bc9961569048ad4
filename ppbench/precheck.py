"""What is checked before the first cell: every data set loads, and defenses, scores and victims serve its images."""

import json
from dataclasses import asdict
from typing import Any

from ppbench.data import Shape
from ppbench.defense import Defense
from ppbench.errors import UserError
from ppbench.flow import Flow, StageFailed
from ppbench.judge import SMALLEST as JUDGED
from ppbench.metrics import SSIM_WINDOW
from ppbench.plan import DatasetPlan, Plan, label
from ppbench.plugins import build
from ppbench.store import json_digest
from ppbench.verifier import SMALLEST as VERIFIED


async def check_data(plan: Plan, flow: Flow) -> None:
    """Load every data set, and hold defenses, scores and victims against its images.

    Raises:
        UserError: one of them does not serve; says what would.
    """
    seen = {json.dumps([cell.dataset.identity(), cell.seed], sort_keys=True): cell for cell in plan.cells}
    shapes: dict[str, tuple[Shape, int]] = {}
    for cell in seen.values():
        try:
            info = (await flow.split(cell.dataset, cell.seed)).info
        except StageFailed as failure:
            if failure.status == "bad-input":
                raise UserError(failure.reason) from None
            raise UserError(f"the data set {cell.dataset.label} cannot be loaded: {failure.reason}") from None
        channels, height, width = info["shape"]
        shapes[_key(cell.dataset)] = ((channels, height, width), info["classes"])
        if "verification" in plan.score.groups:
            _check_people(cell.dataset, info)
    for cell in plan.cells:
        shape, classes = shapes[_key(cell.dataset)]
        defense: Defense = build(cell.defense.ref)
        try:
            defense.check(shape)
        except Exception as error:
            said = str(error) if isinstance(error, UserError) else f"check() fails with {type(error).__name__}: {error}"
            raise UserError(f"{label(cell.defense.ref)} on {cell.dataset.label}: {said}") from error
    for shape, classes in set(shapes.values()):
        _check_shape(plan, shape, classes)
    for cell in {json_digest([shapes[_key(cell.dataset)], cell.defense.identity(), asdict(cell.victim)]): cell
                 for cell in plan.cells}.values():
        try:
            await flow.fits(cell, *shapes[_key(cell.dataset)])
        except StageFailed as failure:
            if failure.status == "bad-input":  # a plug-in's own fault becomes a row with its reason
                raise UserError(f"{label(cell.defense.ref)} on {cell.dataset.label}: {failure.reason}") from None


def _check_shape(plan: Plan, shape: Shape, classes: int) -> None:
    """Hold scores against images of a shape."""
    if {"identification", "recognition"} & set(plan.score.groups) and \
            min(cell.dataset.sizes.public for cell in plan.cells) < 2:
        raise UserError("identification and recognition train a judge on the public images: set public to at least 2, "
                        "or leave both out of the score groups")
    smallest = {"ssim": SSIM_WINDOW, "identification": JUDGED, "recognition": JUDGED, "verification": VERIFIED}
    for group in plan.score.groups:
        if min(shape[1:]) < smallest.get(group, 1):
            name = "SSIM" if group == "ssim" else group
            raise UserError(f"{name} needs images of at least {smallest[group]} pixels, but these are {shape[1]} x "
                            f"{shape[2]}: choose a larger size, or leave {group} out of the score groups")


def _check_people(dataset: DatasetPlan, info: dict[str, Any]) -> None:
    """Hold a split against what `verification` takes: two classes or more in public, and two others in the rest."""
    if not dataset.sizes.disjoint:
        raise UserError("verification learns faces from other people than those in private: set disjoint = true in "
                        "[[dataset]], or leave verification out of the score groups")
    for part, others in (("public", "private or test"), ("private", "public")):
        if info[f"{part}_classes"] < 2:
            raise UserError(f"verification needs images of two classes or more: {part} holds {info[f'{part}_classes']} "
                            f"of {dataset.label}, so raise {part} or lower {others}")


def _key(dataset: DatasetPlan) -> str:
    return json.dumps(dataset.identity(), sort_keys=True)

"""The checks of what a defense means for whoever trains on its release, and of how it runs elsewhere."""

import asyncio
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ppbench.conformance.defense_bench import DefenseBench
from ppbench.conformance.findings import Check, sentence
from ppbench.conformance.scenes import CONVNET, VIT, Scene, make_cell, make_flow
from ppbench.conformance.trial import attempt
from ppbench.engine.inline import Inline
from ppbench.engine.processes import Processes
from ppbench.errors import UserError
from ppbench.flow import StageFailed
from ppbench.lessons import lesson_of
from ppbench.model import Model, Update, for_images
from ppbench.plan import AttackPlan
from ppbench.recipe import Recipe
from ppbench.seeding import seeded
from ppbench.threat import NAMED
from ppbench.updates import client_update
from ppbench.victim import check_fits

VICTIMS: dict[str, Recipe] = {"a convolutional network": CONVNET, "a vision transformer": VIT}


def adapted(bench: DefenseBench) -> Iterator[str]:
    """Build the victims that adapt() names, and show them the release."""
    release, keys = bench.main.value, bench.keys()
    for title, recipe in VICTIMS.items():
        if recipe is VIT and any(side % VIT.kwargs["patch_size"] for side in bench.shape[1:]):
            continue
        plain = for_images(recipe.model, recipe.kwargs, bench.shape, bench.split.classes)
        try:
            with seeded(0):
                model: Any = bench.defense.adapt(plain.with_state(plain.build()), keys)
        except UserError:
            continue  # it says itself that it cannot serve such a victim
        if not isinstance(model, Model):
            yield f"adapt() returns a {type(model).__name__} for {title}: return a Model"
            continue
        try:
            with seeded(0):
                check_fits(model, model.build(), release.images, lesson_of(release).goals)
        except (Exception, SystemExit) as error:
            yield f"{title} as adapt() returns it does not take the release: {sentence(error)}"


def update(bench: DefenseBench) -> Iterator[str]:
    """Protect the update of a small victim."""
    release = bench.main.value
    channels, height, width = release.shape
    model = for_images(CONVNET.model, CONVNET.kwargs, (channels, height, width), bench.split.classes)
    with seeded(0):
        model = model.with_state(model.build())
    honest = client_update(model, release.images[:2], lesson_of(release).goals[:2], batch=1, local_steps=1,
                           learning_rate=0.1, bn_train=False)
    sent: Any = attempt(lambda rng: bench.defense.protect_update(honest, rng)).value
    if not isinstance(sent, Update):
        yield f"protect_update() returns a {type(sent).__name__}: return an Update"
        return
    if type(sent.clients) is not int or sent.clients < 1:
        yield f"protect_update() says clients = {sent.clients!r}: it must be how many were averaged, from 1 upwards"
        return
    rows = math.ceil(2 / sent.clients)
    for name, value in honest.values.items():
        shape = [rows, *value.shape[1:]]
        if name not in sent.values or list(sent.values[name].shape) != shape:
            yield (f"protect_update() does not give {name!r} in the shape {shape}: keep names and shapes (or, where it "
                   "averages updates, say of how many `clients`)")
            return
        if not torch.isfinite(sent.values[name]).all():
            yield f"protect_update() makes {name!r} not finite: send numbers"
            return


def fresh_process(bench: DefenseBench) -> Iterator[str]:
    """Protect here and in a process of its own, as a run does, and compare."""
    scene = Scene("", bench.shape)
    cell = make_cell(scene, bench.subject.ref, AttackPlan((), frozenset(), False), NAMED["ciphertext-only"])
    with tempfile.TemporaryDirectory() as folder, closing(Processes(1)) as processes:
        try:
            there = asyncio.run(make_flow(Path(folder, "there"), scene.targets, processes).release(cell))
            here = asyncio.run(make_flow(Path(folder, "here"), scene.targets, Inline()).release(cell))
        except StageFailed as failure:
            yield f"in a process of its own protect() fails: {failure.reason}"
            return
    if here.sha256 != there.sha256:
        yield ("a process of its own gives another release from the same seed: rest on nothing but arguments, "
               "parameters and `rng`")


VICTIM_CHECKS: Mapping[str, Check[DefenseBench]] = {"victim": adapted, "update": update}

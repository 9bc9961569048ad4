"""Whose images were used, by suite `membership`: average and worst case; then each shadow in the victim's place."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from _real import ROOT
from _suites import Tables
from _table import Figure, at_least
from torch import Tensor

from ppbench import codec
from ppbench.accusation import COLUMNS
from ppbench.attacks._likelihoods import Shadows, lira
from ppbench.codec import Tensors
from ppbench.display import Terminal
from ppbench.engine.inline import Inline
from ppbench.flow import Flow
from ppbench.halving import Lineup
from ppbench.membership import area, true_positives
from ppbench.plan import Cell, Plan
from ppbench.resolve import make_plan
from ppbench.results import Row
from ppbench.runner import RunOptions, run
from ppbench.seeding import generator
from ppbench.stages.values import Table
from ppbench.store import Store
from ppbench.suite import read_suite, validate

DRAWS = 200
RARE, OFTEN = 0.001, 0.01  # rates of false alarms
FOUND = 0.01  # of the members of a victim that learnt by heart, at the lower rate
OTHERS = 10_000  # scores of others, at least


def members(quick: bool) -> Iterator[Figure]:
    """Run the suite (or go on with it); put each of its shadows on trial by the others."""
    path = ROOT / "leaderboards" / "suites" / "membership.toml"
    tables = read_suite(path)
    plan = make_plan(validate(brief(tables) if quick else tables, path.name), path.parent)
    with tempfile.TemporaryDirectory() as scratch, Terminal() as terminal:
        output = Path(scratch) if quick else ROOT / "runs"
        rows = run(plan, RunOptions(output, jobs=os.cpu_count() or 1), terminal).rows
        for row in rows:
            if row["status"] != "ok":
                raise SystemExit(f"membership: {row['attack']} on {row['defense']} {row['status']}: {row['reason']}")
            yield from figures(row)
        for cell in plan.cells:
            if cell.attack.refs[0].params.get("method", "lira") == "lira":
                yield from trials(cell, asyncio.run(trial(plan, cell, output)), quick)


def brief(tables: Tables) -> Tables:
    """Cut the suite down to half a minute's work: no defense, small victims."""
    tables["dataset"] = [table | {"private": 400, "public": 100, "test": 200} for table in tables["dataset"]]
    attacks = [table | ({"shadows": 12} if "shadows" in table else {}) for table in tables["attack"]]
    return tables | {"defense": tables["defense"][:1], "attack": attacks,
                     "victim": {"kwargs": {"width": 8}, "epochs": 10, "batch": 32, "learning_rate": 0.01}}


def figures(row: Row) -> Iterator[Figure]:
    """Return a row's scores: canaries first."""
    method = "" if row["attack_params"] == "{}" else f" {row['attack_params']}"
    name = f"{row['defense']}: {row['attack']}{method}"
    for prefix, who in (("canary_", "canaries"), ("", "all")):
        for column in (*COLUMNS.values(), "auc"):
            value, low, high = (row[f"{prefix}{column}{end}"] for end in ("", "_low", "_high"))
            yield Figure(name, f"{who}: {column}", value, f"interval {low:.3f} to {high:.3f}")


@dataclass(frozen=True)
class Trial:
    """What all shadows but itself say of each shadow's candidates.

    Attributes:
        scores: `[shadows, candidates]`.
        members: `[shadows, candidates]` bool.
        canaries: `[candidates]` bool.
    """

    scores: Tensor
    members: Tensor
    canaries: Tensor


async def trial(plan: Plan, cell: Cell, output: Path) -> Trial:
    """Let every shadow of a cell take the victim's place, as Carlini et al. do."""
    flow = Flow(plan, Store(output / ".store"), Inline(), {})
    priors = await flow.priors(cell.attack.refs[0], await flow.view(cell), cell)
    told: Tensors = codec.load(Table, priors["shadows"].path).values
    canaries = codec.load(Lineup, (await flow.lineup(cell)).path).canaries
    sure, inside = told["sure"], told["inside"]
    others = ~torch.eye(len(sure), dtype=torch.bool)
    scores = torch.stack([lira(sure[i], Shadows(sure[those], inside[those])) for i, those in enumerate(others)])
    return Trial(scores, inside, canaries)


def trials(cell: Cell, found: Trial, quick: bool) -> Iterator[Figure]:
    """Score all trials together; intervals by drawing victims and candidates anew."""
    victims, count = found.scores.shape
    name = f"{cell.defense.ref.name}: LiRA, {victims} victims in turn"
    yield Figure(name, "scores of others", int((~found.members).sum()), *(() if quick else (
        f">= {OTHERS}", bool((~found.members).sum() >= OTHERS))))
    for who, those in (("canaries", found.canaries), ("all", torch.ones(count, dtype=torch.bool))):
        scores, inside = found.scores[:, those], found.members[:, those]
        drawn = [_drawn(scores, inside, seed) for seed in range(20 if quick else DRAWS)]
        for rate in (RARE, OFTEN):
            value = true_positives(scores.flatten(), inside.flatten(), rate).value
            spread = sorted(true_positives(*one, rate).value for one in drawn)
            figure = f"{who}: {COLUMNS[rate]} ({spread[len(spread) // 40]:.3f} to {spread[-1 - len(spread) // 40]:.3f})"
            aimed = rate == RARE and who == "all" and cell.defense.ref.name == "none"
            yield at_least(name, figure, value, FOUND) if aimed else Figure(name, figure, value)
        yield Figure(name, f"{who}: auc", area(scores.flatten(), inside.flatten()).value)


def _drawn(scores: Tensor, inside: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw victims and candidates with replacement."""
    rng = generator(seed)
    victims, candidates = (torch.randint(size, (size,), generator=rng) for size in scores.shape)
    return scores[victims][:, candidates].flatten(), inside[victims][:, candidates].flatten()

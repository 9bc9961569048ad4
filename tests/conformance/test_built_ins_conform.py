"""Every built-in attack and defense keeps the contract that plug-in authors are held to."""

import os
from typing import Any

import pytest
from built_in_run import ATTACKS

from ppbench.conformance.admission import admission
from ppbench.conformance.attack_bench import AttackBench
from ppbench.conformance.defense_bench import DefenseBench
from ppbench.conformance.defense_victim import fresh_process
from ppbench.conformance.subject import resolve
from ppbench.plugins import registered
from ppbench.runner import RunOptions
from ppbench.testing import check_attack, check_defense

# Parameters that make a plug-in cheap: what is checked is the contract, not how well it does.
CHEAP: dict[str, dict[str, Any]] = {
    "gan-inversion": {"steps": 1, "restarts": 1, "hold": 2, "prior_steps": 2},
    "gradient-matching": {"steps": 2},
    "jigsaw": {"steps": 2},
    "linear": {"draws": 1},
    "membership": {"shadows": 2},
    "model-inversion": {"steps": 1, "bank": 4, "candidates": 1, "checks": 1, "prior_steps": 2},
    "thumbnail": {"iterations": 2, "steps": 2, "width": 8, "depth": 1},
    "unet-inverter": {"steps": 2, "width": 8},
    "vit-inverter": {"steps": 2, "width": 16, "depth": 1},
    "bn-synthesis": {"steps": 1, "teacher_epochs": 1},
    "dp-synthesis": {"steps": 1, "teacher_epochs": 1},
}
# Enough to beat the blind guess where nothing is hidden, which is what the gate asks.
BRIEF: dict[str, dict[str, Any]] = {
    "gan-inversion": {"prior_steps": 10, "steps": 20, "restarts": 2, "hold": 4},
    "gradient-matching": {"steps": 60},
    "jigsaw": {"steps": 5},
    "membership": {"shadows": 2},
    "model-inversion": {"prior_steps": 10, "steps": 20},
    "thumbnail": {"steps": 50},
    "unet-inverter": {"steps": 50},
    "vit-inverter": {"steps": 50},
}
VARIANTS = [
    *({"block-scrambling": {"preset": preset}} for preset in ("etc", "le", "ele", "pe")),
    {"block-scrambling": {"block": 32}}, {"mixup": {"images": 2}}, {"instahide": {"queries": "plain"}},
    {"bn-synthesis": {"stats": "model", "images": 20, **CHEAP["bn-synthesis"]}},
]


@pytest.mark.parametrize("name", registered("attacks"))
def test_every_attack_conforms(name: str) -> None:
    check_attack(name, quick=True, **CHEAP.get(name, {}))


@pytest.mark.parametrize("encoding", ["sign", "correlated"])
def test_every_way_to_memorize_conforms(encoding: str) -> None:
    check_attack("memorization", quick=True, encoding=encoding)


@pytest.mark.parametrize("name", registered("defenses"))
def test_every_defense_conforms(name: str) -> None:
    check_defense(name, quick=True, **CHEAP.get(name, {}))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_kind_of_a_defense_conforms(variant: dict[str, dict[str, Any]]) -> None:
    for name, params in variant.items():
        check_defense(name, quick=True, **params)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    """One folder for all, so that what blind guesses score is worked out once."""
    return RunOptions(tmp_path_factory.mktemp("admission"), "inline")


SHOWN = pytest.mark.skipif("PPBENCH_PHOTOS_RUN" in os.environ, reason="test_photos_run.py holds the built-in run to it")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=SHOWN if name in ATTACKS else ())
                                  for name in registered("attacks")])
def test_every_attack_is_admitted(name: str, once: RunOptions) -> None:
    assert list(admission(AttackBench(resolve("attacks", name, BRIEF.get(name, {}))), once)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", registered("defenses"))
def test_every_defense_is_the_same_in_another_process(name: str) -> None:
    assert list(fresh_process(DefenseBench(resolve("defenses", name, CHEAP.get(name, {}))))) == []

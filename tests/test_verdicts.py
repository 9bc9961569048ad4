"""Verdicts: rows joined with one another, on hand-made rows and in a real run."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import plugin, tiny_plan, tiny_run

from ppbench.plan import Cell, Plan
from ppbench.results import Row
from ppbench.verdicts import Verdict, judge_rows

ATTACKS: list[Any] = ["blind", "key-holder", "as-released", "jigsaw"]


@pytest.fixture
def plan(tiny_npz: Path) -> Plan:
    return tiny_plan(tiny_npz, ["none", "constant", "patch-shuffle"], ATTACKS)


def row(ssim: float, low: float, high: float, **more: Any) -> Row:
    return {"status": "ok", "flags": "", "ssim": ssim, "ssim_high": ssim + 0.01, "leakage_ssim": (low + high) / 2,
            "leakage_ssim_low": low, "leakage_ssim_high": high, **more}


def judged(plan: Plan, found: dict[tuple[str, str], Row]) -> dict[tuple[str, str], Verdict]:
    """Judge a plan of which all rows are good but those given by (defense, attack)."""
    names = {(cell.defense.ref.name, cell.attack.label): cell for cell in plan.cells}
    rows = {cell.id: found.get(name, row(0.99, 0.9, 1.0)) for name, cell in names.items()}
    scores = {cell.id: torch.linspace(0, 1, 8) * rows[cell.id]["ssim"] for cell in plan.cells}

    def per_target(cell: Cell) -> torch.Tensor | None:
        return scores[cell.id]

    verdicts = judge_rows(plan.cells, rows, per_target)
    return {name: verdicts[cell.id] for name, cell in names.items()}


def test_an_attack_that_works_on_none_is_admissible_everywhere(plan: Plan) -> None:
    verdicts = judged(plan, {("constant", "jigsaw"): row(0.2, -0.5, -0.3)})
    for defense in ("none", "constant", "patch-shuffle"):
        assert verdicts[defense, "jigsaw"].admissible == "yes"
        assert verdicts[defense, "jigsaw"].ranks("ssim")
        assert not verdicts[defense, "jigsaw"].ranks("lpips")  # it was not measured on none


@pytest.mark.parametrize("low", [0.0, -0.1, float("nan"), None])
def test_an_attack_that_does_not_beat_the_floor_on_none_is_inadmissible_everywhere(plan: Plan, low: Any) -> None:
    on_none = {**row(0.5, 0, 0.3), "leakage_ssim_low": low}
    verdicts = judged(plan, {("none", "jigsaw"): on_none})
    for defense in ("none", "constant", "patch-shuffle"):
        assert verdicts[defense, "jigsaw"].admissible == "no"
        assert "beat the floor" in verdicts[defense, "jigsaw"].why
        assert not verdicts[defense, "jigsaw"].ranks("ssim")
        assert verdicts[defense, "as-released"].admissible == "yes"


def test_another_metric_can_admit_an_attack_but_not_rank_it_by_ssim(plan: Plan) -> None:
    on_none = row(0.5, -0.1, 0.1, leakage_identification=0.4, leakage_identification_low=0.2)
    verdict = judged(plan, {("none", "jigsaw"): on_none})["patch-shuffle", "jigsaw"]
    assert (verdict.admissible, verdict.by) == ("yes", ("identification",))
    assert verdict.ranks("identification")
    assert not verdict.ranks("ssim")


def test_a_failure_on_none_is_no_evidence_either(plan: Plan) -> None:
    verdict = judged(plan, {("none", "jigsaw"): {"status": "timeout", "reason": "slow", "ssim": 0.0}})
    assert verdict["constant", "jigsaw"].admissible == "no"
    assert "timeout on 'none'" in verdict["constant", "jigsaw"].why


def test_one_image_for_all_targets_on_none_is_no_evidence(plan: Plan) -> None:
    verdict = judged(plan, {("none", "jigsaw"): row(0.6, 0.1, 0.3, flags="too-few-targets same-output")})
    assert verdict["constant", "jigsaw"].admissible == "no"
    assert "one image for all" in verdict["constant", "jigsaw"].why


def test_what_does_not_apply_is_not_called_broken(plan: Plan) -> None:
    missing = {"status": "not-applicable", "missing": "images", "flags": "", "ssim": 0.0}
    verdict = judged(plan, {("none", "jigsaw"): missing})["none", "jigsaw"]
    assert (verdict.admissible, verdict.why) == ("", "not applicable")


def test_the_ceiling_is_that_of_the_default_threat(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none"], [{"use": "jigsaw", "threats": ["white-box"]}])
    assert judged(plan, {("none", "jigsaw"): row(0.8, 0.5, 0.6)})["none", "jigsaw"].flags == ()


def test_yardsticks_are_not_ranked(plan: Plan) -> None:
    verdicts = judged(plan, {("none", "blind"): row(0.3, 0, 0)})
    for name in ("blind", "key-holder"):
        assert verdicts["none", name].admissible == ""
        assert "yardstick" in verdicts["none", name].why
        assert not verdicts["none", name].ranks("ssim")


def test_without_none_the_run_cannot_tell(tiny_npz: Path) -> None:
    verdicts = judged(tiny_plan(tiny_npz, ["constant"], ["jigsaw"]), {})
    assert verdicts["constant", "jigsaw"].admissible == ""
    assert "add that defense" in verdicts["constant", "jigsaw"].why
    assert verdicts["constant", "jigsaw"].untried


def test_the_drop_from_none_is_paired(plan: Plan) -> None:
    verdict = judged(plan, {("patch-shuffle", "jigsaw"): row(0.495, 0.1, 0.2)})["patch-shuffle", "jigsaw"]
    assert verdict.none_ssim == 0.99
    assert verdict.drop is not None
    mean, interval = verdict.drop
    assert mean == pytest.approx(0.495 / 2)  # (0.99 - 0.495) times the mean of 0 .. 1
    assert interval.low < mean < interval.high
    assert verdict.key_holder_ssim == 0.99


def test_an_equal_cell_drops_by_exactly_nothing(plan: Plan) -> None:
    verdict = judged(plan, {})["patch-shuffle", "jigsaw"]
    assert verdict.drop is not None
    assert (verdict.drop[0], *verdict.drop[1]) == (0, 0, 0)


def test_an_attack_short_of_its_ceiling_on_none_is_suspect_everywhere(plan: Plan) -> None:
    verdicts = judged(plan, {("none", "jigsaw"): row(0.8, 0.5, 0.6)})
    assert "misses-ceiling-on-none" in verdicts["constant", "jigsaw"].flags
    assert verdicts["constant", "as-released"].flags == ()
    # nor does one whose interval still reaches the ceiling count as short of it
    near = judged(plan, {("none", "jigsaw"): row(0.945, 0.8, 0.9)})
    assert near["constant", "jigsaw"].flags == ()


def test_the_best_chain_below_the_floor_is_suspect(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none", "patch-shuffle"], [
        {"use": "memorization"}, {"use": "memorization", "then": {"use": "jigsaw"}}, "as-released"])
    low = row(0.1, -0.6, -0.4)
    alone = judged(plan, {("patch-shuffle", "memorization"): low, ("patch-shuffle", "as-released"): low})
    assert alone["patch-shuffle", "memorization"].flags == ()  # with the jigsaw behind it, it does well
    assert alone["patch-shuffle", "as-released"].flags == ("best-chain-below-floor",)
    both = judged(plan, {("patch-shuffle", "memorization"): low, ("patch-shuffle", "memorization+jigsaw"): low})
    assert both["patch-shuffle", "memorization"].flags == ("best-chain-below-floor",)
    wide = judged(plan, {("patch-shuffle", "as-released"): row(0.4, -0.2, 0.1)})
    assert wide["patch-shuffle", "as-released"].flags == ()


def test_the_flags_of_the_row_come_first(plan: Plan) -> None:
    flagged = judged(plan, {("constant", "jigsaw"): row(0.1, -0.6, -0.4, flags="same-output")})
    assert flagged["constant", "jigsaw"].flags == ("same-output", "best-chain-below-floor")


USELESS = '''
@dataclass(frozen=True)
class Useless(Attack):
    """Always the same image."""
    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    def run(self, view, priors, rng):
        return Reconstruction(torch.full((view.n_targets, *view.image_shape), 0.9))
'''


def test_a_run_writes_verdicts_and_leaves_results_alone(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, USELESS)
    few, _ = tiny_run(tiny_plan(tiny_npz, ["patch-shuffle"], ["as-released", f"{file}:Useless"]), tmp_path / "few")
    more, _ = tiny_run(tiny_plan(tiny_npz, ["none", "patch-shuffle"], ["as-released", f"{file}:Useless"]),
                       tmp_path / "more")
    lines = list(csv.DictReader((more.folder / "verdicts.csv").open()))
    assert [line["admissible"] for line in lines] == ["yes", "no", "yes", "no"]
    assert lines[0]["flags"] == "too-few-targets"
    assert lines[1]["flags"].startswith("too-few-targets same-output")
    assert float(lines[2]["none_ssim_drop_low"]) > 0
    kept = [line for line in (more.folder / "results.csv").read_text().splitlines() if "patch-shuffle" in line]
    assert kept == (few.folder / "results.csv").read_text().splitlines()[1:]

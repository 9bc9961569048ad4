"""Scores of membership: all candidates, canaries among themselves, and their pictures."""

import io

import pytest
import torch
from PIL import Image

from ppbench.accusation import accusation
from ppbench.halving import Lineup
from ppbench.roc import draw_roc
from ppbench.seeding import generator


def lined_up(count: int, canaries: int) -> Lineup:
    members = torch.arange(count) % 2 == 0
    return Lineup(torch.arange(count), members, torch.arange(count) < canaries)


def test_canaries_are_scored_among_themselves() -> None:
    """Of 2,000 others none can be told but the canaries, all of which can."""
    truth = lined_up(2000, 40)
    scores = torch.rand(2000, generator=generator(0)).double()
    scores[truth.canaries] = truth.members[truth.canaries].double() / 2 + 0.1  # below many who are no canaries
    values = accusation(scores, truth).values
    assert values["auc"] == pytest.approx(0.5, abs=0.05)
    assert values["tpr_at_fpr_0_1pct"] < 0.02
    assert values["canary_auc"] == values["canary_tpr_at_fpr_0_1pct"] == 1
    assert values["canary_tpr_at_fpr_1pct_low"] == pytest.approx(0.025 ** (1 / 20))  # Clopper-Pearson, 20 of 20
    assert (values["candidates"], values["canaries"]) == (2000, 40)
    assert values["leakage_auc"] == pytest.approx(2 * values["auc"] - 1)
    assert values["leakage_auc_low"] < values["leakage_auc"] < values["leakage_auc_high"]


def test_few_others_and_no_canaries_are_noted() -> None:
    sheet = accusation(torch.arange(10).double(), lined_up(10, 0))
    assert sheet.notes == ["no canaries: the worst case is not measured",
                           "5 others: at a rate of 0.1% none of them may be accused"]
    assert not any(name.startswith("canary") for name in sheet.values)
    assert accusation(torch.arange(4000).double(), lined_up(4000, 4)).notes == []


def test_a_picture_of_curves_shows_every_attack() -> None:
    truth = lined_up(200, 20)
    sheets = [accusation(torch.rand(200, generator=generator(seed)).double(), truth).per_candidate for seed in (0, 1)]
    one = draw_roc("none on photos", [("lira", sheets[0])])
    both = draw_roc("none on photos", [("lira", sheets[0]), ("rmia", sheets[1])])
    assert Image.open(io.BytesIO(one)).size == (600, 600)
    assert one != both
    assert draw_roc("none on photos", [("lira", sheets[0])]) == one

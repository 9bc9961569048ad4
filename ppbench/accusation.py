"""Scoring of membership: the ROC curve in numbers, for all candidates and for canaries alone."""

from torch import Tensor

from ppbench.halving import Lineup
from ppbench.membership import RATES, Rate, area, true_positives
from ppbench.score import Sheet

MEMBERSHIP_DEFINITION = (
    "of private images one half was kept from the defense; auc: how often a member scores higher than another (DeLong "
    "interval); tpr_at_fpr_X: share of members found with at most X of the others accused (Clopper-Pearson interval), "
    "chance X; canary_: the same of images with wrong labels, among themselves; 95 %")
COLUMNS = {0.001: "tpr_at_fpr_0_1pct", 0.01: "tpr_at_fpr_1pct"}
"""By the share of false alarms."""


def accusation(scores: Tensor, truth: Lineup) -> Sheet:
    """Score an attack's accusations.

    Args:
        scores: `[N]`, higher for whoever is taken for a member.
        truth: who is one.
    """
    sheet = Sheet(values={"candidates": len(scores)}, texts={"membership_def": MEMBERSHIP_DEFINITION}, per_candidate={
        "score": scores, "member": truth.members, "canary": truth.canaries})
    _add(sheet, "", scores, truth.members)
    sheet.values.update({f"leakage_{name}": 2 * sheet.values[name] - 1 for name in ("auc", "auc_low", "auc_high")})
    if (truth.members & truth.canaries).any() and (~truth.members & truth.canaries).any():
        sheet.values["canaries"] = int(truth.canaries.sum())
        _add(sheet, "canary_", scores[truth.canaries], truth.members[truth.canaries])
    else:
        sheet.notes.append("no canaries: the worst case is not measured")
    others = int((~truth.members).sum())
    if others * min(RATES) < 1:
        sheet.notes.append(f"{others} others: at a rate of {min(RATES):.1%} none of them may be accused")
    return sheet


def _add(sheet: Sheet, prefix: str, scores: Tensor, members: Tensor) -> None:
    found: dict[str, Rate] = {"auc": area(scores, members)}
    found |= {COLUMNS[rate]: true_positives(scores, members, rate) for rate in RATES}
    for name, rate in found.items():
        sheet.values.update({f"{prefix}{name}": rate.value, f"{prefix}{name}_low": rate.low,
                             f"{prefix}{name}_high": rate.high})

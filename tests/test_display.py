"""The table tells apart what differs, and says no more than it must."""

from typing import Any

from ppbench.display import _names, outcome, print_matrix
from ppbench.verdicts import Verdict

BASE: dict[str, Any] = {
    "dataset": "photos", "dataset_params": "{}", "seed": 0, "defense": "none", "defense_params": "{}",
    "key_scope": None, "clients": 1, "quantise": 8,
    "victim": "net", "victim_params": "{}", "attack": "blind", "attack_params": "{}",
    "threat": "ciphertext-only",
    "threat_params": "{}", "status": "ok", "aligned": "true", "ssim": 0.25, "leakage_ssim": 0.125,
    "task_accuracy_honest": 0.5, "intervals_conditional_on": "this seed"}


def test_equal_names_get_the_detail_that_differs() -> None:
    rows = [BASE, {**BASE, "key_scope": "image"}, {**BASE, "defense": "mixup"}]
    names = _names(rows, ("defense",), ("defense_params", "key_scope", "quantise"))
    assert names == ["none None", "none image", "mixup"]


def test_every_cell_of_the_matrix_is_printed(capsys: Any) -> None:
    rows = [BASE, {**BASE, "attack_params": '{"metric":"lpips"}', "ssim": 0.75}, {**BASE, "seed": 1, "ssim": 0.5},
            {**BASE, "dataset_params": '{"size":64}', "status": "not-applicable"}]
    rows = [{**row, "cell": str(i)} for i, row in enumerate(rows)]
    print_matrix(rows, {row["cell"]: Verdict("yes", ("ssim",)) for row in rows})
    text = capsys.readouterr().out
    for part in ("0.250", "0.750", "0.500", "n/a", "12%", "50.0%", "seed 1", '"size":64',
                 "conditional on this seed: none"):
        assert part in text


def test_an_inadmissible_attack_is_listed_but_not_ranked(capsys: Any) -> None:
    rows = [{**BASE, "cell": "a", "attack": "weak", "leakage_ssim": 0.9}, {**BASE, "cell": "b", "attack": "strong"}]
    print_matrix(rows, {"a": Verdict("no", why="it is broken"), "b": Verdict("yes", ("ssim",))})
    text = capsys.readouterr().out
    assert "inadmissible: weak (it is broken)" in text
    assert "90%" not in text
    assert text.count("12%") == 2  # its own entry, and the worst case


def test_rows_that_differ_in_one_detail_do_not_share_a_line(capsys: Any) -> None:
    rows = [{**BASE, "cell": str(n), "clients": n, "key_scope": "client", "leakage_ssim": n / 10} for n in (2, 8)]
    print_matrix(rows, {row["cell"]: Verdict("yes", ("ssim",)) for row in rows})
    text = capsys.readouterr().out
    assert text.count("20%") == 2
    assert text.count("80%") == 2


def test_an_attack_that_was_not_tried_on_none_is_said_not_to_be_ranked(capsys: Any) -> None:
    why = "the run has no cell of this attack on 'none': add that defense"
    print_matrix([{**BASE, "cell": "a"}], {"a": Verdict("", why=why)})
    assert f"not ranked: blind: {why}" in capsys.readouterr().out


def test_an_outcome_is_a_few_words() -> None:
    assert outcome(BASE) == "SSIM 0.250, leakage 12%"
    assert outcome({"status": "failed", "reason": "no idea"}) == "failed (no idea)"

"""The contract of what attacks and their priors return."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import plugin, tiny_plan, tiny_run
from full_view import everything

from ppbench.attack import Reconstruction, check_reconstruction
from ppbench.errors import ContractError, UserError
from ppbench.results import Row
from ppbench.view import View

VIEW = View(everything())
IMAGES = torch.rand(VIEW.n_targets, *VIEW.image_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("facts", [{}, {"aligned": False, "within": 2}, {"note": "ok", "objective": torch.ones(3)},
                                   {"objective": torch.ones(2, 4)}])
def test_what_keeps_the_contract(facts: dict[str, Any]) -> None:
    check_reconstruction(Reconstruction(IMAGES, **facts), VIEW)


@pytest.mark.parametrize(("facts", "words"), [
    ({"aligned": torch.tensor(True)}, "aligned must be True or False"), ({"aligned": 1}, "aligned = 1"),
    ({"of": "public"}, "of = 'public'"), ({"within": 0}, "within = 0"), ({"within": True}, "within = True"),
    ({"within": 2.0}, "within = 2.0"), ({"note": None}, "note is a NoneType"), ({"note": ["a"]}, "note is a list"),
    ({"objective": 0.5}, "objective must be a float"),
    ({"objective": torch.empty(0)}, "objective must be"), ({"objective": torch.ones(3).long()}, "objective must be"),
    ({"objective": torch.tensor(0.5)}, "objective must be")])
def test_what_stands_beside_the_images_is_checked(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_reconstruction(Reconstruction(IMAGES, **facts), VIEW)


LEARNS = """
@dataclass(frozen=True)
class Learns(Attack):
    requires = frozenset({"public"})
    default_threat = "ciphertext-only"
    def priors(self, view):
        return {"it": It()}
    def run(self, view, priors, rng):
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape), note=f"{float(priors['it']['it'][0]):g}")

@dataclass(frozen=True)
class It(Prior):
    needs = frozenset({"public", "algorithm"})
"""
LISTS = LEARNS + """
    def train(self, view, rng):
        return [torch.ones(1)]
"""
SEES = LEARNS + """
    def seen(self, view):
        BODY
    def train(self, view, rng):
        return {"it": torch.tensor([float("algorithm" in view.granted)])}
CALLS = []
"""


def test_a_prior_that_gives_no_tensors_by_name_is_named(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, LISTS)
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Learns"]), tmp_path)
    assert result.rows[0]["status"] == "failed"
    assert result.rows[0]["reason"] == "prior: It.train must return a dict of tensors by name, not a list"


def seeing(tiny_npz: Path, tmp_path: Path, body: str) -> Row:
    file = plugin(tmp_path, SEES.replace("BODY", body))
    return tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Learns"]), tmp_path)[0].rows[0]


@pytest.mark.parametrize(("body", "note"), [("return super().seen(view)", "1"),
                                            ("return super().seen(view).only(frozenset({'public'}))", "0")])
def test_a_prior_learns_from_what_it_says_that_it_sees(tiny_npz: Path, tmp_path: Path, body: str, note: str) -> None:
    row = seeing(tiny_npz, tmp_path, body)
    assert (row["status"], row["note"]) == ("ok", note)


@pytest.mark.parametrize(("body", "reason"), [
    ("CALLS.append(1); return view.only(frozenset({'public'} if len(CALLS) % 2 else {'algorithm'}))",
     "prior: It.seen cuts the same view differently each time: let it depend on the view and the parameters alone"),
    ("return None", "priors: It.seen must return a view, not a NoneType")])
def test_what_a_prior_sees_is_held_against_what_it_said(tiny_npz: Path, tmp_path: Path, body: str,
                                                        reason: str) -> None:
    """Else two cells could share what was learnt in one of them from more than the other grants."""
    row = seeing(tiny_npz, tmp_path, body)
    assert (row["status"], row["reason"]) == ("failed", reason)


def test_a_defense_whose_check_is_broken_is_told_before_anything_runs(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, """
class Broken(PerImageDefense):
    def check(self, shape):
        raise ZeroDivisionError("oh")
    def encrypt(self, images, key, rng):
        return images
""", "broken.py")
    with pytest.raises(UserError, match=r"broken.py:Broken on .*check\(\) fails with ZeroDivisionError: oh"):
        tiny_run(tiny_plan(tiny_npz, [f"{file}:Broken"], ["as-released"]), tmp_path)

"""Membership: shadows that share images out, queries as clients send them, and whole runs in which members show."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Run, plugin, tiny_plan, tiny_run

from ppbench.attacks._shadows import ShadowVictims, half
from ppbench.attacks._sureness import TIMES, sure_of, sure_of_shadow, sure_of_victim
from ppbench.attacks.membership import MembershipInference
from ppbench.data import Images
from ppbench.defense import KeyScope, draw_keys
from ppbench.errors import UserError
from ppbench.model import Model
from ppbench.partial import kept_in
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, Candidates, Sealed, View

OVERFITTED = {"model": "ppbench.nets:convnet", "kwargs": {"width": 16}, "epochs": 60, "batch": 8}


def images(count: int, seed: int = 0) -> Images:
    return Images(torch.rand(count, 3, 16, 16, generator=generator(seed)), torch.arange(count) % 3,
                  torch.arange(count))


def network() -> Model:
    bare = Model("ppbench.nets:convnet", {"width": 4, "num_classes": 3})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return bare.with_state(bare.build())


def view(defense: str, scope: KeyScope | None = None, epochs: int = 1) -> View:
    algorithm = Algorithm(Ref("defenses", defense), scope, 8)
    sent = torch.rand(12, 3, 16, 16, generator=generator(3))
    return View(Sealed(frozenset({"public", "algorithm", "model", "candidates"}), (3, 16, 16), (3, 16, 16), 4, 3,
                       public=images(20, 1), algorithm=algorithm, model=network(),
                       candidates=Candidates(images(12), sent, torch.rand(20, 3, 16, 16, generator=generator(4))),
                       recipe=Recipe(kwargs={"width": 4}, epochs=epochs, batch=4)))


def test_two_halves_share_all_images_class_by_class() -> None:
    these = images(31)
    one, other = (half(these, which, generator(5)) for which in (0, 1))
    assert torch.equal(one, ~other)
    sizes = torch.bincount(these.labels[one]) - torch.bincount(these.labels[other])
    assert sizes.abs().max() <= 1


@pytest.mark.parametrize("online", [True, False])
def test_each_image_is_in_half_of_the_shadows(online: bool) -> None:
    seen = view("none")
    told = ShadowVictims(4, online).train(ShadowVictims(4, online).seen(seen), generator(0))
    ours, others = ("inside", "public_inside") if online else ("public_inside", "inside")
    assert not told[others].any()
    assert told["sure"].shape == (4, 12, 2)
    assert told["public"].shape == (4, 20, 2)
    if online:
        assert told[ours].sum(0).tolist() == [2] * 12
    else:  # as many as the victim was trained with
        assert told[ours].sum(1).tolist() == [6] * 4


def test_shadows_do_not_look_at_the_victim() -> None:
    prior, seen = ShadowVictims(2), view("none")
    cut = prior.seen(seen)
    assert cut.sealed.model is None
    assert cut.candidates.sent.numel() == cut.candidates.public.numel() == 0
    other = View(replace(seen.sealed, model=None, candidates=replace(seen.candidates, sent=torch.zeros(1))))
    first, second = (prior.train(prior.seen(one), generator(0)) for one in (seen, other))
    assert torch.equal(first["sure"], second["sure"])


def test_shadows_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, seen = ShadowVictims(4), view("none")
    whole = prior.train(seen, generator(0))
    trained: list[int] = []
    honest = ShadowVictims._shadow

    def noted(self: ShadowVictims, of: View, number: int, seed: int) -> dict[str, torch.Tensor]:
        trained.append(number)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return honest(self, of, number, seed)

    monkeypatch.setattr(ShadowVictims, "_shadow", noted)
    with kept_in(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            prior.train(seen, generator(0))
        again = prior.train(seen, generator(0))
    assert trained == [0, 1, 2, 2, 3]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_kept_key_is_asked_with_and_fresh_ones_are_one_s_own() -> None:
    """Whose keys are kept shows in what clients send; where every image has a fresh key, anybody can send it."""
    kept, fresh = view("block-scrambling", "global"), view("patch-shuffle", "image")
    for seen, same in ((kept, True), (fresh, False)):
        found = sure_of_victim(seen, seen.candidates.images, seen.candidates.sent, generator(0))
        direct = sure_of(seen.model, seen.candidates.sent, seen.candidates.images.labels)
        assert torch.equal(found, direct) == same


def test_what_looks_different_every_time_is_sent_often(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(model: Model, sent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append(len(sent))
        return torch.zeros(len(sent), 2)

    monkeypatch.setattr("ppbench.attacks._sureness.sure_of", counted)
    for defense, scope, times in (("none", None, 1), ("patch-shuffle", "image", TIMES),
                                  ("block-scrambling", "global", 1)):
        seen = view(defense, scope)  # type: ignore[arg-type]
        asked.clear()
        keys = draw_keys(seen.algorithm.defense, seen.algorithm.key_scope, 6, (3, 16, 16), generator(0))
        sure_of_shadow(seen.model, keys, seen.candidates.images, seen.algorithm, generator(1))
        assert asked == [12] * times


@pytest.mark.parametrize(("params", "said"), [
    ({"shadows": 3}, "even"), ({"shadows": 0}, "at least 2"), ({"gamma": 0}, "above 0"),
    ({"share": 1.5}, "from 0 to 1"),
])
def test_bad_parameters_are_refused(params: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MembershipInference(**params)  # type: ignore[arg-type]


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tiny" / "results.csv").set_index("attack_params")


@pytest.mark.slow
@pytest.mark.parametrize(("defense", "victims"), [("none", 1), ("block-scrambling", 2)])
def test_members_of_an_overfitted_victim_are_found(tiny_npz: Path, tmp_path: Path, defense: str, victims: int) -> None:
    attacks = [{"use": "membership", "shadows": 8}, {"use": "membership", "shadows": 8, "method": "rmia"},
               {"use": "membership", "method": "loss"}]
    if defense == "none":
        attacks.append({"use": "membership", "shadows": 8, "method": "rmia", "online": False})
    plan = tiny_plan(tiny_npz, [defense], attacks, victim=OVERFITTED, dataset=[
        {"use": f"npz:{tiny_npz}", "private": 60, "public": 30, "test": 12, "canaries": 12}])
    result, _ = tiny_run(plan, tmp_path)
    assert [row["status"] for row in result.rows] == ["ok"] * len(attacks)
    assert result.computed["prior"] == len(attacks) - 2  # all methods share the shadows, but for offline ones
    assert result.computed["victim"] == victims
    rows = rows_of(tmp_path)
    assert (rows.candidates == 60).all()
    assert (rows.canaries == 12).all()
    online = rows[~rows.index.str.contains("false|loss")]
    assert (online.leakage_auc_low > 0).all()
    assert (online.canary_auc > 0.8).all()
    assert rows.n_targets.isna().all()


def test_image_cells_beside_it_stay_what_they_are(tiny_npz: Path, tmp_path: Path) -> None:
    alone = tiny_plan(tiny_npz, ["none"], ["as-released"])
    both = tiny_plan(tiny_npz, ["none"], ["as-released", {"use": "membership", "shadows": 2}])
    assert alone.cells[0].id == both.cells[0].id
    assert [len(plan.cells) for plan in (alone, both)] == [1, 2]
    result, _ = tiny_run(both, tmp_path)
    image, member = result.rows
    assert (image["n_targets"], member["n_targets"]) == (4, None)
    assert image.get("auc") is None
    assert member.get("ssim") is None
    assert json.loads(member["dataset_params"])["halved"] == {"canaries": 2, "copies": 1}
    assert "halved" not in json.loads(image["dataset_params"])
    table = pd.read_csv(tmp_path / "tiny" / "per_candidate.csv")
    assert len(table) == 24
    assert table.member.sum() == 12
    assert table.canary.sum() == 2
    assert set(pd.read_csv(tmp_path / "tiny" / "per_image.csv").cell) == {image["cell"]}
    pictures = sorted(path.name for path in (tmp_path / "tiny" / "grids").iterdir())
    assert len(pictures) == 2
    assert pictures[1].endswith("_roc.png")


CHEAT = """
from ppbench.attack import Membership
@dataclass(frozen=True)
class Cheat(Attack):
    "Look for the truth in all that the view holds."
    requires = frozenset({"public", "algorithm", "model", "candidates"})
    default_threat = "membership-inference"
    def run(self, view, priors, rng):
        assert view.sealed.release is None and view.sealed.labels is None
        ids = view.candidates.images.ids
        assert torch.equal(ids, torch.arange(len(ids)))
        return Membership(WHAT)
"""


def test_what_a_view_of_candidates_shows_tells_nobody(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, CHEAT.replace("WHAT", "ids.double()"))
    result, _ = tiny_run(tiny_plan(tiny_npz, ["patch-shuffle"], [f"{file}:Cheat"]), tmp_path)
    (row,) = result.rows
    assert row["status"] == "ok", row["reason"]
    assert row["auc_low"] < 0.5 < row["auc_high"]


@pytest.mark.parametrize(("what", "said"), [
    ("ids", "torch.int64 scores"), ("ids.double()[1:]", r"\[24\], one a candidate"),
    ("ids.double().log()", "finite"), ("ids.double(), 5", "note is a int"),
])
def test_scores_are_held_to_the_contract(tiny_npz: Path, tmp_path: Path, what: str, said: str) -> None:
    file = plugin(tmp_path, CHEAT.replace("WHAT", what))
    (row,) = tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Cheat"]), tmp_path)[0].rows
    assert row["status"] == "failed"
    assert pd.Series([row["reason"]]).str.contains(said).all(), row["reason"]


def test_whoever_tells_members_must_say_so(tiny_npz: Path, tmp_path: Path) -> None:
    silent = CHEAT.replace(', "candidates"', "").replace("view.candidates.images.ids", "torch.arange(4)")
    rows = []
    for name, body in (("silent.py", silent), ("wrong.py", CHEAT.replace("Membership(WHAT)", "Reconstruction(ids)"))):
        file = plugin(tmp_path, body.replace("WHAT", "ids.double()"), name)
        rows += tiny_run(tiny_plan(tiny_npz, ["none"], [f"{file}:Cheat"]), tmp_path)[0].rows
    assert ["returned a Membership; it must return a Reconstruction" in row["reason"] for row in rows] == [True, False]
    assert "as it requires 'candidates', it must return a Membership" in rows[1]["reason"]


@pytest.mark.parametrize(("flags", "said"), [
    (["--attack", "membership+jigsaw"], "estimates no images"),
    (["--attack", "memorization+membership"], "tells members from others and cannot follow"),
    (["--attack", "blind", "--dataset", "photos,canaries=4"], "the suite has none"),
    (["--attack", "membership", "--dataset", "photos,canaries=5"], "even number"),
    (["--attack", "membership", "--dataset", "photos,private=20,canaries=22"], "at most private = 20"),
    (["--attack", "membership", "--dataset", "photos,private=20"], "keeps one half from the defense"),
    (["--attack", "membership,shadows=3"], "even"),
])
def test_bad_input_is_one_sentence(command_line: Run, flags: list[str], said: str) -> None:
    code, _, errors = command_line("run", "--defense", "none", "--dry-run", *flags)
    assert code == 2
    assert said in errors
    assert "Traceback" not in errors


def test_who_uses_candidates_must_require_them(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, CHEAT.replace(', "candidates"})', '})\n    uses = frozenset({"candidates"})'))
    with pytest.raises(UserError, match="name it in `requires`"):
        tiny_plan(tiny_npz, ["none"], [f"{file}:Cheat"])

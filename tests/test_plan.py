"""The plan: every cell spelt out, every name resolved, and nothing in a cell's name that is not its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import plugin, tiny_plan

from ppbench.errors import UserError
from ppbench.plan import Plan
from ppbench.plugins import build
from ppbench.resolve import make_plan
from ppbench.suite import validate

MINE = '''
@dataclass(frozen=True)
class Mine(Attack):
    requires = frozenset({"images", "public"})
    default_threat = "white-box"
    steps: int = 3
    rate: float = 0.5
    file: int = 0
    def run(self, view, priors, rng):
        return Reconstruction(view.images)
'''


def complaint(call: Any) -> str:
    """Return the one sentence that a plan is refused with."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(plan: Plan) -> list[tuple[str, str, str, int]]:
    return [(cell.defense.ref.name, cell.attack.label, cell.threat.name, cell.seed) for cell in plan.cells]


def test_cells_are_the_product_in_the_order_of_the_suite(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none", "mixup"], seeds=[0, 5], attacks=[
        "blind", {"use": "key-holder", "threats": ["white-box", "full-knowledge"]}])
    assert names(plan) == [(defense, attack, threat, seed) for seed in (0, 5) for defense in ("none", "mixup")
                           for attack, threat in (("blind", "ciphertext-only"), ("key-holder", "white-box"),
                                                  ("key-holder", "full-knowledge"))]
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)


def test_repeated_cells_are_one(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["mixup", "mixup"], ["blind", {"use": "blind", "metric": "ssim"}, "blind"])
    assert len(plan.cells) == 1  # a default that was spelt out is a repetition too


def test_equal_values_of_a_parameter_are_one_cell(tiny_npz: Path) -> None:
    def cell_id(**params: Any) -> str:
        return tiny_plan(tiny_npz, [], ["blind"], defense=[{"use": "constant", **params}]).cells[0].id

    assert cell_id(value=1) == cell_id(value=1.0)
    assert cell_id(value=1.0) != cell_id(value=0.5)


def test_a_cells_name_depends_on_nothing_else_in_the_suite(tiny_npz: Path) -> None:
    alone = tiny_plan(tiny_npz, ["mixup"], ["blind"]).cells[0]
    among = tiny_plan(tiny_npz, ["none", "mixup"], ["as-released", "blind"], seeds=[3, 0], name="other",
                      targets=2, limits={"threads": 2}).cells
    assert alone.id in {cell.id for cell in among}


def test_the_fingerprint_holds_what_a_row_is_a_function_of(tiny_npz: Path) -> None:
    def fingerprint(**more: Any) -> str:
        plan = tiny_plan(tiny_npz, ["none"], ["blind"], **more)
        return plan.fingerprint(plan.cells[0])

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(name="other") == first
    assert fingerprint(limits={"seconds": 5, "memory_mib": 128}) == first
    changed = [fingerprint(targets=3), fingerprint(limits={"threads": 2}), fingerprint(score={"groups": ["psnr"]}),
               fingerprint(seeds=[1]), fingerprint(victim={"epochs": 2})]
    assert len({first, *changed}) == 1 + len(changed)


def test_other_images_in_a_file_of_the_same_name_are_other_cells(tiny_npz: Path) -> None:
    before = tiny_plan(tiny_npz, ["none"], ["blind"])
    arrays = dict(np.load(tiny_npz))
    np.savez(tiny_npz, **{**arrays, "train_images": 255 - arrays["train_images"]})
    after = tiny_plan(tiny_npz, ["none"], ["blind"])
    assert after.cells[0].id != before.cells[0].id
    assert after.fingerprint(after.cells[0]) != before.fingerprint(before.cells[0])


def test_paths_are_relative_to_the_suites_folder(tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    plan = tiny_plan(tiny_npz, ["none"], ["blind"], dataset=[{"use": "npz:tiny.npz", "private": 24, "public": 40}])
    dataset = plan.cells[0].dataset
    assert dataset.ref.params == {"path": "tiny.npz"}
    assert build(dataset.ref).path == str(tiny_npz)
    assert dataset.label == "npz:tiny.npz"


def test_where_a_file_lies_is_no_part_of_a_cell(tiny_npz: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "tiny.npz"
    moved.parent.mkdir()
    before = tiny_plan(tiny_npz, ["none"], ["blind"])
    tiny_npz.rename(moved)
    after = tiny_plan(moved, ["none"], ["blind"])
    assert after.cells[0].id == before.cells[0].id
    assert after.fingerprint(after.cells[0]) == before.fingerprint(before.cells[0])


def test_labels_name_no_folders(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, MINE)
    plan = tiny_plan(tiny_npz, ["none"], [f"{file}:Mine"])
    assert plan.cells[0].dataset.label == "npz:tiny.npz"
    assert plan.cells[0].attack.label == "my_attack.py:Mine"
    assert str(plan.cells[0]) == "npz:tiny.npz | none | my_attack.py:Mine | white-box"
    assert "mine" not in plan.cells[0].attack.refs[0].name


def test_a_file_plug_in_is_named_by_file_and_class_wherever_it_lies(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, other = plugin(tmp_path, MINE), plugin(tmp_path / "a", MINE)
    plans = [tiny_plan(tiny_npz, ["none"], [{"use": f"{file}:Mine", "steps": 4}]) for file in (one, other)]
    assert plans[0].cells[0].id == plans[1].cells[0].id
    assert plans[0].fingerprint(plans[0].cells[0]) == plans[1].fingerprint(plans[1].cells[0])
    other.write_text(other.read_text() + "# edited\n")
    edited = tiny_plan(tiny_npz, ["none"], [{"use": f"{other}:Mine", "steps": 4}])
    assert edited.cells[0].id == plans[0].cells[0].id
    assert edited.fingerprint(edited.cells[0]) != plans[0].fingerprint(plans[0].cells[0])


def test_parameters_that_json_does_not_know_are_kept_as_what_it_does(tiny_npz: Path, tmp_path: Path) -> None:
    body = MINE.replace("file: int = 0", "file: 'Path' = Path('x')")
    file = plugin(tmp_path, "from pathlib import Path\n" + body)
    plan = tiny_plan(tiny_npz, ["none"], [{"use": f"{file}:Mine", "file": "a/b"}])
    ref = plan.cells[0].attack.refs[0]
    assert ref.params == {"file": "a/b"}
    assert build(ref).file == Path("a/b")
    assert plan.as_json()["cells"][0]["id"] == plan.cells[0].id


DATA = '''
import numpy as np
from ppbench.data import Dataset, Pool
@dataclass(frozen=True)
class Mine(Dataset):
    path: str
    def pools(self, size):
        return {}
'''


def test_a_file_plug_in_for_data_may_have_a_path_of_its_own(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, DATA)
    plan = tiny_plan(tiny_npz, ["none"], ["blind"], dataset=[
        {"use": f"{file}:Mine", "path": "tiny.npz", "private": 24, "public": 40}])
    dataset = plan.cells[0].dataset
    assert build(dataset.ref).path == str(tiny_npz)
    assert dataset.label == "my_attack.py:Mine:tiny.npz"
    assert dataset.content


# --- threat models and capabilities

def test_an_attack_runs_under_its_own_threat_model_unless_told_otherwise(tiny_npz: Path) -> None:
    assert [cell.threat.name for cell in tiny_plan(tiny_npz, ["none"], ["blind", "key-holder"]).cells] == [
        "ciphertext-only", "full-knowledge"]


def test_what_is_missing_is_named(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none"], [{"use": "key-holder", "threats": ["ciphertext-only", "federated-server"]}])
    assert [cell.missing for cell in plan.cells] == [["key"], ["images", "key"]]


def test_threat_models_with_settings_of_their_own(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none"], [{"use": "blind", "threats": ["kp2", "kp3"]}], threat=[
        {"name": "kp2", "base": "known-plaintext", "pairs": 2}, {"name": "kp3", "base": "kp2", "pairs": 3}])
    assert [(cell.threat.name, cell.threat.pairs) for cell in plan.cells] == [("kp2", 2), ("kp3", 3)]
    assert len({cell.id for cell in plan.cells}) == 2


def test_a_chain_requires_what_both_do_save_the_images_it_makes(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, ["none"], [{"use": "gradient-matching", "then": {"use": "jigsaw", "restarts": 2}}])
    (cell,) = plan.cells
    assert cell.attack.label == "gradient-matching+jigsaw"
    assert cell.attack.requires == {"public", "algorithm", "model", "gradients"}
    assert [ref.params for ref in cell.attack.refs] == [{}, {"restarts": 2}]
    assert cell.missing == []


@pytest.mark.parametrize(("more", "words"), [
    ({"attack": [{"use": "blind", "threats": ["white-bx"]}]}, ["blind", "'white-bx'", "did you mean white-box?"]),
    ({"threat": [{"name": "x", "base": "white-bx"}]}, ["threat.x", "'white-bx'", "did you mean white-box?"]),
    ({"threat": [{"name": "x", "base": "known-plaintext", "pairs": 0}]}, ["threat.x", "at least 1"]),
    ({"threat": [{"name": "white-box", "base": "ciphertext-only"}]}, ["threat.white-box", "choose a new one"]),
    ({"threat": [{"name": "x", "base": "known-plaintext", "pairs": n} for n in (1, 2)]}, ["threat.x", "a new one"]),
    ({"targets": 25}, ["targets is 25", "24 private images", "lower targets or raise private"]),
    ({"defense": [{"use": "patch-shuffle", "key_scope": "global"}]}, ["patch-shuffle", "'global'", "one of image"]),
    ({"defense": [{"use": "none", "key_scope": "global"}]}, ["none", "'global'", "no key"]),
    ({"defense": [{"use": "mixup", "patch": "x"}]}, ["mixup", "'patch'", "'x'"]),
    ({"defense": [{"use": "mixup", "pach": 1}]}, ["mixup", "'pach'", "did you mean patch?"]),
    ({"attack": [{"use": "blind", "then": {"use": "memorization"}}]}, ["memorization", "let it come first"]),
    ({"attack": [{"use": "blind", "then": {"use": "jigsw"}}]}, ["'jigsw'", "did you mean jigsaw?"]),
    ({"victim": {"epoch": 1}}, ["victim", "'epoch'", "did you mean epochs"]),
    ({"victim": {"epochs": 0}}, ["victim", "epochs is 0"]),
    ({"victim": {"model": "resnet"}}, ["victim", "'resnet'", "timm:NAME"]),
    ({"dataset": [{"use": "npz"}]}, ["npz", "'path'"]),
    ({"dataset": [{"use": "npz:"}]}, ["'npz:'", "write npz:PATH"]),
    ({"dataset": [{"use": "photos:x"}]}, ["photos", "no parameter 'path'"]),
])
def test_what_cannot_be_resolved_is_refused(tiny_npz: Path, more: dict[str, Any], words: list[str]) -> None:
    text = complaint(lambda: tiny_plan(tiny_npz, ["none"], ["blind"], **more))
    for word in words:
        assert word in text, text


def test_the_same_threat_model_twice_is_one(tiny_npz: Path) -> None:
    table = {"name": "kp2", "base": "known-plaintext", "pairs": 2}
    assert len(tiny_plan(tiny_npz, ["none"], [{"use": "blind", "threats": ["kp2"]}], threat=[table, table]).cells) == 1


@pytest.mark.parametrize(("old", "new", "words"), [
    ('frozenset({"images", "public"})', 'frozenset({"image"})', ["unknown capability 'image'", "did you mean images?"]),
    ('"white-box"', '"white-bx"', ["no threat model 'white-bx'"])])
def test_a_plug_in_that_asks_for_what_there_is_not_is_refused(tiny_npz: Path, tmp_path: Path, old: str, new: str,
                                                              words: list[str]) -> None:
    file = plugin(tmp_path, MINE.replace(old, new))
    text = complaint(lambda: tiny_plan(tiny_npz, ["none"], [f"{file}:Mine"]))
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("scopes", ['("user",)', '"image"', "[]", "{'image'}"])
def test_a_defense_with_scopes_that_the_frame_does_not_know_is_refused(tiny_npz: Path, tmp_path: Path,
                                                                       scopes: str) -> None:
    file = plugin(tmp_path, f'''
class Mine(PerImageDefense):
    key_scopes = {scopes}
    def encrypt(self, images, key, rng):
        return images
''')
    assert "tuple of image, client, global" in complaint(lambda: tiny_plan(tiny_npz, [f"{file}:Mine"], ["blind"]))


def test_the_key_scope_is_the_defenses_first_unless_given(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, [], ["blind"], defense=[
        {"use": "block-scrambling"}, {"use": "block-scrambling", "key_scope": "image"}, {"use": "none"}])
    assert [cell.defense.key_scope for cell in plan.cells] == ["global", "image", None]
    assert len({cell.id for cell in plan.cells}) == 3


# --- LPIPS

def test_lpips_is_looked_for_before_the_run_only_where_it_is_wanted(tiny_npz: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def found(net: str, download: bool = False) -> str:
        asked.append((net, download))
        return "LPIPS weights not found: fetch them"

    monkeypatch.setattr("ppbench.resolve.find_trunk", found)
    assert tiny_plan(tiny_npz, ["none"], ["blind"], score={"groups": ["ssim"]}).lpips == ""
    assert asked == []
    plan = tiny_plan(tiny_npz, ["none"], ["blind"], score={"groups": ["lpips"], "lpips_trunk": "alex"})
    assert asked == [("alex", True)]
    assert plan.lpips == "LPIPS weights not found: fetch them"
    monkeypatch.setattr("ppbench.resolve.find_trunk", lambda net, download: "lpips 0.1")
    again = tiny_plan(tiny_npz, ["none"], ["blind"], score={"groups": ["lpips"], "lpips_trunk": "alex"})
    assert again.fingerprint(again.cells[0]) != plan.fingerprint(plan.cells[0])  # measured once the weights are there


def test_built_in_data_needs_no_folder(tmp_path: Path) -> None:
    suite = validate({"dataset": [{"use": "photos"}], "defense": [{"use": "none"}], "attack": [{"use": "blind"}],
                      "score": {"groups": ["psnr"]}}, "x")
    dataset = make_plan(suite, tmp_path).cells[0].dataset
    assert (dataset.label, dataset.size, dataset.content) == ("photos", 32, "")


TRAINS = """
@dataclass(frozen=True)
class Sneaky(TrainingAttack):
    requires = frozenset({"model"})
    default_threat = "federated-server"
    def run(self, view, priors, rng):
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape))

@dataclass(frozen=True)
class Crafty(CraftingAttack):
    requires = frozenset({"gradients"})
    default_threat = "federated-server"
    def craft(self, view, rng):
        return view.model
    def run(self, view, priors, rng):
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape))

@dataclass(frozen=True)
class Asks(Attack):
    requires = frozenset({"images", "oracle"})
    default_threat = "chosen-plaintext"
    def run(self, view, priors, rng):
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape))
"""


def test_an_attack_that_acts_in_training_must_say_so(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, TRAINS)
    assert 'add "training"' in complaint(lambda: tiny_plan(tiny_npz, ["none"], [f"{file}:Sneaky"]))


def test_an_attack_that_crafts_the_model_must_say_so(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, TRAINS)
    assert 'add "gradients" and "server"' in complaint(lambda: tiny_plan(tiny_npz, ["none"], [f"{file}:Crafty"]))


def test_the_inner_attack_of_a_chain_crafts_no_model(tiny_npz: Path) -> None:
    chain = {"use": "gradient-matching", "then": {"use": "imprint"}, "threats": ["malicious-server"]}
    assert "let it come first" in complaint(lambda: tiny_plan(tiny_npz, ["none"], [chain]))


def test_the_inner_attack_of_a_chain_asks_no_oracle(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, TRAINS)
    chain = {"use": "memorization", "then": {"use": f"{file}:Asks"}, "threats": ["full-knowledge"]}
    assert "let it stand alone" in complaint(lambda: tiny_plan(tiny_npz, ["none"], [chain]))

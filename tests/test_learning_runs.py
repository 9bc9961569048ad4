"""Runs whose victims are federated, adapted to keys, started from given weights, or taught anew in every epoch."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import plugin, tiny_plan, tiny_run

from ppbench import central, codec
from ppbench.display import Terminal, _Now
from ppbench.engine.inline import Inline
from ppbench.errors import UserError
from ppbench.flow import Flow
from ppbench.lessons import Lesson, Renewed
from ppbench.model import Model, Update, for_images
from ppbench.partial import Partial
from ppbench.plan import Plan
from ppbench.runner import check
from ppbench.stages.values import Clients, Keyring, Protected
from ppbench.store import Store
from ppbench.training import Trainer

VIT: dict[str, Any] = {"model": "timm:vit_tiny_patch16_224",
                       "kwargs": {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}}
CIPHER = {"use": "block-scrambling", "quantise": 0}


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tiny" / "results.csv").astype(object)


def stored(folder: Path, kind: str, of: type) -> list[Any]:
    return [codec.load(of, path) for path in sorted((folder / ".store" / kind).glob("*/data.safetensors"))]


def plan(npz: Path, defenses: list[dict[str, Any]], victim: dict[str, Any], **more: Any) -> Plan:
    return tiny_plan(npz, [], ["blind"], defense=defenses, victim={"epochs": 2, **victim},
                     score={"groups": ["ssim", "task"]}, **more)


def test_a_federation_with_one_key_learns_what_one_without_protection_learns(tiny_npz: Path, tmp_path: Path) -> None:
    federation = VIT | {"clients": 3, "skew": 1.0, "optimizer": "sgd", "learning_rate": 0.1, "epochs": 4,
                        "local_epochs": 2}
    tiny_run(plan(tiny_npz, [CIPHER, CIPHER | {"key_scope": "client"}], federation), tmp_path)
    shared, own = rows(tmp_path).to_dict("records")
    assert shared["task_accuracy"] == shared["task_accuracy_plain"]
    assert (shared["victim_adapted"], own["victim_adapted"]) == ("weights", "no")
    assert own["clients"] == 3
    (clients,) = stored(tmp_path, "clients", Clients)
    scoped = [keys.private for keys in stored(tmp_path, "keys", Keyring)
              if keys.private is not None and len(keys.private.values["blocks"]) == 3]
    assert torch.equal(scoped[0].owner, clients.private)  # who holds an image protects it
    (test,) = [keys.test for keys in stored(tmp_path, "keys", Keyring)
               if keys.test is not None and len(keys.test.values["blocks"]) == 3]
    assert torch.equal(test.owner, clients.test)
    assert len(clients.test.unique()) == 3
    assert clients.private.bincount(minlength=3).min() >= 2


def test_a_federation_needs_somebody_who_holds_the_images(tiny_npz: Path) -> None:
    with pytest.raises(UserError, match=r"bn-synthesis releases images that no client holds.*clients = 1"):
        plan(tiny_npz, [{"use": "bn-synthesis"}], {"clients": 2})
    plan(tiny_npz, [{"use": "bn-synthesis", "victim": {"clients": 1}}], {"clients": 2})
    with pytest.raises(UserError, match="leave one of the two out"):
        plan(tiny_npz, [{"use": "block-scrambling", "key_scope": "client", "clients": 3}], {"clients": 2})


def test_defenses_that_differ_for_the_victim_alone_share_keys_and_release(tiny_npz: Path, tmp_path: Path) -> None:
    result, _ = tiny_run(plan(tiny_npz, [CIPHER, CIPHER | {"absorb": "none"}], VIT), tmp_path)
    assert result.computed["release"] == result.computed["keys"] == 2  # that of the plain victim is the other
    assert result.computed["start"] == result.computed["victim"] == 3
    assert rows(tmp_path).victim_adapted.tolist() == ["weights", "no"]


def test_a_defense_may_have_a_victim_of_its_own(tiny_npz: Path, tmp_path: Path) -> None:
    result, _ = tiny_run(plan(tiny_npz, [{"use": "none"}, {"use": "none", "victim": {"kwargs": {"width": 4}}}],
                              {"kwargs": {"width": 2, "grid": 4}}), tmp_path)
    assert result.computed["victim"] == 2
    params = rows(tmp_path).victim_params.tolist()
    assert '"width":2' in params[0]
    assert '"width":4' in params[1]


@pytest.mark.parametrize("more", [{"protect_anew": True}, {"augment": "crop-flip"}])
def test_clients_may_protect_anew_in_every_epoch(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 more: dict[str, Any]) -> None:
    renewed: list[int] = []
    honest = Renewed.of_epoch

    def counted(self: Renewed, rng: torch.Generator) -> Lesson:
        renewed.append(1)
        return honest(self, rng)

    monkeypatch.setattr(Renewed, "of_epoch", counted)
    calm = {"kwargs": {"width": 2, "grid": 4}}
    tables = [{"use": "none"}, {"use": "patch-shuffle"}]
    first, _ = tiny_run(plan(tiny_npz, tables, calm | more), tmp_path)
    assert first.computed["victim"] == 2  # `none` has the plain one
    assert renewed == [1] * 2 * (2 + 1)  # two victims, two epochs, and a look at the first
    tiny_run(plan(tiny_npz, tables, calm), tmp_path / "calm")
    for release, twin in zip(stored(tmp_path, "release", Protected), stored(tmp_path / "calm", "release", Protected),
                             strict=True):
        assert torch.equal(release.release.images, twin.release.images)  # what the attack sees is the same


def test_weights_to_start_from_are_taken_over_and_named_by_content(tiny_npz: Path, tmp_path: Path) -> None:
    given = for_images(VIT["model"], VIT["kwargs"], (3, 16, 16), 3)
    net = given.build()
    torch.save({"state_dict": net.net.state_dict()}, tmp_path / "vit.pt")
    victim = VIT | {"weights": "vit.pt"}
    tiny_run(plan(tiny_npz, [{"use": "none"}], victim), tmp_path)
    for start in stored(tmp_path, "start", Model):
        assert torch.equal(start.state["net.pos_embed"], net.state_dict()["net.pos_embed"])
    assert '"weights":"vit.pt@' in rows(tmp_path).victim_params[0]
    before = plan(tiny_npz, [{"use": "none"}], victim).cells[0].id
    torch.save({"state_dict": {k: v + 1 for k, v in net.net.state_dict().items()}}, tmp_path / "vit.pt")
    assert plan(tiny_npz, [{"use": "none"}], victim).cells[0].id != before


def test_weights_that_do_not_fit_are_told_before_anything_is_computed(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file: give one"):
        plan(tiny_npz, [{"use": "none"}], {"weights": "absent.pt"})
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"not those of the victim .* choose the model"):
        check(plan(tiny_npz, [{"use": "none"}], {"weights": "other.pt"}))


def test_a_vit_whose_patches_do_not_match_the_blocks_is_told_before_anything_is_computed(tiny_npz: Path) -> None:
    wide = VIT | {"kwargs": VIT["kwargs"] | {"patch_size": 2}}
    with pytest.raises(UserError, match=r"block-scrambling on npz:tiny.npz: .*patch"):
        check(plan(tiny_npz, [CIPHER], wide))
    check(plan(tiny_npz, [CIPHER | {"absorb": "none"}], wide))


def test_an_update_may_be_taken_in_the_middle_of_the_training(tiny_npz: Path, tmp_path: Path) -> None:
    file = plugin(tmp_path, '''
@dataclass(frozen=True)
class Look(Attack):
    """Return the sum of the weights as a picture."""
    requires = frozenset({"gradients", "model"})
    default_threat = "federated-server"
    def run(self, view, priors, rng):
        assert view.update.local_steps == 3
        total = sum(v.double().abs().sum() for v in view.model.state.values()) % 1
        return Reconstruction(torch.full((view.n_targets, *view.image_shape), float(total)))
''')
    threats = [{"name": f"round-{at}", "base": "federated-server", "round": at, "local_steps": 3}
               for at in ("first", 1, 2, "last")]
    victim = {"epochs": 2, "clients": 2, "kwargs": {"width": 2, "grid": 4}}
    with pytest.raises(UserError, match="trained for 2 rounds: name a round up to 2"):
        tiny_plan(tiny_npz, ["none"], [{"use": "gradient-matching", "threats": ["late"]}], victim=victim,
                  threat=[{"name": "late", "base": "federated-server", "round": 3}])
    attack = {"use": f"{file}:Look", "threats": [threat["name"] for threat in threats]}
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none"], [attack], threat=threats, victim=victim), tmp_path)
    assert result.computed["victim"] == 2  # the second round is the last
    assert rows(tmp_path).status.tolist() == ["ok"] * 4
    shown = [codec.load(dict[str, torch.Tensor], path) for path in  # type: ignore[arg-type]
             (tmp_path / "tiny" / "cells").glob("*/scores.safetensors")]
    assert len(shown) == 4
    first, one, two, last = rows(tmp_path).ssim.tolist()
    assert len({first, one, last}) == 3
    assert two == last


def test_a_loss_that_does_not_fall_is_said_in_the_row(tiny_npz: Path, tmp_path: Path) -> None:
    tiny_run(plan(tiny_npz, [{"use": "none"}], {"learning_rate": 1e-12, "epochs": 3,
                                                "kwargs": {"width": 2, "grid": 4}}), tmp_path)
    assert "victim: the loss did not fall in 3 epochs" in rows(tmp_path).note[0]


def test_a_killed_training_goes_on_in_the_next_run(tiny_npz: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(central, "KEEP_EVERY", -1.0)
    epochs: list[int] = []
    honest = Trainer.epoch

    def counted(self: Trainer, *given: Any) -> list[float]:
        epochs.append(1)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return honest(self, *given)

    monkeypatch.setattr(Trainer, "epoch", counted)
    made = plan(tiny_npz, [{"use": "none"}], {"epochs": 6, "kwargs": {"width": 2, "grid": 4}})
    with pytest.raises(KeyboardInterrupt):
        tiny_run(made, tmp_path)
    assert len(list((tmp_path / ".store" / "partial").glob("victim-*"))) == 1
    tiny_run(made, tmp_path)
    assert len(epochs) == 4 + 3
    assert not list((tmp_path / ".store" / "partial").iterdir())  # it goes when the victim is there
    tiny_run(made, tmp_path / "undisturbed")
    assert rows(tmp_path).task_accuracy[0] == rows(tmp_path / "undisturbed").task_accuracy[0]


def test_a_moved_run_finds_a_defenses_files_again(tiny_npz: Path, tmp_path: Path) -> None:
    place = tmp_path / "one"
    place.mkdir()
    (place / "tiny.npz").write_bytes(tiny_npz.read_bytes())
    (place / "table.txt").write_text("0.25")
    plugin(place, """
@dataclass(frozen=True)
class Fade(PerImageDefense):
    "Fade to a grey that a file names."
    files = ("table",)
    table: str = ""
    def encrypt(self, images, key, rng):
        return images * 0.5 + 0.5 * float(open(self.table).read())
""", "fade.py")
    plugin(place, """
@dataclass(frozen=True)
class Runs(Attack):
    "Run the defense."
    requires = frozenset({"images", "public", "algorithm"})
    default_threat = "ciphertext-only"
    bright: float = 0.0
    def run(self, view, priors, rng):
        grey = view.algorithm.protect(view.public, rng).images.mean()
        return Reconstruction(grey.expand(view.n_targets, *view.image_shape).clone())
""", "runs.py")

    def planned(folder: Path, bright: float) -> Plan:
        return tiny_plan(folder / "tiny.npz", [], [{"use": "runs.py:Runs", "bright": bright}],
                         defense=[{"use": "fade.py:Fade", "table": "table.txt"}])

    first, _ = tiny_run(planned(place, 0.0), place / "runs", "processes")
    assert first.rows[0]["status"] == "ok", first.rows[0]["reason"]
    assert '"table":"table.txt@' in first.rows[0]["defense_params"]
    moved = tmp_path / "two"
    place.rename(moved)
    assert tiny_run(planned(moved, 0.0), moved / "runs", "processes")[0].computed == {}
    again, _ = tiny_run(planned(moved, 0.5), moved / "runs", "processes")
    assert again.rows[0]["status"] == "ok", again.rows[0]["reason"]
    assert "view" not in again.computed
    before = planned(moved, 0.0).cells[0].id
    (moved / "table.txt").write_text("0.75")
    assert planned(moved, 0.0).cells[0].id != before


def test_whoever_knows_the_starting_weights_reads_private_images_out_of_encrypted_ones_gradients(
        tiny_npz: Path, tmp_path: Path) -> None:
    """Closed form, then the key by how it permuted the published weights; of weights that nobody published, no key."""
    known, unknown = ({**CIPHER, "victim": {"weights": weights}} for weights in ("random", ""))
    made = plan(tiny_npz, [known, unknown], VIT, attack=[{"use": "gradient-matching+key-recovery",
                                                         "threats": ["alone"]}],
                threat=[{"name": "alone", "base": "federated-server", "batch": 1}])
    tiny_run(made, tmp_path)
    whole, none = rows(tmp_path).to_dict("records")
    assert whole["status"] == none["status"] == "ok", (whole["reason"], none["reason"])
    assert whole["ssim"] > 0.999
    assert "by the weights" in whole["note"]
    assert none["ssim"] < 0.9
    assert "by the weights" not in none["note"]


def test_weights_that_change_under_a_run_are_not_believed(tiny_npz: Path, tmp_path: Path) -> None:
    net = for_images(VIT["model"], VIT["kwargs"], (3, 16, 16), 3).build()
    torch.save(net.net.state_dict(), tmp_path / "vit.pt")
    made = plan(tiny_npz, [{"use": "none"}], VIT | {"weights": "vit.pt"})
    torch.save({name: value + 1 for name, value in net.net.state_dict().items()}, tmp_path / "vit.pt")
    with pytest.raises(UserError, match="changed or removed during the run"):
        tiny_run(made, tmp_path)


def test_another_defenses_victim_changes_no_other_row(tiny_npz: Path) -> None:
    alone = plan(tiny_npz, [{"use": "none"}], {})
    beside = plan(tiny_npz, [{"use": "none"}, {"use": "patch-shuffle", "victim": {"model": "timm:test_resnet"}}], {})
    assert alone.fingerprint(alone.cells[0]) == beside.fingerprint(beside.cells[0])
    assert alone.environment == beside.environment


@pytest.mark.parametrize(("defenses", "victim", "words"), [
    ([{"use": "mixup", "images": 2}], {"clients": 2}, "mixes the images of several clients"),
    ([{"use": "instahide"}], {"clients": 2}, "mixes the images of several clients"),
    ([{"use": "none"}], {"clients": 13}, "24 private images are too few for 13 clients"),
    ([{"use": "bn-synthesis", "images": 3}], {}, "targets is 4, but bn-synthesis releases 3 images"),
    ([{"use": "none"}], {"clients": 2, "steps": 10}, "0 in a federation"),
    ([{"use": "none"}], {"weights": "~nosuchuser/x"}, "is no path"),
])
def test_tables_that_cannot_go_together_are_told(tiny_npz: Path, defenses: list[dict[str, Any]], victim: dict[str, Any],
                                                 words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(tiny_npz, defenses, victim)


def test_a_victim_of_one_client_leaves_the_federation_behind(tiny_npz: Path) -> None:
    made = plan(tiny_npz, [{"use": "none", "victim": {"clients": 1}}, {"use": "none"}],
                {"clients": 2, "skew": 0.5, "local_epochs": 2})
    assert [(cell.victim.clients, cell.victim.skew) for cell in made.cells] == [(1, None), (2, 0.5)]


def test_another_model_leaves_arguments_and_weights_behind(tiny_npz: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "vit.pt")
    made = plan(tiny_npz, [{"use": "none", "victim": {"model": "timm:test_resnet"}}, {"use": "none"},
                           {"use": "none", "victim": {"epochs": 3}}], VIT | {"weights": "vit.pt"})
    assert [bool(cell.victim.weights) for cell in made.cells] == [False, True, True]
    assert [cell.victim.kwargs for cell in made.cells] == [{}, VIT["kwargs"], VIT["kwargs"]]


def test_the_update_is_of_the_victims_own_loss(tiny_npz: Path, tmp_path: Path) -> None:
    seen = []
    for smoothing in (0.0, 0.3):
        tiny_run(tiny_plan(tiny_npz, ["none"], [{"use": "gradient-matching", "steps": 2}], targets=4,
                           victim={"epochs": 1, "label_smoothing": smoothing, "kwargs": {"width": 2, "grid": 4}}),
                 tmp_path / str(smoothing))
        (update,) = stored(tmp_path / str(smoothing), "update", Update)
        assert update.label_smoothing == smoothing
        seen.append(update.values["net.1.bias"])
    assert not torch.allclose(seen[0], seen[1])


def test_what_runs_is_told_with_its_progress(tiny_npz: Path, tmp_path: Path) -> None:
    flow = Flow(plan(tiny_npz, [{"use": "none"}], {}), Store(tmp_path / "store"), Inline(), {})
    assert flow.now() == ""
    Partial(tmp_path / "a").report(5, 20, "epochs")
    flow.running = {"1": ("victim", tmp_path / "a"), "2": ("attack", tmp_path / "b"), "3": ("attack", tmp_path / "c")}
    assert flow.now() == "victim 5/20 epochs, 2 attack"
    terminal = Terminal()
    terminal.watch(flow.now)
    assert _Now(terminal).render(None).plain == flow.now()  # type: ignore[arg-type]

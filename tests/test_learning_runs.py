"""Runs whose victims are federated, adapted to keys, started from given weights, or taught anew in every epoch."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import plugin, tiny_plan, tiny_run

from ppbench import central, codec
from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.plan import Plan
from ppbench.runner import check
from ppbench.stages.values import Clients, Keyring, Protected
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
def test_clients_may_protect_anew_in_every_epoch(tiny_npz: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    calm = {"kwargs": {"width": 2, "grid": 4}}
    tables = [{"use": "none"}, {"use": "patch-shuffle"}]
    first, _ = tiny_run(plan(tiny_npz, tables, calm | more), tmp_path)
    assert first.computed["victim"] == 2  # `none` has the plain one
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
    attack = {"use": f"{file}:Look", "threats": [threat["name"] for threat in threats]}
    tiny_run(tiny_plan(tiny_npz, ["none"], [attack], threat=threats,
                       victim={"epochs": 2, "clients": 2, "kwargs": {"width": 2, "grid": 4}}), tmp_path)
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

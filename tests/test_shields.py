"""Victims that learn from protected updates, in one place and in a federation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import tiny_plan, tiny_run
from torch import Tensor, nn

from ppbench import central
from ppbench.central import School, train_centrally
from ppbench.defenses.gradient_noise import GradientNoise
from ppbench.federated import train_federated
from ppbench.lessons import Lesson, Lessons, Same
from ppbench.model import Update
from ppbench.partial import kept_in
from ppbench.recipe import Recipe
from ppbench.seeding import generator
from ppbench.task import Classification
from ppbench.training import Shield

OWNER = torch.arange(20) % 2
MATCHING = {"use": "gradient-matching", "steps": 3}


def lesson() -> Lesson:
    return Lesson(torch.rand(20, 1, 4, 4, generator=generator(5)), torch.arange(20) % 3)


def taught(clients: int, shield: Shield | None, lessons: Lessons | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    recipe = Recipe(epochs=4, batch=5, learning_rate=0.02, clients=clients)
    school = School("small", lessons or Same(lesson()), 20, recipe, Classification(), shield=shield)
    if clients == 1:
        train_centrally(net, school, generator(7))
    else:
        train_federated(net, school, OWNER, generator(7))
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Compare weights: a shift in front of batch normalisation has no gradient but noise, which Adam makes large."""
    names = ("1.weight", "2.weight", "2.bias", "4.weight", "4.bias")
    return all(torch.allclose(first[name], second[name], atol=1e-4) for name in names)


@pytest.mark.parametrize(("clients", "count"), [(1, 16), (2, 8)])
def test_every_update_is_shielded_by_its_number(clients: int, count: int) -> None:
    seen: list[tuple[int, int, int]] = []

    def shield(update: Update, number: int) -> Update:
        assert set(update.values) == {f"{layer}.{name}" for layer in (1, 2, 4) for name in ("weight", "bias")}
        assert all(len(value) == 1 for value in update.values.values())
        seen.append((number, update.batch, update.local_steps))
        return update

    unshielded = taught(clients, None)
    assert same(taught(clients, shield), unshielded)
    assert [number for number, _, _ in seen] == list(range(count))
    assert {rest for _, *rest in map(tuple, seen) for rest in [tuple(rest)]} == {(5, 1) if clients == 1 else (10, 2)}


@pytest.mark.parametrize("clients", [1, 2])
def test_what_is_not_sent_is_not_learnt(clients: int) -> None:
    def silent(update: Update, number: int) -> Update:
        return replace(update, values={name: torch.zeros_like(value) for name, value in update.values.items()})

    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).state_dict()
    weight = taught(clients, silent)["4.weight"]
    decay = 1.0 if clients > 1 else float((weight / fresh["4.weight"]).mean())  # weight decay is the trainer's own
    torch.testing.assert_close(weight, fresh["4.weight"] * decay)
    assert 0.9 < decay <= 1


class Stop(Exception):
    """The power fails."""


class Failing(Lessons):
    """Lessons that end in a power failure."""

    def __init__(self, after: int) -> None:
        self.left = after

    def of_epoch(self, rng: torch.Generator) -> Lesson:
        if self.left == 0:
            raise Stop
        self.left -= 1
        return lesson()


@pytest.mark.parametrize("clients", [1, 2])
def test_a_killed_training_draws_the_same_noise_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      clients: int) -> None:
    monkeypatch.setattr(central, "KEEP_EVERY", -1.0)
    monkeypatch.setattr("ppbench.federated.KEEP_EVERY", -1.0)

    def noisy(update: Update, number: int) -> Update:
        rng = generator(number)
        return replace(update, values={name: value + 0.01 * torch.randn(value.shape, generator=rng)
                                       for name, value in update.values.items()})

    undisturbed = taught(clients, noisy)
    assert not same(undisturbed, taught(clients, None))
    with kept_in(tmp_path):
        with pytest.raises(Stop):
            taught(clients, noisy, Failing(2))
        assert same(taught(clients, noisy, Failing(2)), undisturbed)


def rows(folder: Path, npz: Path, defenses: list[Any], attack: dict[str, Any] = MATCHING,
         **more: Any) -> pd.DataFrame:
    victim = {"epochs": 2, "kwargs": {"width": 2, "grid": 4}, **more}
    plan = tiny_plan(npz, [], [{**attack, "threats": ["one"]}], defense=[{"use": "none"}, *defenses],
                     targets=4, victim=victim, threat=[{"name": "one", "base": "federated-server", "batch": 1}],
                     score={"groups": ["ssim", "task"]})
    tiny_run(plan, folder)
    return pd.read_csv(folder / "tiny" / "results.csv")


def test_statistics_that_no_noise_covers_leave_no_epsilon_of_the_training(tiny_npz: Path, tmp_path: Path) -> None:
    noise = {"use": "gradient-noise", "clip": 0.01, "noise": 10.0}
    net = {"model": "ppbench.nets:cifar_resnet", "kwargs": {"depth": 8}}
    found = rows(tmp_path, tiny_npz, [noise], {"use": "blind"}, **net).iloc[1]
    assert found["epsilon_update"] == pytest.approx(GradientNoise(noise=10.0).epsilon(1))
    assert pd.isna(found["epsilon_training"])


@pytest.mark.parametrize("clients", [1, 2])
def test_a_run_trains_on_protected_updates_and_attacks_them(tiny_npz: Path, tmp_path: Path, clients: int) -> None:
    noise = {"use": "gradient-noise", "clip": 0.01, "noise": 10.0}
    found = rows(tmp_path, tiny_npz, [noise, {"use": "secure-aggregation", "cohort": 2}], clients=clients)
    assert (found["status"] == "ok").all()
    assert found["aligned"].tolist() == ["true", "true", "within 2"]
    assert found["epsilon_update"].iloc[1] == pytest.approx(GradientNoise(noise=10.0).epsilon(1))
    assert found["epsilon_training"].iloc[1] == pytest.approx(GradientNoise(noise=10.0).epsilon(2))
    assert found[["epsilon_update", "epsilon_training"]].iloc[[0, 2]].isna().all(axis=None)
    trained = torch.stack([value["net.1.weight"] for value in states(tmp_path)])  # In no order that means anything.
    gaps = (trained[:, None] - trained).abs().amax((2, 3))
    assert gaps.shape == (3, 3)
    assert sorted((gaps > 1e-4).sum(1).tolist()) == [1, 1, 2], "the noise alone changes what is trained"
    assert found["task_accuracy_plain"].nunique() == 1


def states(folder: Path) -> list[dict[str, Tensor]]:
    from ppbench import codec
    from ppbench.stages.values import Trained

    loaded = [codec.load(Trained, path) for path in sorted((folder / ".store" / "victim").glob("*/data.safetensors"))]
    return [one.model.state or {} for one in loaded]

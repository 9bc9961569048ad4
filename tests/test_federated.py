"""Dealing images to clients, and federated averaging against a plain loop."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ppbench.central import School
from ppbench.errors import UserError
from ppbench.federated import deal, train_federated
from ppbench.lessons import Lesson, Same
from ppbench.recipe import Recipe
from ppbench.seeding import generator
from ppbench.task import Classification
from ppbench.training import rate

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}


def lesson(count: int = 12) -> Lesson:
    return Lesson(torch.rand(count, 1, 4, 4, generator=generator(5)), torch.arange(count) % 3)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def school(recipe: Recipe, of: Lesson) -> School:
    return School("small", Same(of), len(of), recipe, Classification())


@given(st.integers(2, 5), st.integers(10, 60), st.integers(0, 2**32))
def test_equal_shares_differ_by_one_at_most(clients: int, count: int, seed: int) -> None:
    sizes = deal(torch.zeros(count, dtype=torch.int64), clients, None, generator(seed)).bincount(minlength=clients)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1


@given(st.sampled_from([0.3, 1.0, 100.0]), st.integers(0, 2**32))
def test_skewed_shares_leave_nobody_out(skew: float, seed: int) -> None:
    labels = torch.arange(200) % 4
    owner = deal(labels, 4, skew, generator(seed))
    assert owner.bincount(minlength=4).min() >= 2
    assert torch.equal(owner, deal(labels, 4, skew, generator(seed)))


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    labels = torch.arange(4000) % 10

    def largest(skew: float) -> float:
        owner = deal(labels, 5, skew, generator(0))
        counts = torch.stack([labels[owner == client].bincount(minlength=10) for client in range(5)]).double()
        return float((counts / counts.sum(0)).max(0).values.mean())

    assert largest(0.1) > 0.6
    assert largest(1000.0) < 0.25


def test_too_few_images_are_told() -> None:
    with pytest.raises(UserError, match="lower clients"):
        deal(torch.zeros(5, dtype=torch.int64), 3, None, generator(0))
    with pytest.raises(UserError, match="raise skew"):
        deal(torch.zeros(40, dtype=torch.int64), 20, 0.01, generator(0))


def test_averaging_agrees_with_a_plain_loop() -> None:
    """Full batches and plain SGD without momentum's memory: one step a client and round can be written by hand."""
    of, owner = lesson(), torch.tensor([0] * 4 + [1] * 8)
    recipe = Recipe(clients=2, epochs=3, batch=99, **SGD)
    net, plain = small(), small()
    train_federated(net, school(recipe, of), owner, generator(0))
    for turn in range(3):
        states = []
        for client in range(2):
            twin = copy.deepcopy(plain).train()
            rows = owner == client
            F.cross_entropy(twin(of.images[rows]), of.goals[rows]).backward()
            with torch.no_grad():
                for value in twin.parameters():
                    assert value.grad is not None
                    value -= 0.1 * rate(turn, 3) * value.grad
            states.append(twin.state_dict())
        plain.load_state_dict({name: states[0][name] / 3 + states[1][name] * 2 / 3 if value.is_floating_point()
                               else states[1][name] for name, value in plain.state_dict().items()})
    for name, value in plain.state_dict().items():
        assert torch.allclose(net.state_dict()[name].double(), value.double(), atol=1e-6), name


def test_clients_with_equal_images_learn_what_one_of_them_learns() -> None:
    of = lesson(6)
    twice = Lesson(of.images.repeat(2, 1, 1, 1), of.goals.repeat(2))
    recipe = Recipe(clients=2, epochs=4, local_epochs=2, batch=99, **SGD)
    both, alone = small(), small()
    train_federated(both, school(recipe, twice), torch.tensor([0] * 6 + [1] * 6), generator(0))
    train_federated(alone, school(recipe, of), torch.zeros(6, dtype=torch.int64), generator(0))
    for name, value in alone.state_dict().items():
        assert torch.allclose(both.state_dict()[name].double(), value.double(), atol=1e-5), name


def test_a_stopped_federation_stands_where_the_round_ended() -> None:
    of, owner = lesson(), torch.arange(12) % 2
    recipe = Recipe(clients=2, epochs=4, batch=4, **SGD)
    whole, part = small(), small()
    train_federated(whole, school(recipe, of), owner, generator(0))
    train_federated(part, School("small", Same(of), 12, recipe, Classification(), until=2), owner, generator(0))
    assert not torch.equal(whole.state_dict()["1.weight"], part.state_dict()["1.weight"])
    seen: list[torch.Tensor] = []

    class Watching(Same):
        """Remember the global weights at the beginning of every round."""

        def of_epoch(self, rng: torch.Generator) -> Lesson:
            seen.append(watched.state_dict()["1.weight"].clone())
            return super().of_epoch(rng)

    watched = small()
    train_federated(watched, School("small", Watching(of), 12, recipe, Classification()), owner, generator(0))
    assert torch.equal(seen[2], part.state_dict()["1.weight"])

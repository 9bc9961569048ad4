"""The training loop: schedules, precision, checkpoints, and what it says when training goes wrong."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppbench import central
from ppbench.central import School, train_centrally
from ppbench.errors import UserError
from ppbench.federated import train_federated
from ppbench.lessons import Lesson, Lessons, Same
from ppbench.partial import kept_in, partial
from ppbench.recipe import Recipe
from ppbench.seeding import generator
from ppbench.task import Classification
from ppbench.training import Course, Trainer, falls_not, rate, steps_of


class Stop(Exception):
    """The power fails."""


class Failing(Lessons):
    """Lessons that end in a power failure."""

    def __init__(self, lesson: Lesson, after: int) -> None:
        self.lesson, self.left = lesson, after

    def of_epoch(self, rng: torch.Generator) -> Lesson:
        if self.left == 0:
            raise Stop
        self.left -= 1
        torch.rand(1, generator=rng)
        return self.lesson


def lesson(count: int = 20) -> Lesson:
    return Lesson(torch.rand(count, 1, 4, 4, generator=generator(5)), torch.arange(count) % 3)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU(),
                         nn.Linear(12, 3))


def school(recipe: Recipe, lessons: Lessons) -> School:
    return School("small", lessons, 20, recipe, Classification())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clients", [1, 3])
def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, clients: int) -> None:
    monkeypatch.setattr(central, "KEEP_EVERY", -1.0)
    monkeypatch.setattr("ppbench.federated.KEEP_EVERY", -1.0)
    recipe = Recipe(epochs=6, batch=8, optimizer=optimizer, learning_rate=0.02, clients=clients)  # type: ignore[arg-type]
    owner = torch.arange(20) % clients

    def train(lessons: Lessons, seed: int) -> nn.Module:
        net = small()
        torch.manual_seed(seed)
        if clients == 1:
            train_centrally(net, school(recipe, lessons), generator(7))
        else:
            train_federated(net, school(recipe, lessons), owner, generator(7))
        return net

    undisturbed = train(Failing(lesson(), 99), 1).state_dict()
    with kept_in(tmp_path):
        for after in (2, 3):
            with pytest.raises(Stop):
                train(Failing(lesson(), after), 1)
        assert len(central.unfolded(partial().load(central.CHECKPOINT) or {})) == 5
        resumed = train(Failing(lesson(), 1), 1).state_dict()  # one epoch is left
        finished = train(Failing(lesson(), 0), 1).state_dict()  # none is left: it was killed before it could say so
    for name, value in undisturbed.items():
        assert torch.equal(resumed[name], value), name
        assert torch.equal(finished[name], value), name


def test_a_trainers_penalty_is_never_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(central, "KEEP_EVERY", -1.0)
    calls: list[int] = []

    def penalty(net: nn.Module) -> Tensor:
        calls.append(1)
        return torch.zeros(())

    monkeypatch.setattr("ppbench.federated.KEEP_EVERY", -1.0)
    recipe = Recipe(epochs=2, batch=20)
    with kept_in(tmp_path):
        for _ in range(2):
            train_centrally(small(), School("small", Same(lesson()), 20, recipe, Classification(), penalty),
                            generator(0))
        assert len(calls) == 4
        for _ in range(2):
            train_federated(small(), School("small", Same(lesson()), 20, recipe, Classification(), penalty),
                            torch.zeros(20, dtype=torch.int64), generator(0))
    assert len(calls) == 8
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [rate(step, 100) for step in range(100)]
    assert rates[9] == 1
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    assert rate(0, 1) == 1


def test_steps_are_counted_as_they_are_taken() -> None:
    for count, batch in ((20, 8), (17, 8), (1, 4), (9, 8)):
        trainer = Trainer(small(), Course("small", Recipe(batch=batch), steps=1))
        if count > 1:
            trainer.epoch(lesson(count), generator(0))
            assert trainer.taken == steps_of(count, batch, 1)
    assert steps_of(17, 8, 3) == 6  # the last single image joins its neighbours


@pytest.mark.usefixtures("bfloat16")
def test_half_precision_learns_as_well() -> None:
    losses = {}
    for amp in (False, True):
        trainer = Trainer(small(), Course("small", Recipe(batch=20, amp=amp, learning_rate=0.02), steps=60))
        torch.manual_seed(3)
        losses[amp] = [trainer.epoch(lesson(), generator(0))[0] for _ in range(60)]
        assert next(trainer.net.parameters()).dtype == torch.float32
    assert losses[True] != losses[False]
    assert losses[True][-1] < 0.7 * losses[True][0]
    assert losses[True][-1] == pytest.approx(losses[False][-1], abs=0.1)


def test_channels_last_is_only_a_layout() -> None:
    def run(channels_last: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        trainer = Trainer(net, Course("small", Recipe(batch=20, channels_last=channels_last), steps=5))
        return torch.tensor([trainer.epoch(lesson(), generator(0))[0] for _ in range(5)])

    assert torch.allclose(run(True), run(False), atol=1e-4)


def test_what_goes_wrong_is_told_in_a_sentence() -> None:
    hot = Trainer(small(), Course("small", Recipe(batch=2, learning_rate=1e30, optimizer="sgd"), steps=10))
    with pytest.raises(UserError, match=r"diverged at step \d of 10 .* lower learning_rate"):
        hot.epoch(lesson(), generator(0))
    with pytest.raises(UserError, match=r"single value to normalise by .* raise batch"):
        Trainer(small(), Course("small", Recipe(batch=1), steps=4)).epoch(lesson(1), generator(0))

    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: Tensor) -> Tensor:
            return torch.empty(2**55)

    with pytest.raises(UserError, match=r"not enough memory .* lower batch"):
        Trainer(Hungry(), Course("hungry", Recipe(), steps=4)).epoch(lesson(), generator(0))


def test_a_loss_that_does_not_fall_is_warned_of_early() -> None:
    flat = [[2.3, 2.3]] * 10
    assert falls_not(flat[:1], 10) == ""  # too early to say
    assert "did not fall in 2 epochs (2.300 to 2.300)" in falls_not(flat[:2], 10)
    assert falls_not([[2.3, 2.2], [2.0, 1.9]], 10) == ""
    assert falls_not(flat, 1) != ""
    assert falls_not([[2.3] * 20], 1) == ""  # one epoch has nothing to be compared with

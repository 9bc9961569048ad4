"""Defenses of updates, by hand and against what they promise."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from ppbench.defense import Defense, UpdateDefense
from ppbench.defenses.gradient_noise import GradientNoise
from ppbench.defenses.gradient_pruning import GradientPruning
from ppbench.defenses.gradient_sign import GradientSign
from ppbench.defenses.secure_aggregation import SecureAggregation
from ppbench.model import Update
from ppbench.seeding import generator

DEFENSES: list[UpdateDefense] = [GradientNoise(), GradientPruning(), GradientSign(), SecureAggregation()]


def update(rows: int = 5, scale: float = 1.0) -> Update:
    rng = generator(0)
    return Update({"weight": scale * torch.randn(rows, 4, 3, generator=rng),
                   "bias": scale * torch.randn(rows, 4, generator=rng)}, 2, 1, 0.1, False)


def norms(of: Update) -> torch.Tensor:
    return torch.stack([value.flatten(1).square().sum(1) for value in of.values.values()]).sum(0).sqrt()


@pytest.mark.parametrize("defense", DEFENSES)
def test_images_are_released_as_they_are(defense: Defense) -> None:
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(defense.query(images, None, generator(0)), images)
    assert defense.key_scopes == ()


def test_updates_are_clipped_to_a_norm_and_smaller_ones_left() -> None:
    sent = GradientNoise(clip=2.0, noise=0).protect_update(update(scale=10), generator(0))
    torch.testing.assert_close(norms(sent), torch.full((5,), 2.0))
    torch.testing.assert_close(sent.values["weight"] / sent.values["weight"].norm(), *[
        update().values["weight"] / norms(update()).reshape(-1, 1, 1) * 2 / sent.values["weight"].norm()])
    small = GradientNoise(clip=1000.0, noise=0).protect_update(update(), generator(0))
    assert all(torch.equal(small.values[name], value) for name, value in update().values.items())


def test_noise_is_gaussian_and_in_proportion_to_the_clip() -> None:
    zero = Update({"weight": torch.zeros(2, 50_000)}, 2, 1, 0.1, False)
    noise = GradientNoise(clip=3.0, noise=0.5).protect_update(zero, generator(0)).values["weight"]
    assert noise.std().item() == pytest.approx(1.5, rel=0.02)
    assert not torch.equal(noise[0], noise[1])
    again = GradientNoise(clip=3.0, noise=0.5).protect_update(zero, generator(0)).values["weight"]
    assert torch.equal(noise, again)


@pytest.mark.parametrize(("noise", "updates"), [(2.0, 1), (4.0, 1), (20.0, 50), (0.5, 1)])
def test_epsilon_is_near_that_of_the_exact_gaussian_mechanism(noise: float, updates: int) -> None:
    """Balle & Wang 2018: delta of a Gaussian mechanism of sensitivity 2, composed, in closed form."""
    found = GradientNoise(noise=noise).epsilon(updates, delta=1e-5)
    assert found is not None
    mu = 2 * math.sqrt(updates) / noise

    def delta(epsilon: float) -> float:
        first, second = (float(norm.cdf(mu / 2 * sign - epsilon / mu)) for sign in (1, -1))
        return first - math.exp(epsilon) * second

    assert delta(found) < 1e-5  # it is a bound,
    assert delta(0.75 * found) > 1e-5  # and a tight one


def test_epsilon_grows_with_updates_and_falls_with_noise() -> None:
    values = [GradientNoise(noise=noise).epsilon(updates) for noise, updates in ((4, 1), (2, 1), (2, 10), (0.01, 1))]
    assert None not in values
    assert values == sorted(value or 0 for value in values)
    assert GradientNoise(noise=0).epsilon(1) is None
    assert GradientSign().epsilon(1) is None


@given(st.floats(0, 1))
def test_pruning_keeps_the_largest_values_of_every_parameter(share: float) -> None:
    before = update()
    sent = GradientPruning(share).protect_update(before, generator(0))
    for name, value in before.values.items():
        flat, kept = value.flatten(1), sent.values[name].flatten(1)
        count = max(1, flat.shape[1] - round(share * flat.shape[1]))
        assert ((kept != 0).sum(1) == count).all()
        assert torch.equal(kept[kept != 0], flat[kept != 0])
        least = torch.where(kept != 0, flat.abs(), math.inf).amin(1)
        assert (least >= torch.where(kept == 0, flat.abs(), 0).amax(1)).all()


def test_signs_by_hand() -> None:
    before = Update({"weight": torch.tensor([[-1.0, 2.0, 0.0, 5.0], [4.0, 4.0, -4.0, 4.0]])}, 2, 1, 0.1, False)
    sent = GradientSign().protect_update(before, generator(0))
    assert sent.values["weight"].tolist() == [[-2, 2, 0, 2], [4, 4, -4, 4]]


def test_signs_are_imitated_by_slopes_that_end_at_the_mean_magnitude() -> None:
    made = {"weight": torch.tensor([[-400.0, 1.0, 1.0, 400.0], [0.0, 0.0, 0.0, 0.0]])}
    found = GradientSign().imitate(made, made)["weight"]
    torch.testing.assert_close(found[0, [0, 3]], 200.5 * torch.tensor([-1.0, 1.0]) * math.tanh(400 / 401))
    assert found[0, 1].item() == pytest.approx(0.5, rel=1e-3)  # within the soft range: half a value, for a range of 2
    assert found[1].tolist() == [0, 0, 0, 0]


def test_what_was_pruned_is_left_out_of_candidates() -> None:
    sent = {"weight": torch.tensor([[0.0, 2.0, 0.0, -5.0]])}
    made = {"weight": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])}
    assert GradientPruning().imitate(made, sent)["weight"].tolist() == [[0, 2, 0, 4], [0, 6, 0, 8]]


@pytest.mark.parametrize("defense", [GradientNoise(), SecureAggregation()])
def test_the_others_leave_candidates_as_they_are(defense: UpdateDefense) -> None:
    made = {"weight": torch.tensor([[1.0, 2.0]])}
    assert defense.imitate(made, made) is made


def test_aggregates_are_means_of_consecutive_clients() -> None:
    before = update(rows=5)
    sent = SecureAggregation(2).protect_update(before, generator(0))
    assert (sent.clients, sent.batch) == (2, 2)
    bias = before.values["bias"]
    torch.testing.assert_close(sent.values["bias"],
                               torch.stack([(bias[0] + bias[1]) / 2, (bias[2] + bias[3]) / 2, bias[4]]))


@pytest.mark.parametrize(("kind", "wrong"), [
    (GradientNoise, {"clip": 0.0}), (GradientNoise, {"noise": -1.0}), (GradientPruning, {"share": 1.5}),
    (GradientPruning, {"share": math.nan}), (SecureAggregation, {"cohort": 0})])
def test_nonsense_is_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)

"""Synthesis with differential privacy: the accountant, what one image can change, and what the release is made from."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import tiny_plan, tiny_run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.data import Images
from ppbench.defenses import dp_synthesis
from ppbench.defenses._accountant import Mechanism, epsilon_of, noise_for
from ppbench.defenses._bn_statistics import group_statistics
from ppbench.defenses._bn_teacher import conv_net
from ppbench.defenses._dp_statistics import SENSITIVITY, Units, noised_statistics, statistics_of, sums_of, units_of
from ppbench.defenses._dp_teacher import Course, clipped_sum, train_privately
from ppbench.defenses.dp_synthesis import DpSynthesis
from ppbench.errors import UserError
from ppbench.partial import kept_in
from ppbench.seeding import generator, seeded

CHEAP = {"steps": 2, "teacher_epochs": 1, "teacher_batch": 8}


def images(count: int, seed: int = 0) -> Images:
    return Images(torch.rand(count, 3, 16, 16, generator=generator(seed)), torch.arange(count) % 3,
                  torch.arange(count))


def network() -> nn.Module:
    with seeded(0):
        return conv_net(3, width=4).eval()


# --- the accountant

@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (4.0, 1), (4.0, 16)])
def test_a_gaussian_mechanism_costs_what_its_formula_says(noise: float, times: int) -> None:
    """Mironov 2017 for the mechanism; Balle et al. 2020 for what it means: the least over orders, here a fine grid."""
    orders = torch.linspace(1.01, 200, 400_000, dtype=torch.float64)
    spent = times * orders / (2 * noise**2)
    found = spent + ((orders - 1) / orders).log() - (math.log(1e-5) + orders.log()) / (orders - 1)
    assert epsilon_of([Mechanism(noise, times)], 1e-5) == pytest.approx(float(found.min()), rel=0.02)


def test_sampling_and_fewer_steps_cost_less_and_mechanisms_add_up() -> None:
    whole, half = Mechanism(1.0, 100), Mechanism(1.0, 100, 0.1)
    assert epsilon_of([half], 1e-5) < epsilon_of([whole], 1e-5) / 5
    assert epsilon_of([Mechanism(1.0, 50, 0.1)], 1e-5) < epsilon_of([half], 1e-5)
    assert epsilon_of([Mechanism(4.0), Mechanism(4.0)], 1e-5) == pytest.approx(epsilon_of([Mechanism(4.0, 2)], 1e-5))


@pytest.mark.parametrize(("budget", "delta"), [(0.5, 1e-5), (8.0, 1e-5), (8.0, 1e-3), (50.0, 1e-5)])
def test_noise_is_the_least_that_keeps_to_a_budget(budget: float, delta: float) -> None:
    beside = (Mechanism(noise_for(budget / 2, delta)),)
    noise = noise_for(budget, delta, 20, 0.2, beside)
    assert epsilon_of([*beside, Mechanism(noise, 20, 0.2)], delta) <= budget
    assert epsilon_of([*beside, Mechanism(0.98 * noise, 20, 0.2)], delta) > budget


def test_a_budget_that_others_have_spent_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise keeps to a budget of 1"):
        noise_for(1.0, 1e-5, beside=(Mechanism(1.0),))


# --- training

def one_by_one(net: nn.Module, of: Images, clip: float) -> list[Tensor]:
    """Each image's gradient, cut to a norm."""
    found = []
    for image, label in zip(of.pixels, of.labels, strict=True):
        loss = F.cross_entropy(net(image[None]), label[None])
        whole = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()))])
        found.append(whole * min(1.0, clip / float(whole.norm())))
    return found


@pytest.mark.parametrize("clip", [0.1, 100.0])
def test_gradients_are_cut_image_by_image(clip: float) -> None:
    net, these = network(), images(7)
    sums = clipped_sum(net, these.pixels, these.labels, clip)
    found = torch.cat([sums[name].flatten() for name, _ in net.named_parameters()])
    expected = torch.stack(one_by_one(net, these, clip))
    torch.testing.assert_close(found, expected.sum(0), rtol=1e-4, atol=1e-6)
    assert (expected.norm(dim=1) <= clip * 1.0001).all()


def test_many_images_are_taken_in_parts_and_none_give_nothing() -> None:
    net, these = network(), images(150)
    whole = clipped_sum(net, these.pixels, these.labels, 1.0)
    parts = [clipped_sum(net, part.pixels, part.labels, 1.0) for part in (these[:70], these[70:])]
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-5)
    assert all((value == 0).all() for value in clipped_sum(net, these.pixels[:0], these.labels[:0], 1.0).values())


def test_training_sees_images_by_noised_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sums taken away, training on other images gives the very same network."""
    zeros = {name: torch.zeros_like(value) for name, value in network().named_parameters()}
    states = []
    for patched in (True, False):
        for seed in (0, 1):
            with monkeypatch.context() as patch:
                if patched:
                    patch.setattr("ppbench.defenses._dp_teacher.clipped_sum", lambda *_: zeros)
                net, these = network(), images(20, seed)
                train_privately(net, these.pixels, these.labels, Course(0.3, 5, 1.0), generator(0))
                states.append(torch.cat([value.flatten().float() for value in net.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[2], states[3])


def test_without_noise_it_learns() -> None:
    net, these = network(), images(30)
    pixels = 0.2 * these.pixels + 0.25 * these.labels[:, None, None, None]
    train_privately(net, pixels, these.labels, Course(0.5, 150, 0.0, lr=1e-2), generator(0))
    assert not net.training
    with torch.no_grad():
        assert (net(pixels).argmax(1) == these.labels).float().mean() > 0.9


# --- statistics

@given(st.integers(0, 11), st.floats(0.05, 5), st.integers(0, 2**31))
def test_one_image_changes_the_sums_by_no_more_than_the_sensitivity(gone: int, most: float, seed: int) -> None:
    found, labels = 10 * torch.randn(12, 8, generator=generator(seed)), torch.arange(12) % 3
    units = Units(torch.zeros(8), torch.rand(8, generator=generator(seed)) + 0.1)
    kept = torch.arange(12) != gone
    change = (sums_of(found, labels, 3, units, most) - sums_of(found[kept], labels[kept], 3, units, most)).norm()
    assert change <= SENSITIVITY * most * (1 + 1e-9)
    assert change > most  # the count alone


def test_without_noise_and_cutting_the_statistics_are_those_of_the_classes() -> None:
    net, these = network(), images(30)
    units = units_of(net, torch.rand(50, 3, 16, 16, generator=generator(1)))
    found = noised_statistics(net, these, 3, units, Mechanism(0.0), 1e6, generator(0))
    exact = group_statistics(net, these.pixels, these.labels, 3)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-2, atol=1e-3)


def test_noise_is_as_large_as_it_should_be() -> None:
    """Of a class without images nothing but noise is left, over a count of one at least."""
    net, these = network(), images(12)
    _, channels = statistics_of(net, these.pixels)
    length, zero = 2 * sum(channels), 0.0
    units = Units(torch.full((length,), zero), torch.ones(length))
    found = noised_statistics(net, these, 200, units, Mechanism(1e-3), 1.0, generator(0))
    means = torch.cat([layer.mean for layer in found], 1)[3:]
    assert float(means.std()) == pytest.approx(1e-3 * SENSITIVITY * length**0.5, rel=0.05)


# --- the release

def test_labels_are_all_classes_in_turn() -> None:
    private = Images(images(9).pixels, torch.tensor([2, 2, 2, 2, 2, 2, 2, 0, 0]), torch.arange(9))
    found = DpSynthesis(**CHEAP).protect(private, None, generator(0))  # type: ignore[arg-type]
    assert found.labels.tolist() == [0, 1, 2] * 3
    assert found.source is None
    assert found.images.shape == private.pixels.shape
    with pytest.raises(UserError, match="3 in all, but only 2"):
        DpSynthesis(images=2).protect(private, None, generator(0))


def test_the_guarantee_is_the_budget_and_less_budget_means_more_noise() -> None:
    strict, lax = DpSynthesis(budget=1.0), DpSynthesis(budget=10.0)
    for one in (strict, lax):
        found = one.guarantee(500)
        assert 0.98 * one.budget <= found.epsilon <= one.budget
        assert found.delta == 1e-5
    assert all(a.noise > b.noise for a, b in zip(strict.mechanisms(500), lax.mechanisms(500), strict=True))
    assert strict.mechanisms(500)[0].times == math.ceil(20 / (256 / 500))
    assert strict.mechanisms(100)[0].rate == 1


def test_what_was_trained_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defense, private = DpSynthesis(**CHEAP), images(12)  # type: ignore[arg-type]
    whole = defense.protect(private, None, generator(0)).images
    times: list[int] = []
    honest = dp_synthesis.train_privately

    def noted(*args: object) -> None:
        times.append(1)
        honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(dp_synthesis, "train_privately", noted)
    with kept_in(tmp_path):
        defense.protect(private, None, generator(0))
        (tmp_path / "images.safetensors").unlink(missing_ok=True)
        again = defense.protect(private, None, generator(0)).images
    assert times == [1]
    assert torch.equal(whole, again)


def test_the_row_says_what_is_guaranteed(tiny_npz: Path, tmp_path: Path) -> None:
    plan = tiny_plan(tiny_npz, [], ["as-released"], defense=[{"use": "dp-synthesis", "budget": 4.0, **CHEAP},
                                                             {"use": "none"}])
    tiny_run(plan, tmp_path)
    table = pd.read_csv(tmp_path / "tiny" / "results.csv").set_index("defense")
    assert 3.9 < table.loc["dp-synthesis", "epsilon_release"] <= 4
    assert table.loc["dp-synthesis", "delta_release"] == pytest.approx(1e-5)
    assert math.isnan(table.loc["none", "epsilon_release"])


@pytest.mark.parametrize(("params", "said"), [
    ({"budget": 0}, "above 0"), ({"delta": 1}, "between 0 and 1"), ({"share": 0}, "between 0 and 1"),
    ({"clip": 0}, "above 0"), ({"images": -1}, "must be 0"),
])
def test_bad_parameters_are_refused(params: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DpSynthesis(**params)  # type: ignore[arg-type]

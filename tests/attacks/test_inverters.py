"""Learned inverters: contract, regimes, the guarantee of step 0, and the ceiling on `none`."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_plan, tiny_run
from inverter_views import (
    CIPHER,
    MIXUP,
    NONE,
    QUICK,
    SHUFFLE,
    both,
    network,
    result,
    smooth,
    toy,
    trained,
    view_of,
    with_defense,
)
from release_views import natural
from release_views import view_of as view_under
from torch import Tensor

from ppbench.attacks import _ridge
from ppbench.attacks._affine import mirrors
from ppbench.attacks._inverter import Inverter, InverterAttack, estimated, known_labels, loss_of, problem_of
from ppbench.attacks._linear_map import LinearMap
from ppbench.attacks.unet_inverter import UnetInverter
from ppbench.attacks.vit_inverter import VitInverter
from ppbench.codec import Tensors
from ppbench.data import Shape, SplitSizes, split
from ppbench.datasets.photos import Photos
from ppbench.defense import PerImageDefense
from ppbench.metrics import ssim
from ppbench.plugins import build, configure, load_class
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.stages.attacking import describe_prior
from ppbench.view import View

# --- contract --------------------------------------------------------------------------------------------------

def test_they_are_registered() -> None:
    assert load_class("attacks", "vit-inverter") is VitInverter
    assert load_class("attacks", "unet-inverter") is UnetInverter


@both
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 24), (3, 13, 18), (1, 8, 8)], ids=str)
def test_any_shape(attack: InverterAttack, shape: Shape) -> None:
    result(attack, toy(shape))


@both
@pytest.mark.parametrize("ref", [SHUFFLE, CIPHER, MIXUP, Ref("defenses", "constant")], ids=lambda ref: ref.name)
def test_any_defense(attack: InverterAttack, ref: Ref) -> None:
    result(attack, toy((3, 16, 24), ref))


@both
@pytest.mark.parametrize("public", [1, 2, 8])
def test_few_public_images_and_one_target(attack: InverterAttack, public: int) -> None:
    assert len(result(attack, toy(ref=SHUFFLE, public=public, targets=1))) == 1


@both
@pytest.mark.parametrize(("scope", "pairs"), [("global", 1), ("global", 6), ("global", 24), ("client", 6),
                                              ("image", 24)])
def test_every_regime(attack: InverterAttack, scope: str, pairs: int) -> None:
    view = toy(ref=CIPHER, pairs=pairs, scope=scope)
    priors = trained(attack, view)
    note = attack.run(view, priors, generator(0)).note
    if scope == "image" or pairs == 1:
        assert note.startswith("own keys;")
    elif pairs == 24:
        assert note.startswith("24 pairs, rehearsed")
        assert not priors["inverter"]["free"]
    else:
        assert "6 pairs;" in note


@both
def test_labels_are_used_where_granted_and_not_needed(attack: InverterAttack) -> None:
    view = toy(ref=CIPHER, labels=False)
    result(attack, view)
    problem = problem_of(view, free=True)
    net, base = network(attack, problem), torch.rand(3, *view.image_shape, generator=generator(0))
    first, second = (net(view.images, base, torch.full((3,), label)) for label in (0, 1))
    assert not torch.allclose(first, second, atol=1e-4)


@both
def test_the_result_depends_on_the_generator_alone(attack: InverterAttack) -> None:
    view = toy(ref=CIPHER, scope="global")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = trained(attack, view)["inverter"]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = trained(attack, view)["inverter"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(result(attack, view), result(attack, view))


def test_gradients_switched_off_by_the_caller_do_not_matter() -> None:
    attack, view = QUICK[1], toy(ref=MIXUP)
    with torch.no_grad():
        quiet = result(attack, view)
    assert torch.equal(quiet, result(attack, view))


@both
def test_the_prior_is_shared_by_cells_that_differ_in_the_release(attack: InverterAttack) -> None:
    first, second = toy(), view_of(smooth(6, (3, 16, 16), 9), smooth(24, (3, 16, 16)), build(NONE), NONE)
    name, prior = next(iter(attack.priors(first).items()))
    assert name == "inverter"
    assert describe_prior(prior, first) == describe_prior(prior, second)
    assert prior.needs == {"public", "algorithm", "pairs"}


@pytest.mark.parametrize("name", ["vit-inverter", "unet-inverter"])
@pytest.mark.parametrize("params", [{"steps": 0}, {"batch": 0}, {"width": 0}, {"depth": 0}, {"rate": 0.0}])
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(params))):
        configure(load_class("attacks", name), name, params)


# --- step 0 ----------------------------------------------------------------------------------------------------

@both
def test_before_the_first_step_it_is_the_linear_estimate(attack: InverterAttack) -> None:
    view = toy(ref=MIXUP)
    problem = problem_of(view, free=False)
    plain, released = view.public.pixels[:6], view.release.images
    base = LinearMap(_ridge.fit(released, plain, released, plain), None)
    with seeded(0):
        inverter = Inverter(attack.prior().network(problem), base, problem)
    assert torch.equal(inverter.estimate(released, torch.zeros(6, dtype=torch.int64)),
                       base.apply(released, view.image_shape))


@both
def test_harmful_training_is_undone(attack: InverterAttack) -> None:
    wild = replace(attack, rate=30.0)
    view = toy(ref=MIXUP)
    priors = trained(wild, view)
    assert priors["inverter"]["best"].tolist() == [0, 3]
    found = wild.run(view, priors, generator(0))
    assert "step 0 of 3" in found.note
    flat, base, *later = priors["inverter"]["objective"].tolist()  # as measured; `run` tells the best so far
    assert base < flat
    assert min(later, default=math.inf) > base
    linear = wild.prior().load(priors["inverter"], view).base
    ways = [linear.apply(view.images.flip(way), view.image_shape).flip(way) for way in ([], [3], [2], [2, 3])]
    torch.testing.assert_close(found.images, torch.stack(ways).mean(0))


@dataclass(frozen=True)
class Aside(PerImageDefense):
    """Linear, but another map for mirrored images: all columns move to the right, the last one to the left."""

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        return images.roll(1, 3)


def test_only_maps_that_mirror_are_averaged_over_mirrored_releases() -> None:
    assert mirrors(toy(ref=MIXUP)) == [3, 2]
    assert mirrors(with_defense(toy(), Aside())) == [2]


@both
def test_bfloat16_learns_much_the_same(attack: InverterAttack) -> None:
    view = toy(ref=MIXUP)
    full, half = (trained(replace(attack, amp=amp), view)["inverter"]["objective"] for amp in (False, True))
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.02)


@both
def test_the_loss_itself_is_not_taken_in_bfloat16(attack: InverterAttack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variances in SSIM are small differences of large numbers."""
    seen = []

    def watched(estimates: Tensor, plain: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss_of(estimates, plain)

    monkeypatch.setattr("ppbench.attacks._inverter.loss_of", watched)
    trained(replace(attack, amp=True), toy(ref=MIXUP))
    assert len(seen) > attack.steps
    assert not any(seen)


# --- the ceiling -----------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-inverter", "unet-inverter"])
def test_the_ceiling_is_reached_on_none(name: str) -> None:
    parts = split(Photos().pools(32), SplitSizes(320, 336, 144), 0)
    attack = configure(load_class("attacks", name), name, {"steps": 20})
    view = view_of(parts.private, parts.public, build(NONE), NONE, targets=16)
    view = View(replace(view.sealed, classes=parts.classes))
    assert ssim(result(attack, view), parts.private.pixels[:16]).mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-inverter", "unet-inverter"])
def test_a_real_run_trains_once_a_defense(name: str, tiny_npz: Path, tmp_path: Path) -> None:
    attack = {"use": name, "steps": 3, "width": 16, "depth": 1}
    plan = tiny_plan(tiny_npz, ["none", "mixup"], [attack])
    _, seen = tiny_run(plan, tmp_path / "run")
    assert [row["status"] for row in seen.rows] == ["ok"] * 2
    assert all(row["note"].startswith("own keys; step ") for row in seen.rows)
    assert seen.rows[0]["ssim"] > 0.95


class Upright:
    """An estimate that knows where up is: bright above, dark below."""

    ramp = torch.linspace(1, 0, 16)[:, None]

    def estimate(self, released: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * released + 0.5 * self.ramp


@pytest.mark.parametrize("upright", [True, False])
def test_images_are_turned_upside_down_only_where_that_serves_public_ones(upright: bool) -> None:
    texture = natural(40, (3, 16, 16), 1)
    images = replace(texture, pixels=0.5 * texture.pixels + 0.5 * (Upright.ramp if upright else 0.5))
    view = view_under(images[torch.arange(6)], images, "pixelate", {"block": 4})
    assert mirrors(view) == [3, 2]
    found = estimated(Upright(), view, view.images, known_labels(view))  # type: ignore[arg-type]
    slope = float((found[:, :, :8] - found[:, :, 8:]).mean())
    assert (slope > 0.2) == upright
    assert (abs(slope) < 0.05) != upright

"""Learned inverters: contract, regimes, the guarantee of step 0, order-free encoding, and what they learn."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_plan, tiny_run
from torch import Tensor, nn

from ppbench.attack import check_reconstruction
from ppbench.attacks import _ridge
from ppbench.attacks._affine import mirrors
from ppbench.attacks._inverter import (
    Inverter,
    InverterAttack,
    InverterPrior,
    Problem,
    loss_of,
    problem_of,
)
from ppbench.attacks._inverter_unet import UNet
from ppbench.attacks._inverter_vit import MAX_TOKENS, VitCodec, patch_side
from ppbench.attacks._linear_map import LinearMap
from ppbench.attacks._pairs import augmented, halves
from ppbench.attacks._simulate import Simulated
from ppbench.attacks.unet_inverter import UnetInverter, UnetPrior
from ppbench.attacks.vit_inverter import VitInverter, VitPrior
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.codec import Tensors
from ppbench.data import Images, Shape, SplitSizes, split
from ppbench.datasets.photos import Photos
from ppbench.defense import Defense, Keys, PerImageDefense, Pieces, Release, draw_keys
from ppbench.metrics import ssim
from ppbench.plugins import build, configure, load_class
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.stages.attacking import describe_prior
from ppbench.view import Algorithm, Pairs, Sealed, View, quantised

QUICK: list[InverterAttack] = [VitInverter(steps=3, batch=8, width=16, depth=1),
                               UnetInverter(steps=3, batch=8, width=8, depth=1)]
NONE, SHUFFLE = Ref("defenses", "none"), Ref("defenses", "patch-shuffle", {"patch": 4})
CIPHER, MIXUP = Ref("defenses", "block-scrambling", {"block": 4}), Ref("defenses", "mixup", {"patch": 4})
both = pytest.mark.parametrize("attack", QUICK, ids=["vit", "unet"])


def smooth(count: int, shape: Shape, seed: int = 0) -> Images:
    """Smooth random images in 8 bit, of 2 classes."""
    channels, height, width = shape
    coarse = torch.rand(count, channels, 4, 4, generator=generator(seed))
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return Images((pixels * 255).round() / 255, torch.arange(count) % 2, torch.arange(count))


def view_of(private: Images, public: Images, defense: Defense, ref: Ref, targets: int = 3, pairs: int = 0,
            scope: Any = None, labels: bool = True) -> View:
    """What the threat model grants of images protected as the runner would."""
    scope = scope or (defense.key_scopes[0] if defense.key_scopes else None)
    keys = draw_keys(defense, scope, len(private), private.shape, generator(1))
    release = quantised(defense.protect(private, keys, generator(2)), 8)
    known = None
    if pairs:
        one = None if keys is None else Keys(keys.values, torch.zeros(pairs, dtype=torch.int64))
        plain = public.pixels[:pairs]
        known = Pairs(plain, defense.query(plain, one, generator(3)))
    granted = {"images", "public", "algorithm"} | ({"labels"} if labels else set()) | ({"pairs"} if pairs else set())
    return View(Sealed(granted=frozenset(granted), image_shape=private.shape, released_shape=release.shape,
                       n_targets=targets, classes=2, labels=private.labels[:targets] if labels else None,
                       release=release, target_rows=torch.arange(targets), public=public, pairs=known,
                       algorithm=Algorithm(ref, scope, 8)))


def toy(shape: Shape = (3, 16, 16), ref: Ref = NONE, public: int = 24, **more: Any) -> View:
    return view_of(smooth(6, shape, 1), smooth(public, shape), build(ref), ref, **more)


def with_defense(view: View, defense: Defense) -> View:
    """Put a defense that has no name in the place of the view's own."""
    assert view.sealed.algorithm is not None
    algorithm = replace(view.sealed.algorithm)
    algorithm.__dict__["defense"] = defense  # where the cached property looks
    return View(replace(view.sealed, algorithm=algorithm))


def trained(attack: InverterAttack, view: View, seed: int = 1) -> dict[str, Tensors]:
    return {name: prior.train(view.only(prior.needs), generator(seed)) for name, prior in attack.priors(view).items()}


def result(attack: InverterAttack, view: View, seed: int = 1) -> Tensor:
    found = attack.run(view, trained(attack, view, seed), generator(2))
    check_reconstruction(found, view)
    assert found.objective is not None
    assert found.objective.isfinite().all()
    assert found.aligned == view.has_partner
    return found.images


def network(attack: InverterAttack, problem: Problem, seed: int = 0) -> nn.Module:
    """Build a network whose last layer is not zero any more."""
    with seeded(seed):
        net = attack.prior().network(problem)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
    return net.eval()


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


# --- moved blocks ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pixels", ["kept", "shared"])
def test_the_order_of_moved_blocks_does_not_matter(pixels: Any) -> None:
    images = smooth(5, (3, 16, 16)).pixels
    shuffled = join(permute_rows(cut(images, 4), permutations(5, 16, generator(0))), (3, 16, 16))
    base, labels = torch.rand(5, 3, 16, 16, generator=generator(1)), torch.zeros(5, dtype=torch.int64)
    free = Problem((3, 16, 16), (3, 16, 16), 2, Pieces(4, moved=True, pixels=pixels), free=True)
    net = network(QUICK[0], free)
    assert torch.allclose(net(images, base, labels), net(shuffled, base, labels), atol=1e-5)
    told = network(QUICK[0], replace(free, free=False))
    assert not torch.allclose(told(images, base, labels), told(shuffled, base, labels), atol=1e-3)


def test_only_whole_blocks_of_the_same_place_and_shape_are_copied() -> None:
    def copies(pieces: Pieces | None, released: Shape = (3, 16, 16)) -> bool:
        return VitCodec(Problem((3, 16, 16), released, 2, pieces, free=False), 16, 1).copies

    assert copies(Pieces(4, moved=True))
    assert not copies(Pieces(4, moved=True, pixels="own"))
    assert not copies(Pieces(4, moved=False))
    assert not copies(None)
    assert not copies(Pieces(4, moved=True), (3, 8, 8))


@pytest.mark.parametrize(("image", "size", "side"), [((3, 32, 32), 4, 4), ((3, 32, 32), 1, 2), ((3, 224, 224), 16, 16),
                                                     ((3, 224, 224), 8, 16), ((1, 112, 64), None, 8)])
def test_patches_are_blocks_or_groups_of_them(image: Shape, size: int | None, side: int) -> None:
    problem = Problem(image, image, 2, None if size is None else Pieces(size, moved=True), free=True)
    assert patch_side(problem) == side
    assert (image[1] // side) * (image[2] // side) <= MAX_TOKENS


@both
@pytest.mark.parametrize("released", [(3, 8, 8), (1, 16, 16), (4, 5, 7), (3, 40, 20), (3, 1, 1)], ids=str)
def test_released_images_of_any_shape_are_read(attack: InverterAttack, released: Shape) -> None:
    problem = Problem((3, 16, 12), released, 2, None, free=False)
    net = network(attack, problem)
    base, labels = torch.rand(2, 3, 16, 12, generator=generator(1)), torch.tensor([-1, 1])
    first, second = (net(torch.rand(2, *released, generator=generator(k)), base, labels) for k in (2, 3))
    assert first.shape == (2, 3, 16, 12)
    assert not torch.allclose(first, second, atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("upside_down", [False, True])
def test_augmented_images_are_moved_and_mirrored_copies(upside_down: bool) -> None:
    side = 16
    pixels = torch.arange(side * side).reshape(1, 1, side, side).expand(64, 1, side, side).float()
    seen = augmented(pixels, generator(0), upside_down)
    assert seen.shape == pixels.shape
    middle = slice(4, 12)
    turned = torch.zeros(2, 2)
    for image in seen[:, 0]:
        down, across = (float(step) for step in (image[9, 8] - image[8, 8], image[8, 9] - image[8, 8]))
        assert abs(down) == side
        assert abs(across) == 1
        turned[int(down < 0), int(across < 0)] += 1
        assert torch.equal(image[middle, 8].diff(), torch.full((7,), down))
        assert torch.equal(image[8, middle].diff(), torch.full((7,), across))
        assert abs(float(image[8, 8]) // side - (7 if down < 0 else 8)) <= 2
    assert (turned[: 1 + upside_down] > 6).all()
    assert turned[1].sum() == 0 or upside_down


def test_the_loss_is_l1_and_ssim() -> None:
    x, y = (torch.rand(4, 3, 16, 16, generator=generator(k)) for k in (0, 1))
    expected = (x - y).abs().flatten(1).mean(1) + 1 - ssim(x, y)
    assert torch.allclose(loss_of(x, y), expected.float(), atol=1e-4)
    small = loss_of(x[..., :8, :8], y[..., :8, :8])
    assert torch.allclose(small, (x - y)[..., :8, :8].abs().flatten(1).mean(1))


def test_held_out_pairs_are_not_learnt_from() -> None:
    rows = torch.arange(10)
    pairs = Simulated(rows[:, None, None, None].float(), rows[:, None, None, None].float(), rows)
    some, held = halves(pairs)
    assert held.labels.tolist() == [0, 4, 8]
    assert sorted(some.labels.tolist() + held.labels.tolist()) == rows.tolist()


@dataclass(frozen=True)
class Turned(PerImageDefense):
    """Invertible, but far from linear: grey levels go round by half a turn."""

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        return (images + 0.5) % 1


@pytest.mark.parametrize("attack", [VitInverter(steps=200, batch=16, width=32, depth=1, rate=5e-3),
                                    UnetInverter(steps=150, batch=16, width=16, depth=2, rate=5e-3)],
                         ids=["vit", "unet"])
def test_a_map_that_is_not_linear_is_learnt(attack: InverterAttack) -> None:
    defense, private = Turned(), smooth(6, (1, 16, 16), 1)
    view = with_defense(view_of(private, smooth(64, (1, 16, 16)), defense, NONE, targets=6), defense)
    priors = trained(attack, view)
    linear = attack.prior().load(priors["inverter"], view).base.apply(view.images, view.image_shape)
    found = attack.run(view, priors, generator(0)).images
    error, before = ((x - private.pixels).abs().mean() for x in (found, linear))
    assert error < 0.7 * before


@dataclass(frozen=True)
class Synthetic(Defense):
    """No partners: the mean of each class in noise."""

    partnered = False

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        noise = torch.rand(private.pixels.shape, generator=rng)
        mean = torch.stack([private.pixels[private.labels == label].mean(0) for label in private.labels])
        return Release((0.9 * mean + 0.1 * noise).clamp(0, 1), private.labels, None)


@both
def test_without_partners_the_defense_runs_once_and_the_result_is_a_set(attack: InverterAttack) -> None:
    calls = []

    @dataclass(frozen=True)
    class Counted(Synthetic):
        def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
            calls.append(len(private))
            return super().protect(private, keys, rng)

    defense = Counted()
    view = with_defense(view_of(smooth(6, (3, 16, 16), 1), smooth(24, (3, 16, 16)), defense, NONE), defense)
    calls.clear()
    found = attack.run(view, trained(attack, view), generator(0))
    assert calls == [24]
    assert not found.aligned


def test_own_keys_are_drawn_anew_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    view = toy(ref=CIPHER, scope="global")
    defense = view.algorithm.defense
    draw = type(defense).keys

    def recorded(self: Defense, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        keys = draw(self, count, shape, rng)
        drawn.append(keys["pixels"])
        return keys

    monkeypatch.setattr(type(defense), "keys", recorded)
    trained(QUICK[0], view)
    every = torch.cat(drawn)
    assert len(every) >= 24 + 3 * 8
    assert len(every.unique(dim=0)) == len(every)


def test_priors_are_dataclasses_of_their_own() -> None:
    for prior, net in ((VitPrior, VitCodec), (UnetPrior, UNet)):
        made: InverterPrior = prior(1, 1, 16, 1, 1e-3, amp=False)
        assert isinstance(made.network(Problem((3, 16, 16), (3, 16, 16), 2, None, free=False)), net)


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

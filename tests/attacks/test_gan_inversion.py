"""GAN inversion: its prior, its search, where it stops, and the whole on photos."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_plan, tiny_run
from gan_views import CIPHERS, NONE, QUICK, smooth, toy, trained, view_of
from torch import Tensor

from ppbench.attack import check_reconstruction
from ppbench.attacks._bands import bands
from ppbench.attacks._blended import blend
from ppbench.attacks._decrypted import decrypted
from ppbench.attacks._gan import Generator, held_out
from ppbench.attacks._latent_search import Search, Stop, best_stop
from ppbench.attacks._latent_signature import Simulated
from ppbench.attacks._linear_map import LinearMap
from ppbench.attacks._wiener import dct, idct
from ppbench.attacks.gan_inversion import GanInversion
from ppbench.data import Images, Shape, SplitSizes, split
from ppbench.datasets.photos import Photos
from ppbench.defense import draw_keys
from ppbench.errors import UserError
from ppbench.metrics import ssim
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.stages.attacking import describe_prior
from ppbench.view import Algorithm, View, quantised


@pytest.fixture(scope="module")
def priors() -> dict[str, dict[str, Tensor]]:
    """A hardly trained generator of 16 x 16 colour images."""
    return trained(QUICK, toy())


def test_whoever_has_the_key_searches_as_if_there_were_no_cipher(priors: dict[str, dict[str, Tensor]]) -> None:
    ref = Ref("defenses", "block-scrambling", {"block": 4})
    plain, view = toy(), toy(ref=ref)
    defense = build(ref)
    keys = draw_keys(defense, defense.key_scopes[0], 6, plain.image_shape, generator(1))
    knowing = View(replace(view.sealed, granted=view.granted | {"key"}, keys=keys))
    generator_alone = {"generator": priors["generator"]}
    found, expected = (QUICK.run(one, generator_alone, generator(3)) for one in (knowing, plain))
    assert "the defense run on the guess" in found.note
    assert torch.equal(found.images, expected.images)
    assert not torch.equal(found.images, QUICK.run(view, priors, generator(3)).images)


def test_a_key_that_does_not_bring_images_back_is_no_use() -> None:
    """InstaHide's mixtures stay mixtures: the release is compared as it is without the key."""
    ref = Ref("defenses", "instahide")
    defense, view = build(ref), toy(ref=ref)
    keys = draw_keys(defense, defense.key_scopes[0], 6, view.image_shape, generator(1))
    knowing = View(replace(view.sealed, granted=view.granted | {"key"}, keys=keys))
    assert decrypted(knowing) is knowing


def test_nothing_but_the_release_of_a_decrypted_view_tells_of_clients() -> None:
    ref = Ref("defenses", "block-scrambling", {"block": 4})
    view, defense = toy(ref=ref), build(ref)
    keys = draw_keys(defense, "client", 6, view.image_shape, generator(1), 2)
    private = smooth(6, view.image_shape, 1)
    release = replace(quantised(defense.protect(private, keys, generator(2)), 8), clients=keys.owner)
    sealed = replace(view.sealed, granted=view.granted | {"key"}, keys=keys, release=release,
                     algorithm=Algorithm(ref, "client", 8, 2))
    found = decrypted(View(sealed))
    assert torch.equal(found.images, private.pixels[:3])
    assert (found.algorithm.key_scope, found.algorithm.clients, found.release.clients) == (None, 1, None)


# The prior


def test_training_repeats_and_leaves_the_global_state_alone(priors: dict[str, dict[str, Tensor]]) -> None:
    before = torch.random.get_rng_state()
    again = trained(QUICK, toy())["generator"]
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.keys() == priors["generator"].keys()
    assert all(torch.equal(again[name], value) for name, value in priors["generator"].items())
    assert all(value.isfinite().all() for value in again.values())


def test_held_out_images_are_not_learnt_from() -> None:
    view = toy()
    mask = held_out(view.public)
    assert mask.sum() == 4
    changed = Images(view.public.pixels.clone(), view.public.labels, view.public.ids)
    changed.pixels[mask] = 0.5
    prior = Generator(steps=2)
    first, second = (prior.train(View(replace(view.sealed, public=public)), generator(0))
                     for public in (view.public, changed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed.pixels[~mask] = 0.5
    third = prior.train(View(replace(view.sealed, public=changed)), generator(0))
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_the_generator_is_shared_by_all_defenses_and_threat_models() -> None:
    images = smooth(6, (3, 16, 16), 1)
    described = []
    for ref, granted in itertools.product([NONE, Ref("defenses", "mixup"), *CIPHERS], ["labels", "images"]):
        view = view_of(images, smooth(32, (3, 16, 16)), ref, granted=granted)
        prior = GanInversion().priors(view)["generator"]
        described.append(describe_prior(prior, view))
    assert all(one == described[0] for one in described)
    assert described[0]["class"].endswith("_gan:Generator")


def test_a_short_training_beats_an_untrained_generator() -> None:
    public = smooth(64, (3, 16, 16))
    view, fresh = view_of(public, public), smooth(16, (3, 16, 16), 3)
    errors = []
    for steps in (1, 60):
        prior = Generator(steps=steps, width=8, latent=16)
        nets = prior.load(view, prior.train(view, generator(0)))
        with torch.no_grad():
            errors.append((nets.generator(nets.encoder(fresh.pixels)[0]) - fresh.pixels).square().mean())
            noise = torch.randn(40, prior.latent, generator=generator(1))
            samples = nets.generator(nets.generator.codes(noise, torch.tensor([0, 1]).repeat(20)))
    assert errors[1] < 0.5 * errors[0]
    assert samples[0::2].mean() > samples[1::2].mean() + 0.1  # the second class is dark


# The search


def search_for(priors: dict[str, dict[str, Tensor]], code: Tensor) -> Search:
    """A search for images that the generator can draw."""
    view = toy()
    nets = Generator(steps=3).load(view, priors["generator"])
    signature = Simulated(build(NONE), 0)
    return Search(nets.generator, signature, signature.of_released(nets.generator(code)), torch.zeros(len(code)).long())


def test_codes_are_found_again(priors: dict[str, dict[str, Tensor]]) -> None:
    code = torch.randn(2, 64, generator=generator(0))
    search = search_for(priors, code)
    bank = code + 0.5 * torch.randn(2, 64, generator=generator(1))
    starts = search.begin(bank, torch.zeros(2).long(), bank.flip(0), 2)
    torch.testing.assert_close(starts[0], bank)  # each image starts from the code nearest to its own
    search.codes(starts, 60, 0.1)
    objective = {stop.name: stop.objective.mean() for stop in search.stops}
    assert objective["codes"] < 0.1 * objective["best start"]


def test_features_explain_what_no_code_does(priors: dict[str, dict[str, Tensor]]) -> None:
    search = search_for(priors, torch.zeros(2, 64))
    search.wanted = search.signature.of_released(torch.rand(2, 3, 16, 16, generator=generator(0)))
    search.stop("start", search.draw(torch.zeros(2, 64)))
    search.features(torch.zeros(2, 64), 60, 0.05)
    reached = [float(stop.objective.mean()) for stop in search.stops if "half" not in stop.name]
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] < 0.3 * reached[0]


def test_images_are_searched_for_each_on_its_own(priors: dict[str, dict[str, Tensor]],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    code = torch.randn(3, 64, generator=generator(0))

    def found(rows: slice) -> Tensor:
        search = search_for(priors, code[rows])
        search.stop("start", search.draw(0 * code[rows]))
        search.features(search.codes(0 * code[rows][None], 6, 0.1), 6, 0.03)
        return search.stops[-1].images

    together = found(slice(3))
    torch.testing.assert_close(found(slice(1, 2)), together[1:2], atol=1e-4, rtol=0)
    monkeypatch.setattr("ppbench.attacks._latent_search.AT_ONCE", 1)
    torch.testing.assert_close(found(slice(3)), together, atol=1e-4, rtol=0)


def test_the_stop_is_chosen_on_the_last_images_alone() -> None:
    truth = torch.rand(2, 3, 16, 16, generator=generator(0))
    targets = torch.rand(3, 3, 16, 16, generator=generator(1))

    def stop(name: str, noise: float) -> Stop:
        near = (truth + noise * torch.randn(truth.shape, generator=generator(2))).clamp(0, 1)
        return Stop(name, torch.cat([targets * noise, near]), torch.full((5,), noise))

    stops = [stop("far", 0.5), stop("near", 0.05), stop("overdone", 0.2)]
    assert best_stop(stops, truth).name == "near"
    assert best_stop(stops, truth[:0]).name == "overdone"
    small = [Stop(s.name, s.images[..., :4, :4], s.objective) for s in stops]  # too small for SSIM's window
    assert best_stop(small, truth[..., :4, :4]).name == "near"


# Beside the linear estimate


def test_what_is_right_of_two_estimates_is_taken_from_each() -> None:
    truth = smooth(30, (3, 16, 16)).pixels * 0.5 + 0.25
    noise = dct(0.1 * torch.randn(truth.shape, generator=generator(0)).double())
    coarse = (bands(16, 16) < 5).double()
    mine, others = (truth + idct(noise * part).float() for part in (coarse, 1 - coarse))
    found = blend(mine, others, truth[-10:])
    torch.testing.assert_close(found[:20], truth[:20], atol=0.02, rtol=0)
    torch.testing.assert_close(blend(truth, others, truth[-10:]), truth)
    torch.testing.assert_close(blend(mine, mine, truth[-10:]), mine.clamp(0, 1))


@pytest.mark.parametrize("ref", [Ref("defenses", "mixup", {"patch": 4}), Ref("defenses", "gaussian-noise")])
def test_a_poor_generator_does_not_spoil_what_is_linear(ref: Ref) -> None:
    private, public = smooth(8, (3, 16, 16), 1), smooth(160, (3, 16, 16))
    view = view_of(private, public, ref, targets=8)
    attack = replace(QUICK, hold=20)
    known = trained(attack, view)
    found = attack.run(view, known, generator(0))
    alone = attack.run(view, {"generator": known["generator"]}, generator(0))
    linear = LinearMap.from_tensors(known["linear"]).apply(view.images, view.image_shape)
    reached, least, most = (float(ssim(one, private.pixels).mean()) for one in (found.images, alone.images, linear))
    assert reached > least + 0.02
    assert reached > most - 0.01
    if ref.name == "mixup":
        again = view.algorithm.protect(replace(private, pixels=found.images), generator(0)).images
        assert (again - view.images).abs().max() <= 1.01 / 255


def test_the_linear_estimate_has_not_seen_what_it_is_tried_on() -> None:
    view = toy(ref=Ref("defenses", "mixup", {"patch": 4}))
    held = held_out(view.public)
    assert held.any()
    changed = replace(view.public, pixels=torch.where(held[:, None, None, None], 0.5, view.public.pixels))
    prior = QUICK.priors(view)["linear"]
    found, again = (prior.train(View(replace(view.sealed, public=one)), generator(0)) for one in (view.public, changed))
    torch.testing.assert_close(found, again)


# The attack


@pytest.mark.parametrize(("shape", "ref"), [
    ((3, 16, 16), NONE), ((1, 13, 11), NONE), ((3, 12, 20), Ref("defenses", "mixup")), ((1, 8, 8), CIPHERS[0]),
    ((3, 16, 12), CIPHERS[1]), ((3, 16, 16), Ref("defenses", "constant"))])
@pytest.mark.parametrize("granted", ["labels", "images"])
def test_contract(shape: Shape, ref: Ref, granted: str) -> None:
    view = toy(shape, ref, granted=granted)
    attack = replace(QUICK, steps=2)
    before = torch.random.get_rng_state()
    found = attack.run(view, trained(attack, view), generator(0))
    assert torch.equal(before, torch.random.get_rng_state())
    check_reconstruction(found, view)
    assert found.aligned
    assert found.objective is not None
    assert found.objective.shape[1] == view.n_targets
    assert not found.images.requires_grad


def test_the_same_generator_state_gives_the_same_images(priors: dict[str, dict[str, Tensor]]) -> None:
    first, second = (QUICK.run(toy(), priors, generator(3)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.note == second.note


def test_one_target_and_few_public_images() -> None:
    attack = replace(QUICK, steps=2)
    view = view_of(smooth(2, (3, 16, 16), 1), smooth(5, (3, 16, 16)), targets=1)
    found = attack.run(view, trained(attack, view), generator(0))
    check_reconstruction(found, view)
    assert "not tried out" in found.note  # five images are too few to keep one from training


def test_a_release_without_partners_is_projected_and_not_run_again(priors: dict[str, dict[str, Tensor]]) -> None:
    view = toy()
    ref = Ref("defenses", "bn-synthesis")
    sealed = replace(view.sealed, algorithm=Algorithm(ref, None, 8), release=replace(view.release, source=None))
    found = QUICK.run(View(sealed), priors, generator(0))
    check_reconstruction(found, view)
    assert not found.aligned
    assert "as if it were plain" in found.note
    assert "stopped at codes (not tried out)" in found.note


def test_a_class_without_public_images_is_searched_all_the_same(priors: dict[str, dict[str, Tensor]]) -> None:
    view = toy()
    public = view.public[view.public.labels == 0]
    found = QUICK.run(View(replace(view.sealed, public=public)), priors, generator(0))
    check_reconstruction(found, view)


@pytest.mark.parametrize("params", [{"steps": 0}, {"restarts": 0}, {"hold": -1}, {"code_rate": 0.0}, {"pull": -1.0},
                                    {"prior_steps": 0}])
def test_senseless_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must"):
        build(Ref("attacks", "gan-inversion", params))


@pytest.mark.slow
def test_one_generator_serves_all_defenses_of_a_run(tiny_npz: Path, tmp_path: Path) -> None:
    attack = {"use": "gan-inversion", "steps": 2, "prior_steps": 2}
    _, seen = tiny_run(tiny_plan(tiny_npz, ["none", "patch-shuffle", "mixup"], [attack]), tmp_path / "run")
    assert [row["status"] for row in seen.rows] == ["ok"] * 3
    stored = [path.read_bytes() for path in (tmp_path / "run").glob("**/prior/**/*") if path.is_file()]
    assert sum(b"encoder.head.weight" in content for content in stored) == 1  # beside the blind guesses of the floors


@pytest.mark.slow
def test_without_a_defense_it_beats_the_mean_image_by_far() -> None:
    images = split(Photos().pools(32), SplitSizes(8, 100, 8), 0)
    attack = GanInversion(prior_steps=20, steps=20, restarts=2, hold=4)
    known: dict[str, Tensor] | None = None
    for ref, least in ((NONE, 0.9), (Ref("defenses", "mixup"), 0.55)):
        view = View(replace(view_of(images.private, images.public, ref, targets=8).sealed, classes=images.classes))
        wanted = attack.priors(view)
        known = known or wanted["generator"].train(view, generator(5))
        priors = {"generator": known, "linear": wanted["linear"].train(view, generator(5))}
        found = attack.run(view, priors, generator(0))
        score = ssim(found.images, images.private.pixels)
        mean = ssim(images.public.pixels.mean(0).expand_as(found.images), images.private.pixels)
        assert score.mean() > max(least, mean.mean() + 0.2)
        assert found.objective is not None
        assert found.objective[-1].mean() < 0.2 * found.objective[0].mean()

"""The jigsaw attack on views: ciphers of whole pieces and of their pixels, keys of all scopes, priors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from jigsaw_pieces import ETC, UNCHANGED, crops, neighbours, photos, slow_put, states_for
from jigsaw_views import (
    FEW,
    MEASURED,
    PLAIN_BLOCKS,
    PUBLIC,
    SCRAMBLED,
    aimed,
    ciphers,
    images_of,
    scrambled_view,
    shuffled_view,
    without_public,
)
from release_views import attacked, cifar, view_of
from torch import Tensor, nn

from ppbench.attack import check_reconstruction
from ppbench.attacks import _seam_prior, _solving
from ppbench.attacks._seam_net import SeamNet, learned
from ppbench.attacks._seam_prior import SeamPrior
from ppbench.attacks._upright import UprightPrior
from ppbench.attacks.jigsaw import Jigsaw
from ppbench.blocks import cut
from ppbench.defense import Pieces
from ppbench.metrics import ssim
from ppbench.puzzle import puzzle_scores
from ppbench.seeding import generator, seeded
from ppbench.view import View

# --- keys of one image each

@pytest.mark.parametrize(("height", "width", "grey"), [(128, 128, False), (64, 128, False), (96, 64, True)])
def test_shuffled_photos_are_restored(height: int, width: int, grey: bool) -> None:
    images = photos(3, height, width)
    images = (images.mean(1, keepdim=True) * 255).round() / 255 if grey else images
    view = without_public(shuffled_view(images, 16))
    found = attacked(MEASURED, view)
    assert found.aligned
    assert found.note == ""
    # whole pieces may still be exchanged where the photo is flat
    right = (cut(found.images, 16) - cut(images, 16)).abs().amax((2, 3, 4)) < 0.01
    assert right.double().mean() > 0.9
    assert (cut(view.images, 16) - cut(images, 16)).abs().amax((2, 3, 4)).lt(0.01).double().mean() < 0.2


@ciphers
@pytest.mark.parametrize("scope", ["image", "global"])
def test_scrambled_photos_are_rebuilt_without_any_public_image(cipher: str, scope: str) -> None:
    images = photos(2, 64, 96)
    view = without_public(scrambled_view(images, cipher, 16, scope))
    found = attacked(FEW, view)
    flags = SCRAMBLED[cipher][0]
    assert neighbours(found.images, images, flags, 16).min() > 0.9
    assert neighbours(view.images, images, flags, 16).max() < 0.3
    assert found.note == ("up to the state of the whole image" if any(flags) else "")


@ciphers
@pytest.mark.parametrize("scope", ["image", "global"])
def test_scrambled_photos_are_rebuilt_with_networks_that_learnt_little(cipher: str, scope: str) -> None:
    images = photos(2, 64, 96)
    found = attacked(FEW, scrambled_view(images, cipher, 16, scope))
    assert neighbours(found.images, images, SCRAMBLED[cipher][0], 16).min() > 0.9
    learnt_little = "seams as measured" if scope == "image" else ""
    assert ("told right, or mirrored, for " if any(SCRAMBLED[cipher][0]) else learnt_little) in found.note
    assert "up to the state" not in found.note


@pytest.mark.parametrize("grey", [False, True])
def test_grey_photos_are_rebuilt_too(grey: bool) -> None:
    images = photos(2, 64, 64)
    public = replace(PUBLIC, pixels=PUBLIC.pixels.mean(1, keepdim=True)) if grey else PUBLIC
    images = (images.mean(1, keepdim=True) * 255).round() / 255 if grey else images
    found = attacked(FEW, scrambled_view(images, "etc", 16, "image", public))
    assert neighbours(found.images, images, ETC, 16).min() > 0.9


@pytest.mark.real
@pytest.mark.slow
def test_learning_helps_with_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seam_prior, "_PIECES", 2**12)  # in puzzles that decide whether to believe what was learnt
    private, public = cifar(60, 300)
    attack = Jigsaw(steps=200, width=24, rate=8e-3)
    scores = [neighbours(attacked(one, shuffled_view(private.pixels, 4, public)).images, private.pixels, UNCHANGED,
                         4).mean() for one in (attack, replace(attack, steps=0))]
    assert scores[0] > scores[1] + 0.01


# --- one key for several images

def test_one_global_key_is_solved_from_all_images_together() -> None:
    images = photos(40, 16, 16)
    view = aimed(without_public(scrambled_view(images, "moved", 2, "global")), [0, 1, 2])
    together = attacked(Jigsaw(), view)
    torch.testing.assert_close(together.images, images[:3], atol=1 / 255, rtol=0)
    # 2-pixel pieces of one image say too little
    alone = attacked(Jigsaw(joint=1), view)
    assert (alone.images - images[:3]).abs().max() > 0.02


def test_the_targets_come_first_wherever_they_stand() -> None:
    """The other images are of one colour, and tell nothing."""
    images = torch.full((9, 3, 64, 64), 0.5)
    images[[7, 2]] = photos(2, 64, 64)
    view = aimed(without_public(scrambled_view(images, "moved", 16, "global")), [7, 2])
    found = attacked(replace(MEASURED, joint=2), view)
    torch.testing.assert_close(found.images, photos(2, 64, 64), atol=1 / 255, rtol=0)


@pytest.mark.parametrize("cipher", ["moved", "etc"])
def test_every_clients_images_are_solved_under_its_own_key(cipher: str) -> None:
    images = photos(6, 64, 64)
    view = scrambled_view(images, cipher, 16, "client", clients=2)
    assert view.release.clients is not None
    assert len(view.release.clients.unique()) == 2
    found = attacked(FEW, view)
    assert neighbours(found.images, images, SCRAMBLED[cipher][0], 16).min() == 1


def test_clients_that_nobody_knows_are_solved_one_by_one() -> None:
    images = photos(4, 64, 64)
    view = scrambled_view(images, "moved", 16, "client", clients=2)
    assert view.sealed.release is not None
    mixed = View(replace(view.sealed, release=replace(view.sealed.release, clients=None)))
    assert neighbours(attacked(FEW, mixed).images, images, UNCHANGED, 16).min() > 0.9


class Bright(nn.Module):
    """Likes images that are bright in the left upper corner, and red above all."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[2] // 2
        return images[:, :1, :half, :half].mean((2, 3)) + images[:, 1:2, :half].mean((2, 3)) / 9


@pytest.mark.parametrize("scope", ["global", "image"])
def test_images_of_one_key_are_brought_into_one_state(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UprightPrior, "load", lambda self, found, channels: Bright())
    images, states = photos(4, 64, 64), states_for(ETC)
    found = attacked(FEW, scrambled_view(images, "etc", 16, scope))
    which = []
    for image, one in zip(images, found.images, strict=True):
        looks = [torch.from_numpy(slow_put(image.numpy(), states, state).copy()) for state in range(len(states))]
        assert [float((look - one).abs().max()) < 1e-3 for look in looks].count(True) == 1
        which.append(next(n for n, look in enumerate(looks) if float((look - one).abs().max()) < 1e-3))
        if scope == "image":
            best = max(float(Bright()(look[None])) for look in looks)
            assert float(Bright()(one[None])) == pytest.approx(best, abs=1e-3)
    assert (len(set(which)) == 1) is (scope == "global")


# --- shuffled pixels

@pytest.mark.parametrize("block", [4, 8])
def test_pixels_are_put_back_by_statistics_and_the_pieces_then_together(block: int) -> None:
    """So few images hardly tell left from right, nor red from blue, of all of them."""
    private, public = crops(100, 32, "private"), crops(400, 32)
    view = view_of(private, public, "block-scrambling", {"block": block}, "global")
    found = attacked(Jigsaw(), view)
    assert "pixels by statistics: correlations agree to 0.99" in found.note
    assert neighbours(found.images, private.pixels, (True, False, True), block).nan_to_num().mean() > 0.99


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("block", [4, 8])
def test_sixty_four_images_under_one_key_come_back_the_right_way_round(block: int) -> None:
    """Or all of them mirrored, which nothing tells."""
    private, public = cifar(64, 2000)
    view = view_of(private, public, "block-scrambling", {"block": block}, "global")
    found = attacked(Jigsaw(), view)
    assert max(float(ssim(look, private.pixels).mean()) for look in (found.images, found.images.flip(3))) > 0.98
    pieces = Pieces(block, True, "shared", negated=True)
    assert puzzle_scores(found.images, private.pixels, pieces)["piece_neighbour"].mean() > 0.98


def test_pixels_are_put_back_for_every_client() -> None:
    private, public = crops(200, 32, "private"), crops(400, 32)
    view = view_of(private, public, "block-scrambling", {}, "client", clients=2)
    found = attacked(Jigsaw(), view)
    assert "pixels by statistics for 2 of 2 keys: correlations agree to 0.9" in found.note
    assert neighbours(found.images, private.pixels, (True, False, True), 4).nan_to_num().mean() > 0.99


@pytest.mark.parametrize(("params", "scope", "public"), [
    ({}, "image", True), ({}, "global", False), ({"preset": "ele"}, "global", True),
    ({"preset": "ele"}, "image", True)])
def test_shuffled_pixels_are_said_to_tell_little(params: dict[str, object], scope: str, public: bool) -> None:
    view = view_of(images_of(photos(2, 32, 32)), PUBLIC, "block-scrambling", {"block": 4, **params}, scope)
    view = view if public else without_public(view)
    found = attacked(FEW, view)
    assert "seams tell little" in found.note
    before, after = cut(view.images, 4), cut(found.images, 4)
    torch.testing.assert_close(before.sum((2, 3, 4)).sort(1).values, after.sum((2, 3, 4)).sort(1).values)


# --- priors

@pytest.mark.parametrize(("name", "params", "scope", "count", "expected"), [
    ("patch-shuffle", {"patch": 8}, "image", 2, {"seams"}),
    ("block-scrambling", {"preset": "etc", "block": 8}, "image", 20, {"upright"}),
    ("block-scrambling", {"preset": "etc", "block": 8}, "global", 8, {"upright"}),
    ("block-scrambling", {**PLAIN_BLOCKS, "block": 8}, "image", 20, {"seams"}),
    ("block-scrambling", {**PLAIN_BLOCKS, "block": 8}, "global", 7, {"seams"}),
    ("block-scrambling", {**PLAIN_BLOCKS, "block": 8}, "global", 8, set()),  # so many tell enough
    ("block-scrambling", {"block": 8}, "global", 2, set()),
    ("block-scrambling", {"preset": "pe"}, "global", 2, set()),
    ("none", {}, None, 2, set()), ("mixup", {"patch": 4}, None, 2, set())])
def test_the_networks_that_help_are_named(name: str, params: dict[str, object], scope: str | None, count: int,
                                          expected: set[str]) -> None:
    view = view_of(crops(count, 32, "private"), PUBLIC, name, params, scope)
    assert set(FEW.priors(view)) == expected
    if expected == set() and name == "block-scrambling" and params == {**PLAIN_BLOCKS, "block": 8}:
        assert set(replace(FEW, joint=7).priors(view)) == {"seams"}  # as few are looked at
    assert MEASURED.priors(view) == {}
    assert FEW.priors(without_public(view)) == {}


def test_priors_are_asked_for_what_the_cipher_does() -> None:
    attack = replace(FEW, steps=7, width=9, rate=1e-3)
    coloured, moved = (scrambled_view(photos(2, 64, 64), cipher, 16, "image") for cipher in ("coloured", "moved"))
    assert attack.priors(coloured) == {"upright": UprightPrior(False, True, True, 7)}
    assert attack.priors(moved) == {"seams": SeamPrior(16, 7, 9, 1e-3)}


@pytest.mark.parametrize("better", [False, True])
def test_a_network_is_used_where_it_solves_more(better: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def watched(*given: Any) -> Tensor:
        used.append(given)
        return learned(*given)

    monkeypatch.setattr(_solving, "learned", watched)
    view = shuffled_view(photos(2, 64, 64), 16)
    with seeded(0):
        weights = {f"net.{name}": value for name, value in SeamNet(3, 8).state_dict().items()}
    found = {"objective": torch.zeros(2), "solved": torch.tensor([[0.5] * 2, [0.9 if better else 0.5] * 2]), **weights}
    attack = FEW.run(view, {"seams": found}, generator(0))
    check_reconstruction(attack, view)
    assert bool(used) is better
    assert ("seams as measured" in attack.note) is not better
    if not better:
        assert torch.equal(attack.images, MEASURED.run(view, {}, generator(0)).images)

"""The jigsaw attack on views: ciphers of whole pieces and of their pixels, keys of all scopes, priors and refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from jigsaw_pieces import ETC, TURNED, UNCHANGED, Flags, crops, neighbours, photos, slow_put, states_for
from release_views import attacked, cifar, view_of
from torch import Tensor, nn

from ppbench.attack import check_reconstruction
from ppbench.attacks import _solving
from ppbench.attacks._assemble import assemble
from ppbench.attacks._boards import in_order
from ppbench.attacks._seam_net import SeamNet, learned
from ppbench.attacks._seam_prior import SeamPrior
from ppbench.attacks._seams import combo, tables
from ppbench.attacks._solver import Search
from ppbench.attacks._solving import Solver
from ppbench.attacks._states import PLAIN, states_of
from ppbench.attacks._upright import UprightPrior
from ppbench.attacks.jigsaw import Jigsaw
from ppbench.blocks import cut
from ppbench.data import Images
from ppbench.errors import UserError
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.view import View

FEW = Jigsaw(steps=3, width=8, restarts=4)  # learns next to nothing
MEASURED = replace(FEW, steps=0)
PUBLIC = crops(24, 32)
PLAIN_BLOCKS: dict[str, object] = {"preset": "vit-cipher", "pixels": "none"}  # block scrambling that only moves blocks
SCRAMBLED: dict[str, tuple[Flags, dict[str, object]]] = {
    "moved": (UNCHANGED, PLAIN_BLOCKS), "etc": (ETC, {"preset": "etc"}),
    "turned": (TURNED, {"preset": "etc", "negative": "none", "colours": "none"}),
    "coloured": ((False, True, True), {"preset": "etc", "turn": False})}
ciphers = pytest.mark.parametrize("cipher", SCRAMBLED)


def images_of(pixels: Tensor) -> Images:
    return Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels)))


def scrambled_view(pixels: Tensor, cipher: str, block: int, scope: str, public: Images = PUBLIC, clients: int = 1,
                   ) -> View:
    """Photographs under block scrambling, public images granted; those have another size, which no prior minds."""
    params = {**SCRAMBLED[cipher][1], "block": block}
    return view_of(images_of(pixels), public, "block-scrambling", params, scope, clients=clients)


def shuffled_view(pixels: Tensor, patch: int, public: Images = PUBLIC) -> View:
    return view_of(images_of(pixels), public, "patch-shuffle", {"patch": patch}, "image")


def without_public(view: View) -> View:
    return view.only(frozenset({"images", "algorithm"}))


def aimed(view: View, rows: list[int]) -> View:
    """The same release, with these of its images as the targets."""
    return View(replace(view.sealed, n_targets=len(rows), target_rows=torch.tensor(rows), labels=None))


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
    assert found.note == ""


@pytest.mark.parametrize("grey", [False, True])
def test_grey_photos_are_rebuilt_too(grey: bool) -> None:
    images = photos(2, 64, 64)
    public = replace(PUBLIC, pixels=PUBLIC.pixels.mean(1, keepdim=True)) if grey else PUBLIC
    images = (images.mean(1, keepdim=True) * 255).round() / 255 if grey else images
    found = attacked(FEW, scrambled_view(images, "etc", 16, "image", public))
    assert neighbours(found.images, images, ETC, 16).min() > 0.9


@pytest.mark.real
@pytest.mark.slow
def test_learning_helps_with_small_pieces() -> None:
    private, public = cifar(60, 800)
    attack = Jigsaw(steps=200, width=32, rate=8e-3)
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
    assert "pixels by the statistics of 100 images: correlations agree to 0.99" in found.note
    assert neighbours(found.images, private.pixels, (True, False, True), block).nan_to_num().mean() > 0.99


def test_pixels_are_put_back_for_every_client() -> None:
    private, public = crops(200, 32, "private"), crops(400, 32)
    view = view_of(private, public, "block-scrambling", {}, "client", clients=2)
    found = attacked(Jigsaw(), view)
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
    if not better:
        assert torch.equal(attack.images, MEASURED.run(view, {}, generator(0)).images)


# --- nothing to solve, and what is refused

@pytest.mark.parametrize(("name", "params"), [("none", {}), ("mixup", {"patch": 4}),
                                              ("block-scrambling", {"preset": "pe"}),
                                              ("block-scrambling", {"preset": "le"})])
def test_nothing_permuted_is_degenerate(name: str, params: dict[str, object]) -> None:
    scope = "global" if name == "block-scrambling" else None
    view = view_of(images_of(photos(2, 32, 32)), PUBLIC, name, params, scope)
    found = attacked(FEW, view)
    assert found.note.startswith("degenerate: as-released")
    if view.released_shape == view.image_shape:
        assert torch.equal(found.images, view.images)


@pytest.mark.parametrize("cipher", ["moved", "etc"])
@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 8), (8, 16)])
def test_flat_images_pass_through(cipher: str, scope: str, shape: tuple[int, int]) -> None:
    flat = torch.full((2, 3, *shape), 0.4)
    attack = replace(FEW, linear=False, repair=True, anneal=2)
    view = scrambled_view(flat, cipher, 4, scope, crops(4, 16))
    found = attacked(attack, view)
    if cipher == "moved":
        torch.testing.assert_close(found.images, view.images)
    assert (found.images.sub(0.5).abs() - 0.1).abs().max() < 0.01  # or else negatives


def test_the_linear_program_survives_flat_images() -> None:
    view = shuffled_view(torch.full((2, 3, 16, 16), 0.4), 4, crops(4, 16))
    torch.testing.assert_close(attacked(replace(FEW, linear=True), view).images, view.images)


@pytest.mark.parametrize("cipher", ["moved", "etc"])
@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize("public", [False, True])
def test_a_single_piece_passes_through(cipher: str, scope: str, public: bool) -> None:
    images = photos(2, 16, 16)
    view = scrambled_view(images, cipher, 16, scope, crops(8, 16))
    found = attacked(FEW, view if public else without_public(view))
    assert neighbours(found.images, images, SCRAMBLED[cipher][0], 16).tolist() == [1, 1]
    if cipher == "moved" or not public:
        torch.testing.assert_close(found.images, view.images)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 24)])
@pytest.mark.parametrize("cipher", ["moved", "etc"])
def test_rows_and_columns_of_pieces_are_laid(shape: tuple[int, int], cipher: str) -> None:
    images = photos(3, *shape)
    public = replace(crops(8, 32), pixels=crops(8, 32).pixels[:, :, :shape[0], :shape[1]].contiguous())
    found = attacked(replace(FEW, repair=True, anneal=3), scrambled_view(images, cipher, 8, "image", public))
    scores = neighbours(found.images, images, SCRAMBLED[cipher][0], 8)
    assert scores.isfinite().all()
    assert scores.mean() >= 0.5


@pytest.mark.parametrize(("params", "words"), [
    ({"restarts": 0}, "restarts"), ({"effort": 0}, "effort"), ({"joint": 0}, "joint"), ({"width": 0}, "width"),
    ({"steps": -1}, "steps"), ({"anneal": -1}, "anneal"), ({"rate": 0.0}, "rate"),
    ({"place_steps": -1}, "place_steps")])
def test_senseless_parameters_are_refused(params: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=f"{words} is"):
        build(Ref("attacks", "jigsaw", params))


@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize("public", [False, True])
def test_tables_beyond_memory_are_refused_in_words(scope: str, public: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is learnt, where there is something to learn from."""
    view = scrambled_view(photos(2, 64, 64), "etc", 16, scope)
    view = view if public else without_public(view)
    entries = 4 * 16**2 * 96
    monkeypatch.setattr(_solving, "_MOST", entries)
    attacked(FEW, view)
    monkeypatch.setattr(_solving, "_MOST", entries - 1)
    with pytest.raises(UserError, match=r"16 pieces in 96 states .* choose larger pieces"):
        FEW.priors(view) if public else FEW.run(view, {}, generator(0))


# --- the same again

@ciphers
def test_the_same_generator_state_gives_the_same_images(cipher: str) -> None:
    view = scrambled_view(photos(2, 64, 64), cipher, 8, "image")
    before, plain = torch.random.get_rng_state(), view.images.clone()
    first, second = (attacked(FEW, view).images for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(view.images, plain)


@pytest.mark.parametrize("scope", ["image", "global"])
def test_small_chunks_cover_all_images(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_solving, "_CHUNK", 1)
    images = photos(3, 64, 64)
    found = attacked(MEASURED, without_public(scrambled_view(images, "moved", 16, scope)))
    assert neighbours(found.images, images, UNCHANGED, 16).min() > 0.9


def test_settings_reach_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(self: Solver, pieces: Tensor, grid: tuple[int, int], rng: torch.Generator) -> Any:
        seen.append(self.search)
        return in_order(len(pieces), grid)

    monkeypatch.setattr(Solver, "each", watched)
    attack = Jigsaw(restarts=3, effort=99, loops=False, linear=True, repair=True, anneal=5, steps=0)
    attacked(attack, shuffled_view(photos(2, 64, 64), 16))
    assert seen == [Search(restarts=3, effort=99, loops=0, linear=1, repair=1, anneal=5)]


# --- places

def test_places_are_learnt_where_whole_pieces_are_moved_under_keys_of_one_image() -> None:
    attack, images = replace(FEW, place_steps=2), photos(2, 32, 32)
    named = {cipher: set(attack.priors(scrambled_view(images, cipher, 8, "image"))) for cipher in SCRAMBLED}
    assert {cipher for cipher, priors in named.items() if "places" in priors} == {"moved"}
    assert "places" not in attack.priors(scrambled_view(images, "moved", 8, "global"))
    assert set(replace(attack, steps=0).priors(shuffled_view(images, 8))) == {"places"}
    found = attacked(attack, shuffled_view(images, 8))
    assert neighbours(found.images, images, UNCHANGED, 8).isfinite().all()


def test_places_tell_what_seams_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one colour each, in no order but that of their brightness."""
    brightness = torch.stack([torch.randperm(12, generator=generator(n)) for n in range(3)])
    pieces = (brightness / 12)[:, :, None, None, None].expand(-1, -1, 3, 4, 4)

    def believed(net: object, some: Tensor) -> Tensor:
        order = (some[:, :, 0, 0, 0] * 12).round().long()
        certain = torch.full((len(some), 12, 12), -99.0)
        return certain.scatter_(2, order[..., None], 0.0).view(-1, 12, 3, 4)

    seen = []

    def watched(costs: Tensor, grid: tuple[int, int], rng: torch.Generator, search: Search, states: Any,
                places: Tensor) -> Any:
        seen.append(places)
        return assemble(0 * costs, grid, rng, search, states, places)

    monkeypatch.setattr(_solving, "believed", believed)
    monkeypatch.setattr(_solving, "assemble", watched)
    solver = Solver(Search(repair=1), places=nn.Identity(), trust=2.0)  # type: ignore[arg-type]
    boards = solver.each(pieces, (3, 4), generator(0))
    assert (solver.laid(pieces, boards)[:, :, 0, 0, 0].mul(12).round() == torch.arange(12)).all()
    assert sorted(seen[0].unique().tolist()) == [0, 14]  # twice 7, beyond which nothing is more unlikely


# --- the solver between costs and images

@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
def test_costs_under_one_key_are_their_mean(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    states, pieces = states_for(flags), cut(photos(5, 32, 48), 16)
    seen = []

    def watched(costs: Tensor, grid: tuple[int, int], *rest: Any) -> Any:
        seen.append(costs)
        return in_order(len(costs), grid)

    monkeypatch.setattr(_solving, "assemble", watched)
    monkeypatch.setattr(_solving, "_CHUNK", 2 * 4 * 36 * len(states))  # chunks of 2, 2 and 1
    solver = Solver(states=states)
    solver.together(pieces, (2, 3), generator(0))
    torch.testing.assert_close(seen[0], combo(pieces, states).mean(0, keepdim=True), atol=1e-3, rtol=0)
    assert solver.each(pieces, (2, 3), generator(0)).pieces.shape == (5, 2, 3)
    assert [len(costs) for costs in seen[1:]] == [2, 2, 1]
    with seeded(0):
        net = SeamNet(3, 8)
    costs = Solver(states=states, net=net, looked_at=3).costs(pieces)
    assert torch.equal(costs, learned(net, pieces, tables(pieces, states), 3))


def test_pieces_are_laid_in_the_order_and_states_of_the_board() -> None:
    states, pieces = states_for(ETC), cut(photos(1, 32, 32), 16)
    boards = replace(in_order(1, (2, 2)), pieces=torch.tensor([[[2, 0], [3, 1]]]),
                     states=torch.tensor([[[5, 0], [95, 40]]]))
    laid = Solver(states=states).laid(pieces, boards)[0]
    for place, (piece, state) in enumerate(((2, 5), (0, 0), (3, 95), (1, 40))):
        torch.testing.assert_close(laid[place], torch.from_numpy(slow_put(pieces[0, piece].numpy(), states, state)))
    assert torch.equal(Solver().laid(pieces, in_order(1, (2, 2))), pieces)
    assert len(states_of(None, 3)) == len(PLAIN)

"""Key recovery: keys from pairs, from chosen images, and what no pair can tell."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jigsaw_pieces import crops, neighbours
from release_views import attacked, cifar, natural, view_of

from ppbench.attacks._key_chosen import chosen, drawn
from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.attacks._key_order import correlations, matched_by
from ppbench.attacks._key_pairs import alike, matched, recover
from ppbench.attacks._key_statistics import _signs
from ppbench.attacks._key_structure import candidates, structure_of
from ppbench.attacks.key_recovery import KeyRecovery
from ppbench.data import Images
from ppbench.defense import Pieces
from ppbench.metrics import ssim
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, View

SHAPE = (3, 16, 16)
PRIVATE, PUBLIC = natural(12, SHAPE, 0), natural(40, SHAPE, 1)
PRESETS = ["vit-cipher", "etc", "le", "ele", "pe"]


def algorithm(name: str, scope: Any = "global", **params: Any) -> Algorithm:
    return Algorithm(Ref("defenses", name, params), scope, 8)


def random_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Images:
    pixels = torch.randint(256, (count, *shape), generator=generator(seed)) / 255
    return Images(pixels, torch.arange(count) % 2, torch.arange(count))


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_equal_values_are_matched_and_the_rest_is_dealt_out(seed: int, rows: int, count: int, most: int) -> None:
    rng = generator(seed)
    ours, theirs = (torch.randint(most, (rows, count), generator=rng) for _ in range(2))
    found = matched(ours, theirs)
    assert torch.equal(found.sort(1).values, torch.arange(count).expand(rows, -1))  # each place once
    for row in range(rows):
        common = sum(min(int((ours[row] == v).sum()), int((theirs[row] == v).sum())) for v in range(most))
        assert int((ours[row][found[row]] == theirs[row]).sum()) == common
        assert alike(ours[row]).tolist() == [int((ours[row] == v).sum()) > 1 for v in ours[row]]


@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([None, 4]))
def test_a_map_decrypts_what_it_encrypts(seed: int, nibbles: bool, size: int | None) -> None:
    rng, structure = generator(seed), Structure((3, 8, 4), size, True, "own", nibbles)
    blocks, values = structure.blocks, structure.values
    key = KeyMap(torch.randperm(blocks, generator=rng), torch.rand(blocks, values, generator=rng).argsort(1),
                 torch.rand(blocks, values, generator=rng) < 0.5)
    images = random_images(2, structure.image, seed).pixels
    levels = structure.levels(images)
    assert torch.equal(key.decrypt(key.encrypt(levels, structure.top), structure.top), levels)
    assert torch.allclose(structure.image_of(levels), images)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(PRESETS), st.sampled_from([2, 4, 8]), st.sampled_from([1, 3]))
def test_chosen_images_give_the_whole_key(seed: int, preset: Any, block: int, channels: int) -> None:
    shape = (channels, 8, 16)
    defense = algorithm("block-scrambling", preset=preset, block=block)
    structure = structure_of(defense, shape)
    assert structure is not None
    asked = chosen(structure)
    images = torch.cat([asked, random_images(3, shape, seed).pixels])
    rows = torch.arange(len(images))
    released = structure.levels(defense.protect(Images(images, rows * 0, rows), generator(seed)).images)
    plain, count = structure.levels(images), len(asked)
    found = recover(structure, plain[:count], released[:count])
    assert (found.right, found.sure) == (1, 1)
    assert torch.equal(found.key.decrypt(released[count:], structure.top), plain[count:])


@pytest.mark.parametrize(("name", "params", "count"), [
    ("block-scrambling", {"preset": "vit-cipher"}, 1), ("block-scrambling", {"preset": "etc"}, 1),
    ("block-scrambling", {"preset": "le"}, 1), ("block-scrambling", {"preset": "pe"}, 1),
    ("block-scrambling", {"preset": "ele"}, 2), ("block-scrambling", {"preset": "ele", "block": 8}, 3),
    ("pixel-permutation", {}, 1), ("pixel-permutation", {"channels": "apart"}, 2)])
def test_how_many_chosen_images_it_takes(name: str, params: dict[str, Any], count: int) -> None:
    structure = structure_of(algorithm(name, **params), (3, 32, 32))
    assert structure is not None
    assert len(chosen(structure)) == count


def test_one_chosen_image_cannot_tell_the_values_of_an_ele_block_apart() -> None:
    """16 levels of a nibble, 8 without their signs, for 96 nibbles: two images have room, and one has none."""
    structure = structure_of(algorithm("block-scrambling", preset="ele"), (3, 32, 32))
    assert structure is not None
    for count, told in ((1, False), (2, True)):
        levels = drawn(structure, count, generator(0))
        assert (recover(structure, levels, levels).sure == 1) is told


@pytest.mark.parametrize("params", [
    {"preset": "vit-cipher", "turn": True}, {"preset": "etc", "pixels": "shared"}, {"preset": "le", "move": True},
    {"preset": "etc", "nibbles": True}, {"preset": "vit-cipher", "negative": "own", "colours": "pixel"},
    {"preset": "pe", "negative": "none"}, {"preset": "etc", "negative": "none", "colours": "none"}])
def test_combinations_of_steps_are_recovered_too(params: dict[str, Any]) -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", params, "global", pairs=32)
    assert torch.equal(attacked(KeyRecovery(), view).images, PRIVATE.pixels)


@pytest.mark.parametrize("params", [{"preset": preset} for preset in PRESETS] + [{"preset": "le", "block": 8}])
def test_known_pairs_give_the_key(params: dict[str, Any]) -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", params, "global", pairs=32)
    found = attacked(KeyRecovery(), view)
    assert torch.equal(found.images, PRIVATE.pixels)
    assert "32 pairs: 100.0% of their values explained" in found.note


def test_flat_blocks_are_told_apart_by_the_release() -> None:
    """The known image is flat in two corners, so that it does not tell which is which; the released images do."""
    known = PUBLIC.pixels[:1].clone()
    known[:, :, :4, :4] = known[:, :, -4:, -4:] = 0.5
    public = replace(PUBLIC, pixels=torch.cat([known, PUBLIC.pixels[1:]]))
    views = [view_of(PRIVATE, public, "block-scrambling", {}, "global", pairs=1, seed=seed) for seed in range(6)]
    wrong = [[not torch.equal(attacked(KeyRecovery(settle=settle), view).images, PRIVATE.pixels) for view in views]
             for settle in (True, False)]
    assert not any(wrong[0])
    assert any(wrong[1])


def test_every_clients_key_is_told_by_its_own_pairs() -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {}, "client", pairs=40, clients=3)
    assert torch.equal(attacked(KeyRecovery(), view).images, PRIVATE.pixels)


@pytest.mark.parametrize(("name", "params", "scope", "why"), [
    ("block-scrambling", {}, "image", "every image has a key of its own"), ("none", {}, None, "no key"),
    ("mixup", {}, None, "no key"), ("constant", {}, None, "no key")])
def test_what_no_pair_tells_is_returned_as_released(name: str, params: dict[str, Any], scope: Any, why: str) -> None:
    view = view_of(PRIVATE, PUBLIC, name, params, scope, pairs=0 if scope is None else 8)
    found = attacked(KeyRecovery(), view)
    assert found.note == f"as released: {why}"
    if view.released_shape == view.image_shape:
        assert torch.equal(found.images, view.images)


def test_the_most_special_structure_that_explains_a_cipher_is_taken() -> None:
    special = structure_of(algorithm("block-scrambling", preset="vit-cipher"), (3, 8, 8))
    assert special is not None
    assert (special.inside, special.moved, special.size) == ("shared", True, 4)
    pe = structure_of(algorithm("block-scrambling", preset="pe"), (3, 8, 8))
    assert pe is not None
    assert (pe.inside, pe.moved, pe.size) == ("own", False, 1)
    assert [one.inside for one in candidates(None, (1, 4, 4))] == ["states", "own", "own", "own", "own"]


@pytest.mark.real
@pytest.mark.parametrize(("preset", "block"), [(p, b) for p in ("vit-cipher", "le", "etc", "pe") for b in (4, 8)])
def test_one_known_photograph_gives_the_key(preset: Any, block: int) -> None:
    private, public = cifar(60, 20)
    right = []
    for seed in range(20):
        view = view_of(private, public[seed:seed + 1], "block-scrambling", {"preset": preset, "block": block}, "global",
                       pairs=1, seed=seed)
        right.append(torch.equal(attacked(KeyRecovery(), view).images, private.pixels))
    assert sum(right) >= 19


@given(st.integers(0, 2**32))
def test_signs_are_found_up_to_all_of_them(seed: int) -> None:
    rng = generator(seed)
    sign = torch.where(torch.rand(6, generator=rng) < 0.5, -1.0, 1.0).double()
    found = _signs(torch.rand(6, 6, generator=rng, dtype=torch.float64).add(0.2) * sign[:, None] * sign)
    assert torch.equal(found * found[0], (sign * sign[0]).float())


def test_what_depends_on_what_tells_an_order() -> None:
    rng = generator(0)
    values = torch.randn(4000, 12, generator=rng).cumsum(1)  # each depends most on its neighbours
    order = torch.randperm(12, generator=rng)
    found, fit = matched_by(correlations(values[:2000][:, order]), correlations(values[2000:]), rng)
    assert torch.equal(found, order)
    assert fit > 0.99


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 4, 256]), st.integers(1, 3), st.sampled_from(["shared", "own"]))
def test_a_key_from_images_of_few_levels_agrees_with_them(seed: int, levels: int, count: int, inside: Any) -> None:
    rng = generator(seed)
    structure = Structure((1, 16, 16), 4, True, inside)
    order = torch.rand(1 if inside == "shared" else 16, 16, generator=rng).argsort(1).expand(16, -1)
    key = KeyMap(torch.randperm(16, generator=rng), order, torch.zeros(16, 16, dtype=torch.bool))
    plain = torch.randint(levels, (count, 16, 16), generator=rng) * (255 // (levels - 1))
    assert recover(structure, plain, key.encrypt(plain, 255)).right == 1


def test_a_key_from_an_image_that_is_its_own_mirror_agrees_with_it() -> None:
    """Blocks and places go together: each alone could be exchanged, but not one without the other."""
    rng, structure = generator(0), Structure((3, 16, 16), 4, True, "shared")
    half = torch.randint(256, (1, 3, 16, 8), generator=rng) / 255
    plain = structure.levels(torch.cat([half, half.flip(3)], 3))
    key = KeyMap(torch.randperm(16, generator=rng), torch.randperm(48, generator=rng).expand(16, -1),
                 torch.zeros(16, 48, dtype=torch.bool))
    found = recover(structure, plain, key.encrypt(plain, 255))
    assert (found.right, found.sure) == (1, 0)


@pytest.mark.parametrize(("shape", "params"), [
    ((1, 8, 8), {"block": 1, "negative": "shared"}), ((3, 8, 8), {"preset": "le"}), ((1, 8, 8), {"block": 1}),
    ((3, 8, 8), {"block": 8}), ((3, 8, 8), {"preset": "etc", "block": 1}), ((1, 8, 16), {"preset": "pe"})])
@pytest.mark.parametrize("count", [1, 5])
def test_noise_and_odd_shapes_are_survived_without_pairs(shape: tuple[int, int, int], params: dict[str, Any],
                                                         count: int) -> None:
    view = view_of(random_images(count, shape), random_images(9, shape, 1), "block-scrambling", params, "global")
    assert "nan" not in attacked(KeyRecovery(), view).note


def test_images_of_unknown_clients_are_left_alone() -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {}, "client", pairs=40, clients=3)
    assert view.sealed.release is not None
    mixed = View(replace(view.sealed, release=replace(view.sealed.release, clients=None)))
    assert attacked(KeyRecovery(), mixed).note == "as released: several clients, and nothing says who sent what"


@pytest.mark.parametrize("size", [0, 3, 5, 64])
def test_pieces_that_do_not_tile_the_image_are_not_believed(size: int) -> None:
    found = list(candidates(Pieces(size, True), (3, 16, 16)))
    assert {one.size for one in found} == {1, None}


def test_without_pairs_or_public_images_nothing_is_decrypted() -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {}, "global")
    bare = view.only(frozenset({"images", "algorithm"}))
    assert attacked(KeyRecovery(), bare).note == "as released: no pairs"
    assert attacked(KeyRecovery(statistics=False), view).note == "as released: no pairs"
    own = view_of(PRIVATE, PUBLIC, "block-scrambling", {"preset": "ele"}, "global")
    assert "the statistics of the release do not tell the key" in attacked(KeyRecovery(), own).note


@pytest.mark.parametrize("block", [4, 8])
def test_blocks_are_put_together_where_statistics_tell_their_pixels(block: int) -> None:
    """The places are a permutation of the blocks: each is there once, up to what so few images leave open."""
    private, public = crops(100, 32, "private"), crops(400, 32)
    found = attacked(KeyRecovery(), view_of(private, public, "block-scrambling", {"block": block}, "global"))
    assert "by the statistics of 100 images" in found.note
    scores = neighbours(found.images, private.pixels, (True, False, True), block)  # turned, and in other colours
    assert scores.nan_to_num().mean() > 0.99


@pytest.mark.real
@pytest.mark.parametrize(("params", "least"), [
    ({}, 1.0), ({"preset": "le"}, 0.9), ({"negative": "shared"}, 0.99), ({"preset": "etc"}, 1.0),
    ({"preset": "etc", "move": False}, 1.0), ({"pixels": "none"}, 1.0)])
def test_many_images_under_one_key_give_it_away_without_any_pair(params: dict[str, Any], least: float) -> None:
    private, public = cifar(400, 800)
    view = view_of(private, public, "block-scrambling", params, "global")
    found = attacked(KeyRecovery(), view)
    assert "by the statistics of 400 images" in found.note
    assert float(ssim(found.images, private.pixels).mean()) >= least - 1e-6


@pytest.mark.real
def test_every_client_gives_its_own_key_away() -> None:
    """Up to left and right, which so few images do not tell apart."""
    private, public = cifar(800, 1200)
    view = view_of(private, public, "block-scrambling", {}, "client", clients=2)
    found = attacked(KeyRecovery(), view).images
    assert view.release.clients is not None
    for client in range(2):
        mine = view.release.clients == client
        assert any(torch.equal(one, private.pixels[mine]) for one in (found[mine], found[mine].flip(3)))

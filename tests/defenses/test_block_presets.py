"""Every preset and combination of steps of block scrambling, against a cipher in plain loops on 8-bit numbers."""

from collections.abc import Iterable
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from ppbench.blocks import cut
from ppbench.blocks import permutations as orders
from ppbench.codec import Tensors, to_bytes8
from ppbench.data import Images, Shape
from ppbench.defense import Keys, Pieces, Release, draw_keys
from ppbench.defenses.block_scrambling import PRESETS, BlockScrambling
from ppbench.errors import UserError
from ppbench.seeding import generator

SEEDS = st.integers(0, 2**32)
CHOICES: dict[str, list[Any]] = {
    "move": [None, True, False], "turn": [None, True, False], "colours": [None, "none", "block", "pixel"],
    "negative": [None, "none", "block", "shared", "own"], "pixels": [None, "none", "shared", "own"],
    "nibbles": [None, True, False],
}


class Case(NamedTuple):
    defense: BlockScrambling
    images: Tensor
    keys: Keys

    @property
    def shape(self) -> Shape:
        _, c, h, w = self.images.shape
        return c, h, w

    def encrypted(self) -> Tensor:
        return self.defense.query(self.images, self.keys, generator(9))

    def decrypted(self, released: Tensor) -> Tensor:
        rows = torch.arange(len(released))
        return self.defense.invert(Release(released, rows, rows), self.keys, self.shape)


@st.composite
def ciphers(draw: st.DrawFn) -> BlockScrambling:
    """Every preset as it is, and any steps replaced."""
    changes = {name: draw(st.sampled_from(values)) for name, values in CHOICES.items()} if draw(st.booleans()) else {}
    try:
        return BlockScrambling(preset=draw(st.sampled_from(sorted(PRESETS))), block=draw(st.integers(1, 4)), **changes)
    except ValueError:
        assume(False)
        raise


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """8-bit images, grey or colour, square or not, under keys of every scope."""
    defense, n, rng = draw(ciphers()), draw(st.integers(1, 3)), generator(draw(SEEDS))
    shape = (draw(st.sampled_from([1, 3])), defense.block * draw(st.integers(1, 3)),
             defense.block * draw(st.integers(1, 3)))
    keys = draw_keys(defense, draw(st.sampled_from(defense.key_scopes)), n, shape, rng, clients=2)
    assert keys is not None
    return Case(defense, torch.randint(256, (n, *shape), generator=rng).float() / 255, keys)


def levels(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.int64).numpy()


def by_loops(image: np.ndarray, defense: BlockScrambling, key: Tensors) -> np.ndarray:
    """The whole cipher, one block and value after the other, on integers from 0 to 255."""
    size = defense.block if defense.pieces(image.shape) is not None else 1  # type: ignore[arg-type]
    columns, out = image.shape[2] // size, np.zeros_like(image)
    for place in range(columns * (image.shape[1] // size)):
        origin = int(key["blocks"][place]) if "blocks" in key else place
        (y, x), (v, u) = (np.array(divmod(index, columns)) * size for index in (place, origin))
        block = image[:, v:v + size, u:u + size]
        if "turns" in key:
            state = int(key["turns"][place])
            block = np.rot90(block, state % 4, axes=(1, 2))
            block = block[:, :, ::-1] if state >= 4 else block
        if "colours" in key:
            block = recoloured(block, key["colours"][place])
        block = valuewise(block, key, place, defense.recipe.nibbles)
        out[:, y:y + size, x:x + size] = block
    return out


def recoloured(block: np.ndarray, order: Tensor) -> np.ndarray:
    out = np.zeros_like(block)
    for colour, row, column in np.ndindex(block.shape):
        at = order[:, row, column] if order.shape[1] > 1 else order[:, 0, 0]
        out[colour, row, column] = block[int(at[colour]), row, column]
    return out


def valuewise(block: np.ndarray, key: Tensors, place: int, nibbles: bool) -> np.ndarray:
    if not nibbles:
        return shuffled(block.flatten().tolist(), 255, key, place, block.shape[1]).reshape(block.shape)
    high, low = [value // 16 for value in block.flatten()], [value % 16 for value in block.flatten()]
    halves = shuffled(high + low, 15, key, place, block.shape[1])
    return (halves[:block.size] * 16 + halves[block.size:]).reshape(block.shape)


def shuffled(values: list[int], top: int, key: Tensors, place: int, size: int) -> np.ndarray:
    if "negative" in key:
        signs = key["negative"][place if len(key["negative"]) > 1 else 0].flatten().tolist()
        signs = signs * len(values) if len(signs) == 1 else signs
        values = [top - value if sign else value for value, sign in zip(values, signs, strict=True)]
    if "pixels" in key:
        order = key["pixels"][place] if key["pixels"].ndim == 2 else key["pixels"]
        values = [values[int(source)] for source in order]
    return np.array(values)


@settings(deadline=None, max_examples=200)
@given(cases())
def test_it_agrees_with_loops_over_blocks_and_values(case: Case) -> None:
    out, key = levels(case.encrypted()), case.keys.per_image()
    for i, image in enumerate(levels(case.images)):
        mine = {name: value[i] for name, value in key.items()}
        np.testing.assert_array_equal(out[i], by_loops(image, case.defense, mine))


@settings(deadline=None, max_examples=200)
@given(cases())
def test_8_bit_images_become_8_bit_images_and_come_back_exactly(case: Case) -> None:
    """Which makes every cipher a bijection of the 8-bit images."""
    out = case.encrypted()
    assert out.dtype == torch.float32
    assert torch.equal(to_bytes8(out), out)
    assert torch.equal(case.decrypted(out), case.images)


@settings(deadline=None)
@given(cases(), SEEDS)
def test_other_images_come_back_as_far_as_float_and_nibbles_allow(case: Case, seed: int) -> None:
    images = torch.rand(case.images.shape, generator=generator(seed))
    found = case.decrypted(case.defense.query(images, case.keys, generator(0)))
    if case.defense.recipe.nibbles:
        images = to_bytes8(images)
    exact = case.defense.recipe.negative == "none" or case.defense.recipe.nibbles
    torch.testing.assert_close(found, images, atol=0 if exact else 1e-6, rtol=0)


@settings(deadline=None)
@given(cases())
def test_the_values_of_an_image_survive_as_a_set(case: Case) -> None:
    """Up to the negative, and as halves where nibbles are shuffled."""
    for before, after in zip(levels(case.images), levels(case.encrypted()), strict=True):
        assert canonical(before, case.defense) == canonical(after, case.defense)


def canonical(values: np.ndarray, defense: BlockScrambling) -> list[int]:
    numbers, top = values.flatten(), 255
    if defense.recipe.nibbles:
        numbers, top = np.concatenate([numbers // 16, numbers % 16]), 15
    if defense.recipe.negative != "none":
        numbers = np.minimum(numbers, top - numbers)
    return sorted(numbers.tolist())


@settings(deadline=None, max_examples=200)
@given(cases())
def test_the_published_pieces_are_true(case: Case) -> None:
    """What pieces() says may happen to a block is all that happens: the same normal form before and after."""
    pieces = case.defense.pieces(case.shape)
    recipe = case.defense.recipe
    if pieces is None:
        before, after = cut(case.images, 1), cut(case.encrypted(), 1)
        pieces = Pieces(1, moved=False, pixels="own", negated=recipe.negative != "none",
                        nibbles=recipe.nibbles and recipe.negative != "none")
    else:
        assert pieces.size == case.defense.block
        before, after = cut(case.images, pieces.size), cut(case.encrypted(), pieces.size)
    for plain, released in zip(before, after, strict=True):
        one, other = ([normal_form(block, pieces, recipe.nibbles) for block in levels(x)] for x in (plain, released))
        assert (sorted(one) if pieces.moved else one) == (sorted(other) if pieces.moved else other)


def normal_form(block: np.ndarray, pieces: Pieces, nibbles: bool) -> list[int]:
    if pieces.pixels != "kept":
        halves = np.stack([block // 16, block % 16]) if nibbles else block
        top = 15 if nibbles else 255
        return sorted((np.minimum(halves, top - halves) if pieces.negated else halves).flatten().tolist())
    states: Iterable[np.ndarray] = [block]
    if pieces.turned:
        turned = [np.rot90(block, k, (1, 2)) for k in range(4)]
        states = [*turned, *(state[:, :, ::-1] for state in turned)]
    if pieces.negated:
        states = [x for state in states for x in (state, 255 - state)]
    if pieces.recoloured:
        states = [state[list(order)] for state in states for order in permutations(range(len(block)))]
    return min(state.flatten().tolist() for state in states)


@pytest.mark.parametrize(("preset", "pieces"), [
    ("vit-cipher", Pieces(4, moved=True, pixels="shared")),
    ("etc", Pieces(4, moved=True, turned=True, negated=True, recoloured=True)),
    ("le", Pieces(4, moved=False, pixels="shared", negated=True, nibbles=True)),
    ("ele", Pieces(4, moved=True, pixels="own", negated=True, nibbles=True)),
    ("pe", None),
])
def test_what_the_presets_say_of_their_pieces(preset: Any, pieces: Pieces | None) -> None:
    assert BlockScrambling(preset).pieces((3, 32, 32)) == pieces


def test_grey_blocks_are_not_recoloured() -> None:
    pieces = BlockScrambling("etc").pieces((1, 8, 8))
    assert pieces is not None
    assert not pieces.recoloured


@pytest.mark.parametrize(("preset", "sizes"), [
    ("vit-cipher", {"blocks": (2, 64), "pixels": (2, 48)}),
    ("etc", {"blocks": (2, 64), "turns": (2, 64), "colours": (2, 64, 3, 1, 1), "negative": (2, 64, 1, 1, 1)}),
    ("le", {"negative": (2, 1, 6, 4, 4), "pixels": (2, 96)}),
    ("ele", {"blocks": (2, 64), "negative": (2, 64, 6, 4, 4), "pixels": (2, 64, 96)}),
    ("pe", {"colours": (2, 1024, 3, 1, 1), "negative": (2, 1024, 3, 1, 1)}),
])
def test_the_keys_of_the_presets(preset: Any, sizes: dict[str, tuple[int, ...]]) -> None:
    keys = BlockScrambling(preset).keys(2, (3, 32, 32), generator(0))
    assert {name: tuple(value.shape) for name, value in keys.items()} == sizes


def test_the_default_is_the_vit_cipher_with_its_two_keys_drawn_in_turn() -> None:
    """Other artefacts rest on these draws."""
    keys, rng = BlockScrambling().keys(3, (3, 32, 32), generator(7)), generator(7)
    assert list(keys) == ["blocks", "pixels"]
    assert torch.equal(keys["blocks"], orders(3, 64, rng))
    assert torch.equal(keys["pixels"], orders(3, 48, rng))


def test_a_preset_is_no_more_than_its_steps() -> None:
    spelt = BlockScrambling("etc", turn=False, colours="none", negative="none", pixels="shared")
    images, key = torch.rand(2, 3, 8, 12, generator=generator(0)), spelt.keys(2, (3, 8, 12), generator(1))
    assert spelt.recipe == BlockScrambling().recipe
    assert torch.equal(spelt.encrypt(images, key, generator(2)), BlockScrambling().encrypt(images, key, generator(2)))


@pytest.mark.parametrize(("preset", "alike"), [("vit-cipher", True), ("etc", False), ("le", True), ("ele", False),
                                               ("pe", False)])
def test_which_presets_treat_all_blocks_alike(preset: Any, alike: bool) -> None:
    tile = torch.randint(256, (1, 3, 4, 4), generator=generator(0)).float() / 255
    defense = BlockScrambling(preset)
    out = defense.encrypt(tile.repeat(1, 1, 4, 4), defense.keys(1, (3, 16, 16), generator(1)), generator(2))
    assert torch.equal(out, out[:, :, :4, :4].repeat(1, 1, 4, 4)) == alike


def keyed(defense: BlockScrambling, image: list[Any], **key: list[Any]) -> list[Any]:
    """Encrypt one image of whole numbers from 0 to 255 under a key written out."""
    out = defense.encrypt(torch.tensor([image]).float() / 255, {k: torch.tensor([v]) for k, v in key.items()},
                          generator(0))
    found: list[Any] = levels(out)[0].tolist()
    return found


def only(**steps: Any) -> BlockScrambling:
    """Switch all steps of PE off but those named."""
    return BlockScrambling("pe", **{"block": 2, "colours": "none", "negative": "none", **steps})


def test_a_move_by_hand() -> None:
    out = keyed(only(move=True), [[[1, 2, 5, 6], [3, 4, 7, 8]]], blocks=[1, 0])
    assert out == [[[5, 6, 1, 2], [7, 8, 3, 4]]]


def test_a_turn_by_hand() -> None:
    """A quarter turn anticlockwise, and the same mirrored."""
    out = keyed(only(turn=True), [[[1, 2, 1, 2], [3, 4, 3, 4]]], turns=[1, 5])
    assert out == [[[2, 4, 4, 2], [1, 3, 3, 1]]]


def test_colours_by_hand() -> None:
    image = [[[1, 2]], [[3, 4]], [[5, 6]]]
    block = keyed(only(block=1, colours="block"), image, colours=[[[[2]], [[0]], [[1]]], [[[0]], [[1]], [[2]]]])
    assert block == [[[5, 2]], [[1, 4]], [[3, 6]]]
    assert keyed(only(colours="pixel"), image, colours=[[[[2]], [[0]], [[1]]], [[[1]], [[0]], [[2]]]]) == \
        [[[5, 4]], [[1, 2]], [[3, 6]]]


def test_negatives_by_hand() -> None:
    image = [[[0, 1, 2, 3], [4, 5, 250, 255]]]
    assert keyed(only(negative="block"), image, negative=[[[[False]]], [[[True]]]]) == \
        [[[0, 1, 253, 252], [4, 5, 5, 0]]]
    assert keyed(only(negative="shared"), image, negative=[[[[True, False], [False, True]]]]) == \
        [[[255, 1, 253, 3], [4, 250, 250, 0]]]
    coins = [False, True, False, False, True, False, False, True]  # every pixel is a block of its own
    assert keyed(only(negative="own"), image, negative=[[[[coin]]] for coin in coins]) == \
        [[[0, 254, 2, 3], [251, 5, 250, 0]]]


def test_pixels_by_hand() -> None:
    image = [[[1, 2, 5, 6], [3, 4, 7, 8]]]
    assert keyed(only(pixels="shared"), image, pixels=[3, 0, 1, 2]) == [[[4, 1, 8, 5], [2, 3, 6, 7]]]
    assert keyed(only(pixels="own"), image, pixels=[[3, 0, 1, 2], [0, 1, 2, 3]]) == [[[4, 1, 5, 6], [2, 3, 7, 8]]]


def test_nibbles_by_hand() -> None:
    """0x12 and 0xAB: the halves 1 A 2 B (the high ones first), the first negated, then read backwards."""
    le = BlockScrambling("le", block=1)
    assert keyed(le, [[[0x12]], [[0xAB]]], negative=[[[[True]], [[False]], [[False]], [[False]]]],
                 pixels=[3, 2, 1, 0]) == [[[0xBA]], [[0x2E]]]


@pytest.mark.parametrize(("preset", "name", "states"), [("etc", "turns", 8), ("etc", "negative", 2),
                                                        ("le", "negative", 2), ("pe", "negative", 2)])
def test_every_state_is_equally_likely(preset: Any, name: str, states: int) -> None:
    drawn = BlockScrambling(preset).keys(200, (3, 16, 16), generator(0))[name].flatten().long()
    assert chisquare(drawn.bincount(minlength=states).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("preset", ["etc", "pe"])
def test_every_order_of_the_colours_is_equally_likely(preset: Any) -> None:
    drawn = BlockScrambling(preset).keys(50, (3, 16, 16), generator(0))["colours"].movedim(2, -1).reshape(-1, 3)
    counts = (drawn @ torch.tensor([9, 3, 1])).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_keys_differ_with_the_seed_and_leave_global_state_alone(preset: Any) -> None:
    before = torch.get_rng_state()
    first, again, other = (BlockScrambling(preset).keys(2, (3, 16, 16), generator(seed)) for seed in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert not torch.equal(first[name][0], first[name][1])
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None)
@given(ciphers(), SEEDS)
def test_every_image_is_encrypted_with_its_owners_key(defense: BlockScrambling, seed: int) -> None:
    rng = generator(seed)
    shape = (3, 2 * defense.block, 3 * defense.block)
    keys = Keys(defense.keys(2, shape, rng), torch.tensor([1, 0, 1]))
    images = torch.randint(256, (3, *shape), generator=rng).float() / 255
    private = Images(images, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    out = defense.protect(private, keys, generator(0)).images
    for i, owner in enumerate(keys.owner):
        mine = {name: value[owner][None] for name, value in keys.values.items()}
        assert torch.equal(out[i:i + 1], defense.encrypt(images[i:i + 1], mine, generator(0)))


@pytest.mark.parametrize(("wrong", "why"), [
    ({"preset": "rsa"}, "preset is 'rsa'; it must be one of vit-cipher, etc, le, ele, pe"),
    ({"preset": None}, "preset is None"), ({"colours": "shared"}, "colours is 'shared'"),
    ({"negative": "pixel"}, "one of none, block, shared, own"), ({"pixels": "block"}, "one of none, shared, own"),
    ({"preset": "pe", "negative": "none", "colours": "none"}, "no step is left"),
])
def test_what_makes_no_cipher_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        BlockScrambling(**wrong)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_blocks_must_tile_except_where_there_are_none(preset: Any) -> None:
    if preset == "pe":
        BlockScrambling(preset).check((3, 7, 5))
        return
    BlockScrambling(preset).check((3, 8, 12))
    with pytest.raises(UserError, match="block=4 does not divide"):
        BlockScrambling(preset).check((3, 8, 10))

"""What holds for every defense that only moves pixels under a key."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppbench.blocks import cut
from ppbench.data import Images, Shape
from ppbench.defense import Keys, PerImageDefense, draw_keys, keys_for_more
from ppbench.defenses.block_scrambling import BlockScrambling
from ppbench.defenses.patch_shuffle import PatchShuffle
from ppbench.defenses.pixel_permutation import PixelPermutation
from ppbench.errors import UserError
from ppbench.seeding import generator


def patch_shuffle(size: int) -> PerImageDefense:
    return PatchShuffle(patch=size)


def block_scrambling(size: int) -> PerImageDefense:
    return BlockScrambling(block=size)


def own_pixels(size: int) -> PerImageDefense:
    return BlockScrambling(block=size, pixels="own")


def turned_blocks(size: int) -> PerImageDefense:
    return BlockScrambling(preset="etc", block=size, negative="none")


def whole_pixels(size: int) -> PerImageDefense:
    return PixelPermutation()


def single_values(size: int) -> PerImageDefense:
    return PixelPermutation(channels="apart")


OF_BLOCKS = [patch_shuffle, block_scrambling, own_pixels, turned_blocks]
CIPHERS = [*OF_BLOCKS, whole_pixels, single_values]


class Case(NamedTuple):
    defense: PerImageDefense
    size: int
    private: Images
    keys: Keys

    def encrypted(self, images: Tensor | None = None) -> Tensor:
        pixels = self.private.pixels if images is None else images
        return self.defense.query(pixels, self.keys, generator(9))


@st.composite
def cases(draw: st.DrawFn, least_images: int = 1, makers: list[Any] = CIPHERS) -> Case:
    """Grey and colour, square or not, any block that tiles; one key each, one for all, or clients with one each."""
    size, rows, cols = (draw(st.integers(1, 4)) for _ in range(3))
    shape = (draw(st.sampled_from([1, 3])), rows * size, cols * size)
    defense = draw(st.sampled_from(makers))(size)
    n, rng = draw(st.integers(least_images, 4)), generator(draw(st.integers(0, 2**32)))
    scope: Any = draw(st.sampled_from([*defense.key_scopes, "owners"]))
    if scope == "owners":
        count = draw(st.integers(1, n))
        keys: Keys | None = Keys(defense.keys(count, shape, rng), torch.randint(count, (n,), generator=rng))
    else:
        keys = draw_keys(defense, scope, n, shape, rng)
    assert keys is not None
    private = Images(torch.rand(n, *shape, generator=rng), torch.randint(3, (n,), generator=rng), torch.arange(n))
    return Case(defense, size, private, keys)


def moves(case: Case) -> Tensor:
    """Encrypt images whose pixels say where they come from: `[N, pixels]`, exact in float32."""
    n, numbers = len(case.private), torch.arange(case.private.pixels[0].numel(), dtype=torch.float32)
    return case.encrypted(numbers.reshape(1, *case.private.shape).repeat(n, 1, 1, 1)).flatten(1).long()


@settings(deadline=None)
@given(cases())
def test_the_key_holder_gets_the_images_back_exactly(case: Case) -> None:
    release = case.defense.protect(case.private, case.keys, generator(0))
    assert torch.equal(case.defense.invert(release, case.keys, case.private.shape), case.private.pixels)


@settings(deadline=None)
@given(cases())
def test_every_image_is_permuted_wherever_its_values_lie(case: Case) -> None:
    order = moves(case)
    assert torch.equal(order.sort(1).values, torch.arange(order.shape[1]).expand(len(order), -1))
    assert torch.equal(case.encrypted().flatten(1), case.private.pixels.flatten(1).gather(1, order))


@settings(deadline=None)
@given(cases())
def test_the_release_keeps_labels_and_partners(case: Case) -> None:
    release = case.defense.protect(case.private, case.keys, generator(0))
    assert torch.equal(release.labels, case.private.labels)
    assert release.source is not None
    assert torch.equal(release.source, torch.arange(len(case.private)))


@settings(deadline=None)
@given(cases())
def test_queries_are_encrypted_like_training_images(case: Case) -> None:
    release = case.defense.protect(case.private, case.keys, generator(0))
    assert torch.equal(case.encrypted(), release.images)


@settings(deadline=None)
@given(cases(least_images=2))
def test_images_of_one_owner_share_one_permutation(case: Case) -> None:
    order = moves(case)
    for i, owner in enumerate(case.keys.owner):
        first = int((case.keys.owner == owner).nonzero()[0])
        assert torch.equal(order[i], order[first])


@settings(deadline=None)
@given(cases(least_images=2))
def test_keys_follow_their_images(case: Case) -> None:
    rows = torch.tensor([len(case.private) - 1, 0])
    some = case.defense.query(case.private.pixels[rows], case.keys[rows], generator(9))
    assert torch.equal(some, case.encrypted()[rows])


@settings(deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_keys_are_a_function_of_the_generator(case: Case, seed: int) -> None:
    first, second = (case.defense.keys(3, case.private.shape, generator(seed)) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and len(first[name]) == 3 for name in first)


@pytest.mark.parametrize("make", CIPHERS)
def test_keys_depend_on_the_seed_and_leave_global_state_alone(make: Any) -> None:
    before = torch.get_rng_state()
    shape = (3, 32, 32)
    first, second = (make(4).keys(1, shape, generator(seed)) for seed in (0, 1))
    assert all(not torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", CIPHERS)
def test_one_key_an_image_gives_each_an_order_of_its_own(make: Any) -> None:
    shape: Shape = (1, 16, 16)
    private = Images(torch.zeros(4, *shape), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    keys = draw_keys(make(4), "image", 4, shape, generator(0))
    assert keys is not None
    order = moves(Case(make(4), 4, private, keys))
    assert len(order.unique(dim=0)) == 4


def test_how_far_a_key_may_be_reused() -> None:
    assert PatchShuffle.key_scopes == ("image",)
    assert PixelPermutation.key_scopes == ("image", "client", "global")
    assert BlockScrambling.key_scopes == ("global", "client", "image")  # the first is the default: what the paper needs


def test_a_global_key_serves_further_images_and_image_keys_are_drawn_anew() -> None:
    defense, shape = BlockScrambling(), (1, 16, 16)
    for scope, same in (("global", True), ("image", False)):
        keys = draw_keys(defense, scope, 2, shape, generator(0))  # type: ignore[arg-type]
        more = keys_for_more(defense, keys, scope, 5, shape, generator(1))  # type: ignore[arg-type]
        assert keys is not None
        assert more is not None
        image = torch.rand(1, *shape, generator=generator(2))
        first, again = (defense.query(image, k[torch.tensor([0])], generator(0)) for k in (keys, more))
        assert torch.equal(first, again) == same
        assert len(more.owner) == 5


@pytest.mark.parametrize("make", OF_BLOCKS)
@pytest.mark.parametrize(("size", "shape"), [(3, (3, 32, 32)), (5, (1, 10, 12)), (0, (1, 8, 8)), (64, (3, 32, 32))])
def test_blocks_that_do_not_tile_are_refused(make: Any, size: int, shape: Shape) -> None:
    with pytest.raises(UserError, match=rf"={size} does not divide .*choose one of 1, "):
        make(size).check(shape)


@settings(deadline=None)
@given(cases())
def test_the_shape_that_is_encrypted_passes_the_check(case: Case) -> None:
    case.defense.check(case.private.shape)


@settings(deadline=None)
@given(cases(makers=OF_BLOCKS))
def test_the_published_pieces_are_true(case: Case) -> None:
    """A block of the release holds the values of one private block: in order where pixels are `kept`."""
    pieces = case.defense.pieces(case.private.shape)
    assert pieces is not None
    assert (pieces.size, pieces.moved) == (case.size, True)
    before, after = (cut(x, pieces.size).flatten(2) for x in (case.private.pixels, case.encrypted()))
    if pieces.pixels != "kept" or pieces.turned:
        before, after = before.sort(2).values, after.sort(2).values
    for plain, released in zip(before.tolist(), after.tolist(), strict=True):
        assert sorted(plain) == sorted(released)


@settings(deadline=None)
@given(cases(makers=[whole_pixels, single_values]))
def test_a_pixel_permutation_keeps_colours_together_unless_told_otherwise(case: Case) -> None:
    plain, released = case.private.pixels.flatten(2), case.encrypted().flatten(2)
    if case.defense == PixelPermutation():
        for before, after in zip(plain, released, strict=True):
            assert sorted(before.T.tolist()) == sorted(after.T.tolist())
    assert case.defense.pieces(case.private.shape) is None


def test_channels_apart_mix_the_colours() -> None:
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1
    for channels, mixed in (("together", False), ("apart", True)):
        defense = PixelPermutation(channels=channels)  # type: ignore[arg-type]
        out = defense.encrypt(red, defense.keys(1, (3, 16, 16), generator(0)), generator(1))
        assert bool((out.sum((2, 3)) > 0).all()) == mixed


def test_a_pixel_goes_where_the_order_says() -> None:
    image = torch.tensor([[[[0.0, 0.1], [0.2, 0.3]]]])
    order = torch.tensor([[2, 0, 3, 1]])
    out = PixelPermutation().encrypt(image, {"order": order}, generator(0))
    assert torch.equal(out, torch.tensor([[[[0.2, 0.0], [0.3, 0.1]]]]))


def test_channels_must_be_together_or_apart() -> None:
    with pytest.raises(ValueError, match="one of together, apart"):
        PixelPermutation(channels="mixed")  # type: ignore[arg-type]

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppbench.data import Images, Pool, Split, SplitSizes, check_pools, split
from ppbench.errors import ContractError, UserError

SEEDS = st.integers(0, 2**32 - 1)


def pool_of(labels: list[int], start: int = 0) -> Pool:
    """One 2 x 2 image a label, all different: its pixels spell its number."""
    numbers = np.arange(start, start + len(labels))
    pixels = np.stack([numbers % 256, numbers // 256, 0 * numbers, 0 * numbers], 1).reshape(-1, 2, 2, 1)
    return Pool(pixels.astype(np.uint8), np.array(labels, dtype=np.int64))


def parts_of(result: Split) -> list[Images]:
    return [result.private, result.public, result.test]


def contents(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.pixels}


@st.composite
def pools_and_sizes(draw: st.DrawFn) -> tuple[dict[str, Pool], SplitSizes]:
    """Pools in each of the three layouts, with sizes that they can just serve or more."""
    layout = draw(st.sampled_from([("all",), ("train", "test"), ("private", "public", "test")]))
    pools, start = {}, 0
    for name in layout:
        labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
        pools[name] = pool_of(labels, start)
        start += len(labels)
    room = {name: len(pool.labels) for name, pool in pools.items()}
    sizes = {}
    for part in ("private", "public", "test"):
        name = part if part in room else "train" if "train" in room and part != "test" else "all"
        sizes[part] = draw(st.integers(0, room[name]))
        room[name] -= sizes[part]
    return pools, SplitSizes(**sizes)


@given(pools_and_sizes(), SEEDS)
def test_parts_have_the_sizes_asked_for_and_share_no_image(case: tuple[dict[str, Pool], SplitSizes], seed: int) -> None:
    pools, sizes = case
    result = split(pools, sizes, seed)
    assert [len(part) for part in parts_of(result)] == [sizes.private, sizes.public, sizes.test]
    ids = torch.cat([part.ids for part in parts_of(result)]).tolist()
    assert len(set(ids)) == len(ids)


@given(pools_and_sizes(), SEEDS)
def test_every_image_keeps_its_pixels_label_and_pool(case: tuple[dict[str, Pool], SplitSizes], seed: int) -> None:
    pools, sizes = case
    everything = np.concatenate([pool.pixels for pool in pools.values()])
    labels = np.concatenate([pool.labels for pool in pools.values()])
    result = split(pools, sizes, seed)
    for name, part in zip(("private", "public", "test"), parts_of(result), strict=True):
        assert part.pixels.dtype == torch.float32
        assert part.labels.dtype == part.ids.dtype == torch.int64
        expected = everything[part.ids.numpy()].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal((part.pixels.numpy() * 255).round(), expected)
        np.testing.assert_array_equal(part.labels.numpy(), labels[part.ids.numpy()])
        if name in pools:
            assert contents(part) <= contents_of_pool(pools[name])
    assert result.classes == labels.max() + 1


def contents_of_pool(pool: Pool) -> set[bytes]:
    pixels = torch.from_numpy(pool.pixels.transpose(0, 3, 1, 2).copy()).float() / 255
    return {image.numpy().tobytes() for image in pixels}


@given(pools_and_sizes(), SEEDS)
def test_equal_seeds_give_equal_splits(case: tuple[dict[str, Pool], SplitSizes], seed: int) -> None:
    pools, sizes = case
    once, again = split(pools, sizes, seed), split(pools, sizes, seed)
    for a, b in zip(parts_of(once), parts_of(again), strict=True):
        assert torch.equal(a.ids, b.ids)


def test_the_split_neither_reads_nor_moves_the_global_generators() -> None:
    pools, sizes = {"all": pool_of([0, 1] * 30)}, SplitSizes(10, 10, 10)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.rand(()), np.random.random()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = split(pools, sizes, 3)
    assert (torch.rand(()), np.random.random()) == before  # noqa: NPY002
    assert torch.equal(split(pools, sizes, 3).private.ids, first.private.ids)


@given(SEEDS, SEEDS)
def test_different_seeds_give_different_orders(a: int, b: int) -> None:
    pools = {"all": pool_of([0, 1, 2] * 60)}
    orders = [split(pools, SplitSizes(60, 60, 60), seed).private.ids for seed in (a, b)]
    assert (a == b) == torch.equal(*orders)


@given(st.integers(1, 6), st.integers(0, 25), st.integers(0, 25), st.integers(0, 25), SEEDS)
def test_parts_are_balanced_where_every_class_suffices(k: int, private: int, public: int, test: int, seed: int) -> None:
    members = -(-private // k) - (-public // k) - (-test // k)
    pools = {"all": pool_of(list(range(k)) * members + [0] * 7)}
    for part in parts_of(split(pools, SplitSizes(private, public, test), seed)):
        counts = np.bincount(part.labels.numpy(), minlength=k)
        assert counts.max() - counts.min() <= 1


@given(st.integers(1, 24), SEEDS)
def test_the_first_private_images_are_balanced_too(targets: int, seed: int) -> None:
    private = split({"all": pool_of([0, 1, 2, 3] * 20)}, SplitSizes(24, 24, 24), seed).private
    counts = np.bincount(private.labels[:targets].numpy(), minlength=4)
    assert counts.max() - counts.min() <= 1


@given(st.integers(20, 40), st.integers(0, 40), st.integers(0, 40), SEEDS)
def test_targets_do_not_depend_on_the_sizes_of_the_parts(private: int, public: int, test: int, seed: int) -> None:
    pools = {"all": pool_of([0, 1, 2] * 50)}
    reference = split(pools, SplitSizes(20, 20, 20), seed).private.ids
    assert torch.equal(split(pools, SplitSizes(private, public, test), seed).private.ids[:20], reference)


def test_a_rare_class_is_shared_by_the_parts_in_proportion() -> None:
    pools = {"train": pool_of([0] * 1000 + [1] * 40), "test": pool_of([0, 1] * 10, 2000)}
    result = split(pools, SplitSizes(200, 200, 20), 0)
    assert [int((part.labels == 1).sum()) for part in parts_of(result)] == [20, 20, 10]


@given(st.lists(st.integers(0, 3), min_size=6, max_size=60), st.lists(st.integers(0, 3), max_size=20), SEEDS)
def test_duplicates_never_stand_in_two_places(numbers: list[int], more: list[int], seed: int) -> None:
    pixels = [np.full((len(n), 2, 2, 1), np.array(n, np.uint8).reshape(-1, 1, 1, 1)) for n in (numbers, more)]
    pools = {name: Pool(p, np.zeros(len(p), np.int64)) for name, p in zip(("train", "test"), pixels, strict=True)}
    distinct, rest = len(set(numbers)), len(set(more) - set(numbers))
    half = distinct // 2
    result = split(pools, SplitSizes(half, distinct - half, rest), seed)
    found = [contents(part) for part in parts_of(result)]
    assert len(set.union(*found)) == sum(map(len, found)) == distinct + rest
    with pytest.raises(UserError, match=r"distinct images for private \+ public, but .*: lower private or public"):
        split(pools, SplitSizes(half + 1, distinct - half, rest), seed)
    with pytest.raises(UserError, match=f"has {rest} distinct images for test, but {rest + 1} are asked for"):
        split(pools, SplitSizes(half, distinct - half, rest + 1), seed)


@settings(max_examples=20)
@given(st.integers(0, 60), SEEDS)
def test_balance_survives_duplicates(copies: int, seed: int) -> None:
    plain = pool_of([0, 1] * 20)
    twins = np.repeat(plain.pixels[:1], copies, axis=0)
    pool = Pool(np.concatenate([twins, plain.pixels]), np.concatenate([np.zeros(copies, np.int64), plain.labels]))
    counts = np.bincount(split({"all": pool}, SplitSizes(20, 10, 10), seed).private.labels.numpy())
    assert counts.tolist() == [10, 10]


def test_rows_of_images_are_taken_together() -> None:
    images = Images(torch.rand(4, 3, 2, 5), torch.arange(4), torch.arange(4) + 10)
    assert images.shape == (3, 2, 5)
    taken = images[torch.tensor([2, 0])]
    assert taken.labels.tolist() == [2, 0]
    assert taken.ids.tolist() == [12, 10]
    assert torch.equal(taken.pixels, images.pixels[[2, 0]])
    assert len(images[:3]) == 3


GOOD = pool_of([0, 1, 0])


@pytest.mark.parametrize(("pools", "words"), [
    ({}, "must have a pool 'private' or 'train' or 'all'"),
    ({"train": GOOD}, "must have a pool 'test' or 'all'"),
    ({"private": GOOD, "test": GOOD}, "must have a pool 'public' or 'train' or 'all'"),
    ({"all": Pool(GOOD.pixels / 255, GOOD.labels)}, "must hold uint8 images"),
    ({"all": Pool(GOOD.pixels[..., 0], GOOD.labels)}, "must hold uint8 images"),
    ({"all": Pool(GOOD.pixels.repeat(2, axis=3), GOOD.labels)}, "must hold uint8 images"),
    ({"all": Pool(GOOD.pixels, GOOD.labels[:2])}, "one integer label"),
    ({"all": Pool(GOOD.pixels, GOOD.labels - 1)}, "one integer label"),
    ({"all": Pool(GOOD.pixels, GOOD.labels / 1)}, "one integer label"),
    ({"train": GOOD, "test": Pool(GOOD.pixels[:, :1], GOOD.labels)}, "one shape"),
])
def test_pools_that_break_the_contract_are_named(pools: dict[str, Pool], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_pools(pools)
    with pytest.raises(ContractError, match=words):
        split(pools, SplitSizes(1, 1, 1), 0)


@given(st.sampled_from([("all",), ("train", "test"), ("private", "public", "test")]), SEEDS, st.integers(1, 30))
def test_disjoint_public_images_are_of_other_classes(layout: tuple[str, ...], seed: int, public: int) -> None:
    pools = {name: pool_of([label for label in range(12) for _ in range(6)], 72 * i) for i, name in enumerate(layout)}
    result = split(pools, SplitSizes(20, public, 10, disjoint=True), seed)
    assert [len(part) for part in parts_of(result)] == [20, public, 10]
    known = set(result.public.labels.tolist())
    assert len(known) == -(-public // 6)  # no more people than are needed
    assert not known & set(torch.cat([result.private.labels, result.test.labels]).tolist())
    ids = torch.cat([part.ids for part in parts_of(result)]).tolist()
    assert len(set(ids)) == len(ids)
    assert result.classes == 12


@given(SEEDS)
def test_copies_do_not_count_for_public(seed: int) -> None:
    """Six classes of ten, half of them copies: ten public images take two classes."""
    pool = pool_of([label for label in range(6) for _ in range(5)])
    double = Pool(np.concatenate([pool.pixels, pool.pixels]), np.concatenate([pool.labels, pool.labels]))
    public = split({"all": double}, SplitSizes(10, 10, 10, disjoint=True), seed).public
    assert len(public.labels.unique()) == 2


def test_other_seeds_draw_other_classes_for_public() -> None:
    pools = {"all": pool_of([label for label in range(12) for _ in range(6)])}
    drawn = {tuple(split(pools, SplitSizes(20, 12, 10, disjoint=True), seed).public.labels.unique().tolist())
             for seed in range(8)}
    assert len(drawn) > 4


def test_too_few_disjoint_images_are_told() -> None:
    pools = {"all": pool_of([0] * 10 + [1] * 10)}
    with pytest.raises(UserError, match=r"10 distinct images for private \+ test in classes .* or public"):
        split(pools, SplitSizes(6, 5, 6, disjoint=True), 0)
    with pytest.raises(UserError, match=r"20 distinct images for public, but 21 are asked for: lower public$"):
        split(pools, SplitSizes(6, 21, 6, disjoint=True), 0)


def test_only_a_disjoint_split_says_so() -> None:
    assert SplitSizes(1, 2, 3).described() == {"private": 1, "public": 2, "test": 3}
    assert SplitSizes(1, 2, 3, disjoint=True).described()["disjoint"] is True

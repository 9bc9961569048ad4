import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ppbench.blocks import check_divides, cut, join, permutations, permute_rows, symmetries, turn, turn_back
from ppbench.errors import UserError

SIDES = st.integers(1, 4)


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 3]), SIDES, SIDES, SIDES)
def test_cut_finds_the_blocks_row_by_row_and_join_undoes_it(n: int, c: int, rows: int, cols: int, size: int) -> None:
    shape = (c, rows * size, cols * size)
    images = torch.arange(n * c * rows * cols * size**2, dtype=torch.float32).reshape(n, *shape)
    blocks = cut(images, size)
    assert blocks.shape == (n, rows * cols, c, size, size)
    for row in range(rows):
        for col in range(cols):
            expected = images[:, :, row * size:(row + 1) * size, col * size:(col + 1) * size]
            assert torch.equal(blocks[:, row * cols + col], expected)
    assert torch.equal(join(blocks, shape), images)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32))
def test_permute_rows_takes_the_named_row(n: int, length: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    values, order = torch.rand(n, length, 2, 3, generator=rng), permutations(n, length, rng)
    out = permute_rows(values, order)
    for image in range(n):
        for place in range(length):
            assert torch.equal(out[image, place], values[image, int(order[image, place])])
    assert torch.equal(permute_rows(out, order.argsort(1)), values)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_permutations_hold_every_item_once(count: int, length: int, seed: int) -> None:
    orders = permutations(count, length, torch.Generator().manual_seed(seed))
    assert orders.shape == (count, length)
    assert torch.equal(orders.sort(1).values, torch.arange(length).expand(count, -1))


def test_all_permutations_of_four_are_equally_likely() -> None:
    orders = permutations(12_000, 4, torch.Generator().manual_seed(0))
    numbers = orders @ torch.tensor([64, 16, 4, 1])
    counts = torch.unique(numbers, return_counts=True)[1]
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 0.01


@pytest.mark.parametrize(("size", "shape"), [(3, (1, 8, 9)), (3, (1, 9, 8)), (0, (1, 8, 8)), (-4, (1, 8, 8)),
                                             (16, (1, 8, 8))])
def test_a_side_that_does_not_divide_is_refused_by_name(size: int, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=f"block={size} does not divide images of {shape[1]} x {shape[2]}"):
        check_divides("block", size, shape)


def test_the_refusal_lists_the_sides_that_do() -> None:
    with pytest.raises(UserError, match=r"choose one of 1, 2, 4$"):
        check_divides("patch", 3, (3, 8, 12))
    for size in (1, 2, 4):
        check_divides("patch", size, (3, 8, 12))


@settings(deadline=None)
@given(st.integers(1, 2), st.integers(1, 9), st.sampled_from([1, 3]), SIDES, st.integers(0, 2**32))
def test_turn_rotates_and_mirrors_every_block_its_own_way(n: int, count: int, c: int, size: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    blocks = torch.rand(n, count, c, size, size, generator=rng)
    states = torch.randint(8, (n, count), generator=rng)
    out = turn(blocks, states)
    for image in range(n):
        for place in range(count):
            state = int(states[image, place])
            expected = np.rot90(blocks[image, place].numpy(), state % 4, axes=(1, 2))
            np.testing.assert_array_equal(out[image, place], expected[:, :, ::-1] if state >= 4 else expected)
    assert torch.equal(turn_back(out, states), blocks)


def test_the_states_of_a_square_of_four() -> None:
    a, b, c, d = range(4)  # a b over c d
    assert symmetries(2).tolist() == [[a, b, c, d], [b, d, a, c], [d, c, b, a], [c, a, d, b],
                                      [b, a, d, c], [d, b, c, a], [c, d, a, b], [a, c, b, d]]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_eight_states_differ(size: int) -> None:
    assert symmetries(size).shape == (8, size**2)
    assert len(symmetries(size).unique(dim=0)) == 8


def test_no_images_are_cut_and_joined() -> None:
    none = torch.empty(0, 3, 8, 12)
    assert cut(none, 4).shape == (0, 6, 3, 4, 4)
    assert join(cut(none, 4), (3, 8, 12)).shape == none.shape

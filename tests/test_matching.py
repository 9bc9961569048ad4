import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from ppbench.errors import UserError
from ppbench.matching import Link, Order, assign, order_of


def error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


@given(arrays.arrays(np.float32, (2, 4, 1, 2, 2), elements=st.floats(0, 1, width=32)))
def test_no_other_assignment_is_better(values: np.ndarray) -> None:
    estimates, targets = torch.from_numpy(values)
    index = assign(estimates, targets)
    assert sorted(index.tolist()) == [0, 1, 2, 3]
    best = min(error(estimates[list(order)], targets) for order in itertools.permutations(range(4)))
    assert error(estimates[index], targets) == pytest.approx(best, abs=1e-6)


def test_a_shuffled_set_is_put_in_order() -> None:
    targets = torch.rand(40, 3, 8, 8)
    order = torch.randperm(40)
    index = assign(targets[order] + 0.01, targets)
    assert torch.equal(order[index], torch.arange(40))


def test_ordered_estimates_are_left_where_they_are() -> None:
    targets = torch.rand(6, 1, 4, 4)
    assert torch.equal(Order().matched(targets.flip(0), targets), targets.flip(0))
    assert torch.equal(Order(False).matched(targets.flip(0), targets), targets)
    inside = torch.tensor([1, 0, 3, 2, 5, 4])
    assert torch.equal(Order(False, 2).matched(targets[inside], targets), targets)
    assert not torch.equal(Order(False, 2).matched(targets.flip(0), targets), targets)


@pytest.mark.parametrize(("partnered", "links", "order"), [
    (True, [Link()], Order()),
    (True, [Link("released")], Order()),
    (False, [Link()], Order()),
    (False, [Link("released")], Order(False)),
    (False, [Link(), Link("released")], Order(False)),
    (True, [Link(aligned=False)], Order(False)),
    (True, [Link(aligned=False, within=4)], Order(False, 4)),
    (True, [Link(), Link("released", False, 4)], Order(False, 4)),
    (True, [Link(aligned=False), Link("released", False, 4)], Order(False)),
    (True, [Link(aligned=False, within=8), Link("released", False, 4)], Order(False, 8))])
def test_a_chain_is_as_ordered_as_its_loosest_link(partnered: bool, links: list[Link], order: Order) -> None:
    assert order_of(partnered, *links) == order


@pytest.mark.parametrize(("order", "text"), [(Order(), "true"), (Order(False), "false"), (Order(False, 4), "within 4")])
def test_an_order_is_told_in_a_word(order: Order, text: str) -> None:
    assert str(order) == text


def test_matching_stays_within_batches() -> None:
    targets = torch.rand(10, 1, 4, 4)
    estimates = targets.flip(0)
    index = assign(estimates, targets, within=4)
    assert [set(part.tolist()) for part in index.split(4)] == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9}]
    for part in range(0, 10, 4):
        rows = slice(part, part + 4)
        assert torch.equal(index[rows] - part, assign(estimates[rows], targets[rows]))


def test_a_batch_of_one_leaves_the_order() -> None:
    assert assign(torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2), within=1).tolist() == [0, 1, 2, 3, 4]
    assert assign(torch.rand(0, 1, 2, 2), torch.rand(0, 1, 2, 2)).tolist() == []


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be matched"):
        assign(torch.rand(5, 1, 2, 2), torch.rand(4, 1, 2, 2))
    with pytest.raises(UserError, match="within is 0"):
        assign(torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2), within=0)

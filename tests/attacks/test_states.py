"""The states of pieces: a group, and what they do to pixels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jigsaw_pieces import ETC, FLAGS, Flags, looking_right, slow_put, states_for
from torch import Tensor

from ppbench.attacks._states import ABOVE, BELOW, LEFT, OPPOSITE, PLAIN, RIGHT, states_of
from ppbench.blocks import turn
from ppbench.defense import Pieces
from ppbench.seeding import generator

groups = pytest.mark.parametrize(("flags", "channels"), [*itertools.product(FLAGS, (3,)), (ETC, 1), (ETC, 2)])


def blocks(count: int, pieces: int, channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, pieces, channels, size, size, generator=generator(seed))


@groups
def test_all_combinations_are_there_once_and_the_first_changes_nothing(flags: Flags, channels: int) -> None:
    states = states_for(flags, channels)
    turned, negated, recoloured = flags
    orders = len(list(itertools.permutations(range(channels)))) if recoloured else 1
    assert len(states) == (8 if turned else 1) * (2 if negated else 1) * orders
    every = {(int(one), bool(negative), tuple(colours.tolist()))
             for one, negative, colours in zip(states.turns, states.negative, states.colours, strict=True)}
    assert len(every) == len(states)
    assert {sorted(colours) == list(range(channels)) for _, _, colours in every} == {True}
    assert (int(states.turns[0]), bool(states.negative[0])) == (0, False)
    assert states.colours[0].tolist() == list(range(channels))
    shades = states.turns.view(8 if turned else 1, -1)  # negatives and colours of one turn stand together
    assert (shades == shades[:, :1]).all()
    assert 2**states.bits >= len(states)
    assert states.bits == 0 or 2**(states.bits - 1) < len(states)
    assert states.blind is (negated or (recoloured and channels > 1))


@groups
def test_states_are_a_group(flags: Flags, channels: int) -> None:
    states = states_for(flags, channels)
    every, product = torch.arange(len(states)), states.product
    for table in (product, product.T, states.relative):  # closed, and each row once: what is done can be undone
        assert torch.equal(table.sort(1).values, every.expand(len(states), -1))
    assert torch.equal(product[0], every)
    assert torch.equal(product[:, 0], every)
    assert torch.equal(product[states.inverse, every], torch.zeros_like(every))
    assert torch.equal(product[every, states.inverse], torch.zeros_like(every))
    assert torch.equal(product[product], product[every[:, None, None], product])  # (ab)c = a(bc)
    assert torch.equal(product[every[:, None], states.relative], every.expand(len(states), -1))
    assert torch.equal(states.relative, product[states.inverse])


@groups
def test_a_state_turns_and_negates_and_recolours(flags: Flags, channels: int) -> None:
    states = states_for(flags, channels)
    pieces = blocks(1, len(states), channels, 3)
    found = states.put(pieces, torch.arange(len(states))[None])[0]
    turned = turn(pieces, states.turns[None])[0]
    for state in range(len(states)):
        expected = slow_put(pieces[0, state].numpy(), states, state)
        np.testing.assert_array_equal(found[state], expected)
        whole = turned[state][states.colours[state]]
        assert torch.equal(found[state], 1 - whole if states.negative[state] else whole)


@groups
@pytest.mark.parametrize("size", [1, 2, 5])
def test_products_are_what_is_done_one_after_the_other(flags: Flags, channels: int, size: int) -> None:
    states = states_for(flags, channels)
    first, then = torch.meshgrid(torch.arange(len(states)), torch.arange(len(states)), indexing="ij")
    first, then = first.reshape(1, -1), then.reshape(1, -1)
    piece = blocks(1, 1, channels, size).expand(1, first.shape[1], -1, -1, -1)
    both = states.put(states.put(piece, first), then)
    torch.testing.assert_close(both, states.put(piece, states.product[then, first]))
    there = states.put(piece, then)
    torch.testing.assert_close(states.put(states.put(piece, states.relative[first, then]), first), there)
    torch.testing.assert_close(states.put(there, states.inverse[then]), piece)


@given(st.sampled_from(FLAGS), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3]),
       st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_piece_is_put_into_its_own_state(flags: Flags, count: int, pieces: int, size: int, channels: int,
                                               seed: int) -> None:
    states = states_for(flags, channels)
    given_ = blocks(count, pieces, channels, size, seed)
    how = torch.randint(len(states), (count, pieces), generator=generator(seed))
    found, every = states.put(given_, how), states.all_of(given_)
    assert every.shape == (count, pieces, len(states), channels, size, size)
    for n, p in itertools.product(range(count), range(pieces)):
        np.testing.assert_array_equal(found[n, p], slow_put(given_[n, p].numpy(), states, int(how[n, p])))
        assert torch.equal(every[n, p, how[n, p]], found[n, p])


@given(st.sampled_from(FLAGS), st.integers(2, 6))
@settings(deadline=None)
def test_faces_are_the_sides_that_are_seen(flags: Flags, size: int) -> None:
    """Every side of a block of which no two pixels are alike is looked for among the sides as they were."""
    states = states_for((flags[0], False, False), 1)
    block = np.arange(size * size).reshape(1, size, size)
    own = {side: looking_right(block, side)[0, :, -1].tolist() for side in (RIGHT, LEFT, BELOW, ABOVE)}
    assert own[RIGHT] == block[0, :, -1].tolist()
    assert own[ABOVE] == block[0, 0].tolist()
    for state, direction in itertools.product(range(len(states)), range(4)):
        seen = looking_right(slow_put(block, states, state), direction)[0, :, -1].tolist()
        face, backwards = int(states.face[state, direction]), bool(states.backwards[state, direction])
        assert seen == (own[face][::-1] if backwards else own[face])
    all_ = states_for(flags)
    shades = len(all_) // len(states)
    assert torch.equal(all_.face, states.face.repeat_interleave(shades, 0))
    assert torch.equal(all_.backwards, states.backwards.repeat_interleave(shades, 0))


def test_opposite_sides() -> None:
    assert OPPOSITE.tolist() == [LEFT, RIGHT, ABOVE, BELOW]


def test_plain_pieces_lie_as_they_are() -> None:
    assert len(PLAIN) == 1
    assert (PLAIN.bits, PLAIN.blind) == (0, False)
    assert PLAIN.face.tolist() == [[RIGHT, LEFT, BELOW, ABOVE]]
    assert not PLAIN.backwards.any()
    pieces = blocks(2, 3, 3, 2)
    assert torch.equal(PLAIN.put(pieces, torch.zeros(2, 3, dtype=torch.int64)), pieces)
    moved = Pieces(4, moved=True)
    assert len(states_of(moved, 3)) == len(states_of(None, 3)) == 1

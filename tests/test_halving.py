"""Halves of the private images: fair, with canaries of wrong labels, and a line-up that hides who is who."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ppbench.data import Halving, Images, Split
from ppbench.halving import Lineup, distinct, halve, lineup, suspects
from ppbench.seeding import generator

CLASSES = 3


def whole(count: int) -> Split:
    """Images of one pixel that holds their number, in an order that is not that of their ids."""
    ids = torch.randperm(count, generator=generator(7)) + 100
    private = Images(ids[:, None, None, None].float(), torch.arange(count) % CLASSES, ids)
    return Split(private, private[:5], private[:7], CLASSES)


def halved(count: int, canaries: int, copies: int, seed: int) -> tuple[Split, Split]:
    split = whole(count)
    return split, halve(split, Halving(canaries, copies), generator(seed))


@given(st.integers(6, 60), st.integers(0, 3), st.integers(1, 3), st.integers(0, 2**31))
def test_both_halves_are_alike_and_share_nothing(count: int, pairs: int, copies: int, seed: int) -> None:
    split, found = halved(count, 2 * pairs, copies, seed)
    assert found.held is not None
    used = found.private[: distinct(found.private)]
    assert sorted([*used.ids.tolist(), *found.held.ids.tolist()]) == sorted(split.private.ids.tolist())
    assert len(used) - len(found.held) == count % 2
    assert len(found.private) == Halving(2 * pairs, copies).kept(count)
    for part in (found.private, found.held):
        assert torch.equal(part.pixels.flatten(), part.ids.float())
    truth = dict(zip(split.private.ids.tolist(), split.private.labels.tolist(), strict=True))
    wrong = [[truth[i] != label for i, label in zip(part.ids.tolist(), part.labels.tolist(), strict=True)]
             for part in (used, found.held)]
    assert [sum(part) for part in wrong] == [pairs, pairs]
    honest = [part.labels[~torch.tensor(bad)] for part, bad in zip((used, found.held), wrong, strict=True)]
    sizes = [torch.bincount(labels, minlength=CLASSES) for labels in honest]
    assert (sizes[0] - sizes[1]).abs().max() <= 1
    assert torch.equal(found.test.ids, split.test.ids)
    assert torch.equal(found.public.ids, split.public.ids)


def test_further_copies_of_canaries_stand_behind_the_others() -> None:
    split, found = halved(20, 4, 3, 0)
    behind = found.private[10:]
    wrong = {i for i, label in zip(found.private.ids.tolist(), found.private.labels.tolist(), strict=True)
             if label != int(split.private.labels[split.private.ids == i])}
    assert len(wrong) == 2
    assert sorted(behind.ids.tolist()) == sorted([*wrong, *wrong])


def test_halves_differ_with_the_seed() -> None:
    one, other = (halved(20, 2, 1, seed)[1] for seed in (0, 1))
    assert one.private.ids.tolist() != other.private.ids.tolist()


@given(st.integers(6, 40), st.integers(1, 2), st.integers(0, 2**31))
def test_the_line_up_knows_who_is_who(count: int, copies: int, seed: int) -> None:
    split, found = halved(count, 2, copies, seed)
    truth = lineup(split, found, generator(seed))
    shown = suspects(found)[truth.order]
    used = set(found.private.ids.tolist())
    assert truth.members.tolist() == [i in used for i in shown.ids.tolist()]
    labels = dict(zip(split.private.ids.tolist(), split.private.labels.tolist(), strict=True))
    assert truth.canaries.tolist() == [labels[i] != label for i, label in
                                       zip(shown.ids.tolist(), shown.labels.tolist(), strict=True)]


def test_the_order_of_a_line_up_tells_nothing() -> None:
    """Members stand anywhere: the first half holds about half of them."""
    split, found = halved(400, 0, 1, 0)
    truth: Lineup = lineup(split, found, generator(1))
    assert 70 < int(truth.members[:200].sum()) < 130
    assert not truth.canaries.any()

"""Learning seams from public images: what is asked, what is learnt, and when it is used."""

import itertools
from dataclasses import replace

import pytest
import torch
from jigsaw_pieces import (
    ETC,
    TURNED,
    UNCHANGED,
    Flags,
    crops,
    looking_right,
    photos,
    states_for,
)
from release_views import view_of
from torch import Tensor

from ppbench.attacks import _seam_prior
from ppbench.attacks._boards import Boards
from ppbench.attacks._pairs import held_out, learnt
from ppbench.attacks._seam_net import (
    COLUMNS,
    MEASURED,
    SeamNet,
    Seams,
    measured_at,
)
from ppbench.attacks._seam_prior import (
    LOOKED_AT,
    Questions,
    SeamPrior,
    asked,
    helps,
    loss_of,
    neighbours,
    recalls,
    varied,
)
from ppbench.attacks._seams import tables
from ppbench.attacks._solving import Solver
from ppbench.attacks._states import PLAIN, States
from ppbench.blocks import cut
from ppbench.seeding import generator, seeded

MIXED = (False, True, True)
BETTER = {"solved": torch.tensor([[0.5, 0.5], [0.6, 0.7]])}


def random_net(channels: int = 3, width: int = 8, seed: int = 0) -> SeamNet:
    with seeded(seed):
        return SeamNet(channels, width).eval()


# --- questions

@pytest.mark.parametrize("flags", [UNCHANGED, TURNED, ETC])
@pytest.mark.parametrize("shape", [(12, 16), (4, 8), (8, 4), (8, 8)])
def test_the_true_neighbour_is_always_among_the_answers(flags: Flags, shape: tuple[int, int]) -> None:
    states, size = states_for(flags), 4
    images = crops(3, 16).pixels[:, :, :shape[0], :shape[1]].contiguous()
    questions = asked(images, size, states, 2**30)
    rows, columns = shape[0] // size, shape[1] // size
    assert len(questions) == 3 * 2 * (rows * (columns - 1) + (rows - 1) * columns)
    right = questions.seams.gather(1, questions.answer[:, None])[:, 0]
    n, d, i, j, r = torch.unravel_index(right, questions.sides.shape)
    assert (r == 0).all()
    step = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])[d]
    assert torch.equal(torch.stack([i // columns, i % columns], 1) + step, torch.stack([j // columns, j % columns], 1))
    assert len(right.unique()) == len(questions)
    asker = torch.unravel_index(questions.seams, questions.sides.shape)
    for part, one in zip(asker[:3], (n, d, i), strict=True):  # all answers are about one side of one piece
        assert (part == one[:, None]).all()
    assert (questions.seams.sort(1).values.diff(dim=1) != 0).all()  # and each is given once
    assert questions.seams.shape[1] == min(LOOKED_AT, (rows * columns - 1) * len(states))
    real = cut(images, size)
    seams, answer = questions.at(torch.arange(len(questions)))
    there = seams.there.view(len(questions), -1, *seams.there.shape[1:])[torch.arange(len(questions)), answer]
    expected = torch.stack([torch.from_numpy(looking_right(real[a, b].numpy(), int(c)).copy())
                            for a, b, c in zip(n, j, d, strict=True)])
    torch.testing.assert_close(there, expected, atol=1e-3, rtol=0)  # kept in half precision


@pytest.mark.parametrize("flags", [UNCHANGED, MIXED])
def test_the_cheapest_are_asked_for_and_their_costs_told(flags: Flags) -> None:
    states, images = states_for(flags), crops(2, 16).pixels
    questions = asked(images, 4, states, 2**30)
    measured = tables(cut(images, 4), states)
    costs = measured.combined().flatten()
    expected = measured_at(questions.seams.flatten(), measured).view(questions.measured.shape)
    torch.testing.assert_close(questions.measured.float(), expected, atol=0.02, rtol=0)
    _, d, i, _, _ = torch.unravel_index(questions.seams[:, 0], questions.sides.shape)
    n = torch.unravel_index(questions.seams[:, 0], questions.sides.shape)[0]
    best = measured.combined()[n, d, i].flatten(1).sort(1).values[:, : LOOKED_AT - 1]
    found = costs[questions.seams].sort(1).values
    torch.testing.assert_close(found[:, : LOOKED_AT - 1], torch.minimum(best, found[:, : LOOKED_AT - 1]))


def test_small_tables_ask_the_same_and_a_few_images_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    images = crops(5, 16).pixels
    whole = asked(images, 4, PLAIN, 2**30)
    monkeypatch.setattr(_seam_prior, "_TABLE", 1)
    parts = asked(images, 4, PLAIN, 2**30)
    assert torch.equal(whole.seams, parts.seams)
    assert torch.equal(whole.answer, parts.answer)
    assert torch.equal(whole.sides.given, parts.sides.given)
    seams = 4 * 16 * LOOKED_AT
    for most, images_of in ((1, 1), (3 * seams, 3), (3 * seams + 1, 3), (10**9, 5)):
        assert len(asked(images, 4, PLAIN, most).sides.given) == images_of


def test_varied_seams_keep_their_answers() -> None:
    """Both sides of a seam undergo the same, so that equal pixels stay equal."""
    pixels = torch.rand(6, 3, 4, COLUMNS, generator=generator(0))
    one, answer = Seams(pixels, pixels.clone(), torch.rand(6, MEASURED)), torch.arange(2)
    seen, rng = set(), generator(1)
    for _ in range(64):
        found, same = varied((one, answer), rng)
        assert torch.equal(found.here, found.there)
        assert torch.equal(found.measured, one.measured)
        assert torch.equal(same, answer)
        looks = [(flip, colours, negative) for flip, colours, negative in itertools.product(
            (False, True), itertools.permutations(range(3)), (False, True))
            if torch.equal(found.here, changed(pixels, flip, colours, negative))]
        assert len(looks) == 1
        seen.add(looks[0])
    assert len(seen) > 12


def changed(pixels: Tensor, flip: bool, colours: tuple[int, ...], negative: bool) -> Tensor:
    found = (pixels.flip(2) if flip else pixels)[:, list(colours)]
    return 1 - found if negative else found


# --- learning

def test_the_loss_falls_on_few_seams() -> None:
    questions = asked(crops(2, 16).pixels, 4, PLAIN, 2**30)
    net, rows = random_net().train(), torch.arange(len(questions))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = loss_of(net, questions.at(rows))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert losses[-1] < 0.5 * losses[0]
    recall = recalls(net, questions).tolist()
    assert recall[1] > recall[0]


@pytest.mark.parametrize("trust", [-0.4, -0.6])
def test_recall_is_the_share_of_right_answers(trust: float) -> None:
    """By what is measured, and by that less twice the odds: what a seam costs, up to what its rivals have in common."""
    questions, net = asked(crops(3, 16).pixels, 4, PLAIN, 2**30), random_net()
    with torch.no_grad():
        net.trust.fill_(trust)
        odds = torch.cat([net(questions.at(torch.tensor([row]))[0])[None] for row in range(len(questions))])
    measured = questions.measured[..., :2].float().sum(2)
    cheapest, likeliest = (costs.argmin(1) == questions.answer for costs in (measured, measured - odds))
    torch.testing.assert_close(recalls(net, questions), torch.stack([cheapest, likeliest]).float().mean(1))
    assert not torch.equal(cheapest, likeliest)


def prior_of(size: int = 8, steps: int = 6, width: int = 8) -> SeamPrior:
    return SeamPrior(size, steps, width, 4e-3)


def test_a_prior_learns_from_crops_of_photographs() -> None:
    public, private = crops(40, 32), crops(2, 32, "private")
    view = view_of(private, public, "patch-shuffle", {"patch": 8}, "image")
    prior, before = prior_of(), torch.random.get_rng_state()
    found, again = (prior.train(prior.seen(view), generator(3)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert found["objective"].shape == (6,)
    assert found["objective"].isfinite().all()
    assert ((found["recall"] >= 0) & (found["recall"] <= 1)).all()
    assert found["solved"].shape[0] == 2
    net = prior.load(found | BETTER, 3)
    assert net is not None
    assert not net.training
    kept = asked(public.pixels[held_out(40)], 8, PLAIN, 2**30)
    torch.testing.assert_close(recalls(net, kept), found["recall"])
    with torch.no_grad():
        loss = float(loss_of(net, kept.at(torch.arange(len(kept)))))
    assert loss == pytest.approx(float(found["objective"].min()), abs=1e-3)


@pytest.mark.parametrize(("measured", "learnt_", "used"), [
    ([0.5, 0.7], [0.5, 0.7], False),
    ([0.5, 0.7], [0.4, 0.7], False),
    ([0.0], [0.0], False),
    ([0.5, 0.7], [0.6, 0.8], True),
    ([0.5], [0.7], False),  # a single puzzle may have been chance
    ([0.5] * 4, [0.5, 0.5, 0.5, 0.7], False),  # a gain of .05, and as large an error
    ([0.5] * 4, [0.5, 0.5, 0.6, 0.7], True),
])
def test_a_network_that_solves_no_more_is_not_used(measured: list[float], learnt_: list[float], used: bool) -> None:
    prior, net, solved = prior_of(), random_net(), torch.tensor([measured, learnt_])
    assert helps(solved) is used
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    loaded = prior.load({**weights, "objective": torch.zeros(1), "recall": torch.tensor([0.5, 0.6]), "solved": solved},
                        3)
    assert (loaded is not None) is used
    if loaded is not None:
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_neighbours_are_those_of_the_boards_that_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(2, 64, 64)
    boards = torch.arange(16).repeat(2, 1)
    boards[1, :2] = torch.tensor([1, 0])
    given = Boards(boards.view(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))
    monkeypatch.setattr(Solver, "each", lambda *_: given)
    found = neighbours(images, 16, None, generator(0))
    # the exchange in a corner costs four pairs of 24: 0 | 1, 1 | 2, 0 over 4 and 1 over 5
    torch.testing.assert_close(found, torch.tensor([1, 20 / 24]))


def test_puzzles_are_solved_only_where_recall_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    public = crops(12, 16)
    view = view_of(public[:2], public, "patch-shuffle", {"patch": 4}, "image")
    asked_for = []

    def watched(images: Tensor, size: int, net: SeamNet | None, rng: torch.Generator) -> Tensor:
        asked_for.append((images, net is None, rng.initial_seed()))
        return torch.full((len(images),), 0.5)

    monkeypatch.setattr(_seam_prior, "neighbours", watched)
    monkeypatch.setattr(_seam_prior, "_PIECES", 40)
    for recall, shape in (([0.5, 0.5], (2, 1)), ([0.5, 0.6], (2, 2))):
        assert not asked_for
        monkeypatch.setattr(_seam_prior, "recalls", lambda *given, found=recall: torch.tensor(found))
        assert prior_of(4, 2).train(view, generator(0))["solved"].shape == shape
    (images, measured, seed), (again, learnt_, same) = asked_for
    assert measured
    assert not learnt_
    assert seed == same  # both are given the same puzzles
    assert torch.equal(images, public.pixels[held_out(12)][:2])  # 40 pieces are two images, of 16 each
    assert torch.equal(images, again)


def test_images_that_decide_are_not_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    public = crops(12, 16)
    seen: list[Tensor] = []

    def watched(images: Tensor, size: int, states: States, most: int) -> Questions:
        seen.append(images)
        return asked(images, size, states, most)

    monkeypatch.setattr(_seam_prior, "asked", watched)
    view = view_of(public[:2], public, "patch-shuffle", {"patch": 4}, "image")
    prior_of(4, 2).train(view, generator(0))
    assert torch.equal(seen[0], public.pixels[held_out(12)])
    assert torch.equal(seen[1], public.pixels[learnt(12)])


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_public_images_is_no_error(count: int) -> None:
    view = view_of(crops(2, 16), crops(count, 16), "patch-shuffle", {"patch": 8}, "image")
    found = prior_of(8, 3).train(view, generator(0))
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.slow
def test_learning_finds_more_neighbours_of_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 4 pixels say little by what is measured; on images that it has not seen the network finds more."""
    monkeypatch.setattr(_seam_prior, "_PIECES", 2**11)
    public = crops(200, 32)
    view = view_of(public[:2], public, "patch-shuffle", {"patch": 4}, "image")
    prior = replace(prior_of(4, 200, 32), rate=8e-3)
    found = prior.train(view, generator(0))
    measured, known = found["recall"].tolist()
    assert known > measured + 0.02
    net = prior.load(found | BETTER, 3)
    assert net is not None
    fresh = asked(crops(60, 32, "private").pixels, 4, PLAIN, 2**30)
    share = recalls(net, fresh)
    assert share[1] > share[0] + 0.02

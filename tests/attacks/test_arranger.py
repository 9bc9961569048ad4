"""Arranging shuffled pieces: beliefs, messages, the network's symmetries, and what it learns."""

from dataclasses import replace
from itertools import permutations as orders

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from release_views import attacked, cifar, natural, view_of
from torch import Tensor

from ppbench.attacks._arranger import ArrangerPrior, arranged, shuffled, size_of_whole_pieces
from ppbench.attacks._arranger_net import Arranger, mixed, neighbours
from ppbench.attacks._beliefs import Logits, Seam, assigned, doubly_stochastic, messages, seam
from ppbench.attacks.vit_inverter import VitInverter
from ppbench.blocks import cut, join, permute_rows
from ppbench.metrics import identification, ssim
from ppbench.seeding import generator, seeded
from ppbench.view import View

QUICK = VitInverter(steps=3, batch=8, width=16, depth=1)
grids = st.tuples(st.integers(1, 3), st.integers(1, 4)).filter(lambda grid: grid[0] * grid[1] > 1)


def logits_of(count: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(count, grid[0] * grid[1], *grid, generator=generator(seed), dtype=torch.float64)


def some_seam(count: int, pieces: int, seed: int) -> Seam:
    rng = generator(seed)
    together = torch.rand(count, pieces, pieces, generator=rng, dtype=torch.float64)
    last, first = torch.randn(2, count, pieces, generator=rng, dtype=torch.float64)
    return Seam(together, last, first)


def moving_network(shape: tuple[int, int, int], side: int) -> Arranger:
    """A network none of whose weights is zero."""
    with seeded(0):
        net = Arranger(shape, side, 16, 1).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return net.eval()


# --- beliefs ---------------------------------------------------------------------------------------------------

@given(grids, st.integers(0, 99))
def test_beliefs_are_doubly_stochastic(grid: tuple[int, int], seed: int) -> None:
    found = doubly_stochastic(logits_of(2, grid, seed)).exp().flatten(2)
    assert torch.allclose(found.sum(1), torch.ones(1, dtype=torch.float64))
    assert torch.allclose(found.sum(2), torch.ones(1, dtype=torch.float64), atol=0.05)


def test_what_is_doubly_stochastic_stays() -> None:
    certain = torch.eye(6, dtype=torch.float64).view(1, 6, 2, 3).clamp(min=1e-9).log()
    assert torch.allclose(doubly_stochastic(certain).exp(), certain.exp(), atol=1e-7)


@given(grids, st.integers(0, 99))
def test_messages_are_sums_over_neighbours(grid: tuple[int, int], seed: int) -> None:
    """Against loops over places and pieces."""
    rows, columns = grid
    count = rows * columns
    beliefs = doubly_stochastic(logits_of(1, grid, seed))
    across, down = some_seam(1, count, seed), some_seam(1, count, seed + 1)
    found = messages(beliefs, across, down)[:, 0]
    believed = beliefs[0].exp()
    for way, (dr, dc) in enumerate([(0, 1), (0, -1), (1, 0), (-1, 0)]):
        one = across if dr == 0 else down
        for i in range(count):
            for r in range(rows):
                for c in range(columns):
                    if not (0 <= r + dr < rows and 0 <= c + dc < columns):
                        expected = (one.last if dr + dc > 0 else one.first)[0, i]
                    else:
                        pairs = one.together[0, i] if dr + dc > 0 else one.together[0, :, i]
                        expected = ((pairs * believed[:, r + dr, c + dc]).sum() + 1e-5).log()
                    assert torch.allclose(found[way, i, r, c], expected)


def test_a_seam_weighs_rivals_of_both_pieces() -> None:
    fits = torch.tensor([[[9.0, 2.0], [0.0, 9.0]]])  # a piece is no neighbour of its own, whatever is said
    found = seam(Logits(fits, torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.0]])))
    after = torch.tensor([2.0, 1.0]).log_softmax(0)  # of piece 0: piece 1, or nothing
    before = torch.tensor([2.0, 0.0]).log_softmax(0)  # of piece 1: piece 0, or nothing
    assert torch.allclose(found.together[0, 0, 1].log(), (after[0] + before[0]) / 2)
    assert torch.allclose(found.last[0, 0], after[1])
    assert torch.allclose(found.first[0, 1], before[1])
    assert float(found.together[0, 0, 0]) == 0


@given(st.integers(0, 99))
def test_the_best_assignment_is_found(seed: int) -> None:
    beliefs = logits_of(1, (2, 2), seed)
    (found,) = assigned(beliefs)
    flat = beliefs[0].flatten(1)
    best = max(orders(range(4)), key=lambda order: sum(float(flat[piece, place]) for place, piece in enumerate(order)))
    assert tuple(found.tolist()) == best


@given(grids, st.integers(0, 99), st.booleans())
def test_neighbours_are_those_on_the_board(grid: tuple[int, int], seed: int, turned: bool) -> None:
    rows, columns = grid
    count = rows * columns
    places = torch.randperm(count, generator=generator(seed))
    after, before = neighbours(places[None], grid, turned)
    at = {divmod(int(place), columns): piece for piece, place in enumerate(places)}
    for (r, c), piece in at.items():
        assert int(after[0, piece]) == at.get((r + 1, c) if turned else (r, c + 1), count)
        assert int(before[0, piece]) == at.get((r - 1, c) if turned else (r, c - 1), count)


# --- the network -----------------------------------------------------------------------------------------------

def test_shuffled_pieces_lie_where_it_is_said() -> None:
    images = torch.rand(3, 2, 8, 12, generator=generator(0))
    pieces, places = shuffled(images, 4, generator(1))
    assert torch.equal(join(permute_rows(pieces, places.argsort(1)), (2, 8, 12)), images)
    assert not torch.equal(pieces, cut(images, 4))


@pytest.mark.parametrize(("shape", "side"), [((3, 8, 8), 4), ((1, 4, 12), 4), ((2, 6, 4), 2), ((1, 2, 3), 1)])
def test_the_order_of_the_pieces_does_not_matter(shape: tuple[int, int, int], side: int) -> None:
    net = moving_network(shape, side)
    pieces = cut(torch.rand(2, *shape, generator=generator(0), dtype=torch.float64), side)
    order = torch.randperm(pieces.shape[1], generator=generator(1))
    net.float()
    plain, moved = net(pieces.float())[0], net(pieces[:, order].float())[0]
    assert len(plain) > 2
    assert all(torch.allclose(one[:, order], other, atol=1e-4) for one, other in zip(plain, moved, strict=True))
    assert not torch.allclose(plain[-1], plain[0], atol=1e-2)


def test_neighbours_are_compared_by_the_pixels_beside_their_seam() -> None:
    """Of 6 x 6 pixels only the two columns, or rows, beside a seam speak for it."""
    net = moving_network((1, 12, 18), 6).float()
    with torch.no_grad():
        for direction in (net.across, net.down):  # what pieces are is not to speak
            for layer in (direction.before, direction.behind, direction.last.token, direction.first.token):
                layer.weight.zero_()
    pieces = torch.rand(1, 6, 1, 6, 6, generator=generator(0)).requires_grad_()

    def read(logits: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(logits.sum(), pieces, retain_graph=True)
        return slope[0].abs().sum((0, 1)) > 0

    columns = torch.arange(6).expand(6, 6)
    across, down = net(pieces)[1]
    for logits, along in ((across, columns), (down, columns.T)):
        assert torch.equal(read(logits.last), along >= 4)
        assert torch.equal(read(logits.first), along < 2)
        assert torch.equal(read(logits.fits), (along >= 4) | (along < 2))


def test_the_loss_is_least_where_the_truth_is_believed() -> None:
    """Places swapped against what the network believes cost more."""
    net = moving_network((3, 8, 8), 4).float()
    pieces, _ = shuffled(torch.rand(4, 3, 8, 8, generator=generator(0)), 4, generator(1))
    board = assigned(net(pieces)[0][-1])
    believed = board.argsort(1)
    with torch.no_grad():
        assert float(net.loss(pieces, believed)) < float(net.loss(pieces, believed.roll(1, 1)))


def test_mixing_follows_the_beliefs() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator(0))
    pieces = cut(images, 4)
    unknown = torch.full((2, 4, 2, 2), 0.25).log()
    assert torch.allclose(cut(mixed(pieces, unknown, (3, 8, 8)), 4), pieces.mean(1, keepdim=True).expand_as(pieces))
    certain = torch.eye(4).view(1, 4, 2, 2).expand(2, -1, -1, -1).clamp(min=1e-12).log()
    assert torch.allclose(mixed(pieces, certain, (3, 8, 8)), images, atol=1e-6)


# --- the attack ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "params", "size"), [
    ("patch-shuffle", {"patch": 4}, 4), ("patch-shuffle", {"patch": 16}, None), ("patch-shuffle", {"patch": 1}, 1),
    ("block-scrambling", {"preset": "etc", "block": 4}, None), ("mixup", {"patch": 4}, None), ("none", {}, None)])
def test_only_pieces_that_move_as_they_are_are_arranged(name: str, params: dict[str, object], size: int | None) -> None:
    scope = "image" if name in ("patch-shuffle", "block-scrambling") else None
    view = view_of(natural(2, (3, 16, 16), 1), natural(4, (3, 16, 16), 2), name, params, scope)
    assert size_of_whole_pieces(view) == size
    assert list(QUICK.priors(view)) == (["inverter"] if size is None else ["arranger"])


def test_it_can_be_left_out() -> None:
    view = view_of(natural(2, (3, 16, 16), 1), natural(8, (3, 16, 16), 2), "patch-shuffle", {"patch": 4}, "image")
    assert list(VitInverter(arrange=False).priors(view)) == ["inverter"]


def test_pairs_under_the_same_key_tell_more() -> None:
    view = view_of(natural(2, (3, 16, 16), 1), natural(8, (3, 16, 16), 2), "block-scrambling",
                   {"block": 4, "preset": "vit-cipher", "pixels": "none"}, "global", pairs=8)
    assert size_of_whole_pieces(view) == 4
    assert list(QUICK.priors(View(replace(view.sealed, granted=view.granted - {"pairs"})))) == ["arranger"]
    assert list(QUICK.priors(view)) == ["inverter"]


@pytest.mark.parametrize("public", [1, 2, 9])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
def test_any_shape_and_few_images(public: int, shape: tuple[int, int, int]) -> None:
    view = view_of(natural(3, shape, 1), natural(public, shape, 2), "patch-shuffle", {"patch": 4}, "image")
    found = attacked(QUICK, view).images
    assert found.shape == (3, *shape)
    assert found.isfinite().all()


def test_the_same_seed_gives_the_same_arrangement() -> None:
    view = view_of(natural(3, (3, 16, 16), 1), natural(9, (3, 16, 16), 2), "patch-shuffle", {"patch": 4}, "image")
    assert torch.equal(attacked(QUICK, view).images, attacked(QUICK, view).images)


@pytest.mark.parametrize("amp", [False, True])
def test_clouds_are_put_together(amp: bool) -> None:
    private, public = natural(40, (3, 16, 16), 1), natural(200, (3, 16, 16), 2)
    view = view_of(private, public, "patch-shuffle", {"patch": 8}, "image")
    found = attacked(VitInverter(steps=120, batch=24, width=32, depth=1, rate=4e-3, amp=amp), view)
    assert found.objective is not None
    assert torch.equal(found.images.flatten(1).sort(1).values, private.pixels.flatten(1).sort(1).values)  # it chose
    right = (found.images == private.pixels).flatten(1).all(1).double().mean()
    assert right > 0.5, float(right)  # of 24 orders


@pytest.mark.slow
def test_it_reads_cifar() -> None:
    """Pieces of 8 pixels: well above chance (1 / 30) soon."""
    private, public = cifar(30, 800)
    view = view_of(private, public, "patch-shuffle", {"patch": 8}, "image")
    found = attacked(VitInverter(steps=60, batch=32, width=32, depth=1), view).images
    assert float(ssim(found, private.pixels).mean()) > 0.2
    assert float(identification(found, private.pixels).mean()) > 0.4


def test_the_nearer_of_both_readings_is_kept() -> None:
    """Untrained, the beliefs are wide: all places in proportion are nearer than any choice."""
    public = natural(40, (3, 16, 16), 2)
    view = view_of(natural(8, (3, 16, 16), 1), public, "patch-shuffle", {"patch": 4}, "image")
    prior = ArrangerPrior(4, steps=1, batch=4, width=16, depth=1, rate=1e-6)
    found = prior.train(prior.seen(view), generator(0))
    assert not bool(found["hard"])
    estimate = arranged(prior.load(found, view), cut(view.images, 4), hard=False)
    assert float(estimate.std((2, 3)).mean()) < float(view.images.std((2, 3)).mean())

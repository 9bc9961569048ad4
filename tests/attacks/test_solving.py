"""The solver between costs and images, and what a jigsaw attack hands to it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from jigsaw_pieces import ETC, UNCHANGED, Flags, neighbours, photos, slow_put, states_for
from jigsaw_views import FEW, MEASURED, SCRAMBLED, scrambled_view, shuffled_view, without_public
from release_views import attacked
from torch import Tensor, nn

from ppbench.attacks import _solving
from ppbench.attacks._assemble import assemble
from ppbench.attacks._boards import in_order
from ppbench.attacks._seam_net import SeamNet, learned
from ppbench.attacks._seams import combo, tables
from ppbench.attacks._solver import Search
from ppbench.attacks._solving import Solver
from ppbench.attacks._states import PLAIN, states_of
from ppbench.attacks.jigsaw import Jigsaw
from ppbench.blocks import cut
from ppbench.seeding import generator, seeded


@pytest.mark.parametrize("flags", [UNCHANGED, ETC])
def test_costs_under_one_key_are_their_mean(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    states, pieces = states_for(flags), cut(photos(5, 32, 48), 16)
    seen = []

    def watched(costs: Tensor, grid: tuple[int, int], *rest: Any) -> Any:
        seen.append(costs)
        return in_order(len(costs), grid)

    monkeypatch.setattr(_solving, "assemble", watched)
    monkeypatch.setattr(_solving, "_CHUNK", 2 * 4 * 36 * len(states))  # chunks of 2, 2 and 1
    solver = Solver(states=states)
    solver.together(pieces, (2, 3), generator(0))
    torch.testing.assert_close(seen[0], combo(pieces, states).mean(0, keepdim=True), atol=1e-3, rtol=0)
    assert solver.each(pieces, (2, 3), generator(0)).pieces.shape == (5, 2, 3)
    assert [len(costs) for costs in seen[1:]] == [2, 2, 1]
    with seeded(0):
        net = SeamNet(3, 8)
    costs = Solver(states=states, net=net, looked_at=3).costs(pieces)
    assert torch.equal(costs, learned(net, pieces, tables(pieces, states), 3))


def test_pieces_are_laid_in_the_order_and_states_of_the_board() -> None:
    states, pieces = states_for(ETC), cut(photos(1, 32, 32), 16)
    boards = replace(in_order(1, (2, 2)), pieces=torch.tensor([[[2, 0], [3, 1]]]),
                     states=torch.tensor([[[5, 0], [95, 40]]]))
    laid = Solver(states=states).laid(pieces, boards)[0]
    for place, (piece, state) in enumerate(((2, 5), (0, 0), (3, 95), (1, 40))):
        torch.testing.assert_close(laid[place], torch.from_numpy(slow_put(pieces[0, piece].numpy(), states, state)))
    assert torch.equal(Solver().laid(pieces, in_order(1, (2, 2))), pieces)
    assert len(states_of(None, 3)) == len(PLAIN)


@pytest.mark.parametrize("scope", ["image", "global"])
def test_small_chunks_cover_all_images(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_solving, "_CHUNK", 1)
    images = photos(3, 64, 64)
    found = attacked(MEASURED, without_public(scrambled_view(images, "moved", 16, scope)))
    assert neighbours(found.images, images, UNCHANGED, 16).min() > 0.9


def test_defaults_are_those_of_the_search() -> None:
    assert (Jigsaw().restarts, Jigsaw().effort, Jigsaw().loops) == (Search().restarts, Search().effort, Search().loops)


def test_settings_reach_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(self: Solver, pieces: Tensor, grid: tuple[int, int], rng: torch.Generator) -> Any:
        seen.append(self.search)
        return in_order(len(pieces), grid)

    monkeypatch.setattr(Solver, "each", watched)
    attack = Jigsaw(restarts=3, effort=99, loops=False, linear=True, repair=True, anneal=5, steps=0)
    attacked(attack, shuffled_view(photos(2, 64, 64), 16))
    assert seen == [Search(restarts=3, effort=99, loops=0, linear=1, repair=1, anneal=5)]


# --- places

def test_places_are_learnt_where_whole_pieces_are_moved_under_keys_of_one_image() -> None:
    attack, images = replace(FEW, place_steps=2), photos(2, 32, 32)
    named = {cipher: set(attack.priors(scrambled_view(images, cipher, 8, "image"))) for cipher in SCRAMBLED}
    assert {cipher for cipher, priors in named.items() if "places" in priors} == {"moved"}
    assert "places" not in attack.priors(scrambled_view(images, "moved", 8, "global"))
    assert set(replace(attack, steps=0).priors(shuffled_view(images, 8))) == {"places"}
    found = attacked(attack, shuffled_view(images, 8))
    assert neighbours(found.images, images, UNCHANGED, 8).isfinite().all()


def test_places_tell_what_seams_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one colour each, in no order but that of their brightness."""
    brightness = torch.stack([torch.randperm(12, generator=generator(n)) for n in range(3)])
    pieces = (brightness / 12)[:, :, None, None, None].expand(-1, -1, 3, 4, 4)

    def believed(net: object, some: Tensor) -> Tensor:
        order = (some[:, :, 0, 0, 0] * 12).round().long()
        certain = torch.full((len(some), 12, 12), -99.0)
        return certain.scatter_(2, order[..., None], 0.0).view(-1, 12, 3, 4)

    seen = []

    def watched(costs: Tensor, grid: tuple[int, int], rng: torch.Generator, search: Search, states: Any,
                places: Tensor) -> Any:
        seen.append(places)
        return assemble(0 * costs, grid, rng, search, states, places)

    monkeypatch.setattr(_solving, "believed", believed)
    monkeypatch.setattr(_solving, "assemble", watched)
    solver = Solver(Search(repair=1), places=nn.Identity(), trust=2.0)  # type: ignore[arg-type]
    boards = solver.each(pieces, (3, 4), generator(0))
    assert (solver.laid(pieces, boards)[:, :, 0, 0, 0].mul(12).round() == torch.arange(12)).all()
    assert sorted(seen[0].unique().tolist()) == [0, 14]  # twice 7, beyond which nothing is more unlikely

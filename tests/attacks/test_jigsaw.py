"""The jigsaw attack: its costs against slow references, its assembler against brute force, and the whole on photos."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppbench.attack import check_reconstruction
from ppbench.attacks._assemble import assemble
from ppbench.attacks._boards import board_costs, direct_score, neighbour_score
from ppbench.attacks._seams import LIMIT, combo, lab, mgc, prediction, relative
from ppbench.attacks._solver import BELOW, RIGHT, Kin, Puzzle, Search, _worth
from ppbench.attacks.jigsaw import Jigsaw
from ppbench.blocks import cut
from ppbench.data import Images
from ppbench.defense import draw_keys
from ppbench.errors import UserError
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, Sealed, View, quantised

CIFAR = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[2] / "../shared")) / "data" / "cifar10"


def photos(count: int, height: int, width: int) -> Tensor:
    """Crops of scikit-image's astronaut, shrunk to half size (its JPEG grid would mark the seams)."""
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 255
    photo = torch.nn.functional.avg_pool2d(photo, 2)[0]
    rows = torch.linspace(0, photo.shape[1] - height, count).long()
    return torch.stack([photo[:, top:top + height, 40:40 + width] for top in rows.tolist()])


def view_of(images: Tensor, ref: Ref, scope: str | None, targets: int | None = None) -> View:
    """What ciphertext-only grants of images protected as the runner would."""
    defense = build(ref)
    private = Images(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))
    keys = draw_keys(defense, scope, len(images), private.shape, generator(1))
    release = quantised(defense.protect(private, keys, generator(2)), 8)
    rows = torch.arange(len(images) if targets is None else targets)
    return View(Sealed(granted=frozenset({"images", "algorithm"}), image_shape=private.shape,
                       released_shape=release.shape, n_targets=len(rows), classes=1, release=release,
                       target_rows=rows, algorithm=Algorithm(ref, scope, 8)))


def shuffle(patch: int) -> Ref:
    return Ref("defenses", "patch-shuffle", {"patch": patch})


def slow_mgc(pieces: np.ndarray, shrink: float) -> np.ndarray:
    """Pair by pair, from the definition: np.cov over steps and dummies; pieces [P, C, s, s] in 0..255."""
    count, channels, side, _ = pieces.shape
    unit = np.eye(channels)
    dummies = np.concatenate([np.zeros((1, channels)), np.ones((1, channels)), -np.ones((1, channels)), unit, -unit])

    def one_way(steps_of: list[np.ndarray], edge: list[np.ndarray], beyond: list[np.ndarray]) -> np.ndarray:
        centred = [steps - steps.mean(0) for steps in steps_of]
        common = np.mean([c.T @ c for c in centred], 0) / side
        found = np.zeros((count, count))
        for i, j in itertools.product(range(count), repeat=2):
            samples = np.concatenate([centred[i], dummies])
            scatter = np.cov(samples.T, bias=True).reshape(channels, channels) * len(samples)
            covariance = (scatter + shrink * common) / (len(samples) - 1 + shrink)
            for row in range(side):
                off = beyond[j][row] - edge[i][row] - steps_of[i].mean(0)
                found[i, j] += off @ np.linalg.solve(covariance, off)
        return found

    column = [[piece[:, :, k].T for piece in pieces] for k in range(side)]
    right_steps = [a - b for a, b in zip(column[-1], column[-2], strict=True)]
    left_steps = [a - b for a, b in zip(column[0], column[1], strict=True)]
    return one_way(right_steps, column[-1], column[0]) + one_way(left_steps, column[0], column[-1]).T


@pytest.mark.parametrize(("channels", "side", "shrink"),
                         [(3, 4, 0.0), (3, 4, 2.0), (1, 5, 0.0), (3, 2, 2.0), (1, 2, 0.0)])
def test_mgc_is_its_definition(channels: int, side: int, shrink: float) -> None:
    pieces = torch.rand(2, 6, channels, side, side, generator=generator(0))
    found = mgc(pieces, shrink).numpy()
    for n in range(2):
        values = pieces[n].double().numpy() * 255
        np.testing.assert_allclose(found[n, 0], slow_mgc(values, shrink), rtol=1e-4)
        np.testing.assert_allclose(found[n, 1], slow_mgc(values.swapaxes(2, 3), shrink), rtol=1e-4)


def test_mgc_of_real_pieces_does_not_lose_digits() -> None:
    pieces = cut(photos(1, 64, 64), 8)[:, :12]
    found = mgc(pieces, 0.0)[0, 0].numpy()
    np.testing.assert_allclose(found, slow_mgc(pieces[0].double().numpy() * 255, 0.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_prediction_is_its_definition(channels: int) -> None:
    pieces = torch.rand(1, 5, channels, 3, 3, generator=generator(0))
    p = lab(pieces)[0].numpy()
    found = prediction(pieces)[0].numpy()
    for i, j in itertools.product(range(5), repeat=2):
        beside = (np.abs(2 * p[i, :, :, 2] - p[i, :, :, 1] - p[j, :, :, 0]).sum()
                  + np.abs(2 * p[j, :, :, 0] - p[j, :, :, 1] - p[i, :, :, 2]).sum())
        below = (np.abs(2 * p[i, :, 2] - p[i, :, 1] - p[j, :, 0]).sum()
                 + np.abs(2 * p[j, :, 0] - p[j, :, 1] - p[i, :, 2]).sum())
        np.testing.assert_allclose([found[0, i, j], found[1, i, j]], [beside, below], rtol=1e-4)


def test_lab_agrees_with_scikit_image() -> None:
    colours = torch.rand(1, 50, 3, 2, 2, generator=generator(0))
    colours[0, 0] = 0.0
    expected = skimage.color.rgb2lab(colours[0].permute(0, 2, 3, 1).double().numpy())
    np.testing.assert_allclose(lab(colours)[0].permute(0, 2, 3, 1).numpy(), expected, atol=0.01)
    grey = colours[:, :, :1]
    np.testing.assert_allclose(lab(grey), lab(grey.expand_as(colours))[:, :, :1], atol=0.01)


def test_relative_divides_by_the_second_best_of_row_and_column() -> None:
    costs = torch.rand(1, 2, 5, 5, generator=generator(0), dtype=torch.float64) * 100
    found = relative(costs)
    for d, i, j in itertools.product(range(2), range(5), range(5)):
        if i == j:
            continue
        row = sorted(costs[0, d, i, k].item() for k in range(5) if k != i)[1]
        column = sorted(costs[0, d, k, j].item() for k in range(5) if k != j)[1]
        expected = np.log((costs[0, d, i, j].item() + 1) ** 2 / ((row + 1) * (column + 1)))
        assert found[0, d, i, j].item() == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 4),
       st.sampled_from(["random", "flat", "copies", "binary"]))
@settings(max_examples=40, deadline=None)
def test_costs_stay_finite(count: int, channels: int, side: int, kind: str) -> None:
    pieces = torch.rand(2, count, channels, side, side, generator=generator(0))
    if kind == "flat":
        pieces = torch.full_like(pieces, 0.3)
    elif kind == "copies":
        pieces = pieces[:, :1].expand_as(pieces)
    elif kind == "binary":
        pieces = pieces.round()
    costs = combo(pieces)
    assert costs.shape == (2, 2, count, count)
    assert costs.abs().max() <= LIMIT
    assert (costs.diagonal(dim1=-2, dim2=-1) == LIMIT).all()


def test_true_neighbours_are_cheapest() -> None:
    costs = combo(cut(photos(1, 128, 128), 16))[0]
    place = torch.arange(64).view(8, 8)
    beside = costs[0, place[:, :-1]].argmin(-1) == place[:, 1:]
    below = costs[1, place[:-1]].argmin(-1) == place[1:]
    assert torch.cat([beside.flatten(), below.flatten()]).double().mean() > 0.9


def test_board_costs_add_up_all_seams() -> None:
    costs = torch.rand(2, 2, 6, 6, generator=generator(0))
    boards = torch.stack([torch.randperm(6, generator=generator(i)) for i in range(4)]).view(2, 2, 2, 3)
    found = board_costs(costs, boards)
    for n, r in itertools.product(range(2), range(2)):
        b = boards[n, r].tolist()
        expected = sum(costs[n, 0, b[y][x], b[y][x + 1]].item() for y in range(2) for x in range(2))
        expected += sum(costs[n, 1, b[0][x], b[1][x]].item() for x in range(3))
        assert found[n, r].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 6)])
def test_assemble_finds_the_cheapest_of_all_boards(grid: tuple[int, int]) -> None:
    costs = torch.randn(12, 2, 6, 6, generator=generator(3)) * 3
    everything = torch.tensor(list(itertools.permutations(range(6)))).view(1, -1, *grid).expand(12, -1, -1, -1)
    best = board_costs(costs, everything).min(1).values
    found = board_costs(costs, assemble(costs, grid, generator(0), Search(restarts=24, weak=-100))[:, None])[:, 0]
    assert (found >= best - 1e-4).all()
    # random costs are the worst case of a heuristic: nothing on the board hints at the rest
    assert (found <= best + 1e-4).double().mean() > 0.8


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_every_board_holds_every_piece_once(rows: int, columns: int, seed: int) -> None:
    pieces = rows * columns
    costs = torch.randn(3, 2, pieces, pieces, generator=generator(seed))
    boards = assemble(costs, (rows, columns), generator(seed), Search(restarts=1 + seed % 3, rounds=20))
    assert boards.shape == (3, rows, columns)
    assert (boards.flatten(1).sort(1).values == torch.arange(pieces)).all()


def test_breeding_only_improves() -> None:
    costs = combo(cut(photos(6, 32, 32), 4))
    cost = [board_costs(costs, assemble(costs, (8, 8), generator(0), Search(rounds=g))[:, None])[:, 0]
            for g in (0, 20, 200)]
    assert (cost[1] <= cost[0] + 1e-3).all()
    assert (cost[2] <= cost[1] + 1e-3).all()
    assert cost[2].mean() < cost[0].mean()


def test_a_pair_that_both_parents_have_is_preferred() -> None:
    costs = torch.randn(2, 6, 6, generator=generator(0)).numpy()
    puzzle = Puzzle(costs, np.zeros((4, 6, 1), np.int64), 2, 3)
    mates = np.full((2, 4, 6), 6)
    mates[:, RIGHT, 4] = 1  # on both boards piece 1 lies to the right of piece 4
    mates[0, BELOW, 2] = 1  # and on one of them below piece 2
    around, state = (4, 6, 2, 6), np.ones(1, np.uint64)
    seams = costs[0, 4, 1] + costs[1, 2, 1]
    assert _worth(puzzle, Kin(mates, 0.0), around, 1, 0.0, state) == pytest.approx(seams, rel=1e-6)
    assert _worth(puzzle, Kin(mates, 0.5), around, 1, 0.0, state) == pytest.approx(seams - 3 * 0.5, rel=1e-6)


def test_ties_do_not_favour_the_identity() -> None:
    boards = assemble(torch.zeros(64, 2, 9, 9), (3, 3), generator(0), Search(restarts=2, rounds=4))
    assert direct_score(boards, torch.arange(9).view(1, 3, 3)).mean() < 0.25


def test_assemble_refuses_a_grid_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        assemble(torch.zeros(1, 2, 6, 6), (2, 2), generator(0))


@pytest.mark.parametrize("cost", [float("nan"), float("inf")])
def test_assemble_refuses_costs_that_are_not_finite(cost: float) -> None:
    costs = torch.zeros(1, 2, 6, 6)
    costs[0, 1, 2, 3] = cost
    with pytest.raises(ValueError, match="finite"):
        assemble(costs, (2, 3), generator(0))


def test_scores() -> None:
    truth = torch.arange(12).view(1, 3, 4)
    rolled = truth.roll(1, 2)
    assert direct_score(truth, truth).item() == neighbour_score(truth, truth).item() == 1
    assert direct_score(rolled, truth).item() == 0
    assert neighbour_score(rolled, truth).item() == pytest.approx((3 * 2 + 2 * 4) / 17)
    swapped = truth.clone()
    swapped[0, 0, 0], swapped[0, 0, 1] = 1, 0
    assert direct_score(swapped, truth).item() == pytest.approx(10 / 12)
    # pairs (0,1) (1,2) across and (0,4) (1,5) down are gone
    assert neighbour_score(swapped, truth).item() == pytest.approx(13 / 17)
    copies, exchanged = truth.clamp(min=1), swapped.clamp(min=1)
    assert neighbour_score(exchanged, copies).item() == direct_score(exchanged, copies).item() == 1
    assert neighbour_score(torch.zeros(2, 1, 1).long(), torch.zeros(2, 1, 1).long()).tolist() == [1, 1]


@pytest.mark.parametrize(("height", "width", "patch", "grey"), [(128, 128, 16, False), (64, 128, 16, False),
                                                                (96, 64, 16, True)])
def test_shuffled_photos_are_restored(height: int, width: int, patch: int, grey: bool) -> None:
    images = photos(3, height, width)
    images = images.mean(1, keepdim=True) if grey else images
    view = view_of(images, shuffle(patch), "image")
    found = Jigsaw(restarts=8).run(view, {}, generator(0))
    check_reconstruction(found, view)
    assert found.aligned
    assert found.note == ""
    # whole pieces may still be exchanged where the photo is flat
    right = (cut(found.images, patch) - cut(images, patch)).abs().amax((2, 3, 4)) < 0.01
    assert right.double().mean() > 0.9
    assert (cut(view.images, patch) - cut(images, patch)).abs().amax((2, 3, 4)).lt(0.01).double().mean() < 0.2


def test_one_global_key_is_solved_from_all_images_together() -> None:
    images = photos(40, 16, 16)
    view = view_of(images, shuffle(2), "global", targets=3)
    together = Jigsaw().run(view, {}, generator(0))
    check_reconstruction(together, view)
    torch.testing.assert_close(together.images, images[:3], atol=1 / 255, rtol=0)
    # 2-pixel pieces of one image say too little
    alone = Jigsaw(joint=1).run(view, {}, generator(0))
    assert (alone.images - images[:3]).abs().max() > 0.02


def test_the_same_generator_state_gives_the_same_images() -> None:
    view = view_of(photos(2, 64, 64), shuffle(8), "image")
    before = torch.random.get_rng_state()
    first, second = (Jigsaw(restarts=4).run(view, {}, generator(7)).images for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_small_chunks_cover_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppbench.attacks.jigsaw._CHUNK", 1)
    images = photos(3, 64, 64)
    for scope in ("image", "global"):
        found = Jigsaw(restarts=8).run(view_of(images, shuffle(16), scope), {}, generator(0))
        assert (found.images - images).abs().mean() < 0.02


def test_a_flat_image_and_a_single_piece_pass_through() -> None:
    flat = torch.full((2, 3, 16, 16), 0.4)
    for images, patch in ((flat, 4), (photos(2, 16, 16), 16), (flat[:, :, :8], 8)):
        view = view_of(images, shuffle(patch), "image")
        found = Jigsaw().run(view, {}, generator(0))
        check_reconstruction(found, view)
        torch.testing.assert_close(found.images, images, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("ref", [Ref("defenses", "none"), Ref("defenses", "mixup", {"patch": 4})])
def test_nothing_permuted_is_degenerate(ref: Ref) -> None:
    view = view_of(photos(2, 32, 32), ref, None)
    found = Jigsaw().run(view, {}, generator(0))
    check_reconstruction(found, view)
    assert found.note == "degenerate: as-released"


@pytest.mark.parametrize("scope", ["global", "image"])
def test_shuffled_pixels_are_said_to_carry_nothing(scope: str) -> None:
    view = view_of(photos(2, 32, 32), Ref("defenses", "block-scrambling", {"block": 4}), scope)
    found = Jigsaw(restarts=4).run(view, {}, generator(0))
    check_reconstruction(found, view)
    assert "seams carry nothing" in found.note
    before, after = cut(view.images, 4), cut(found.images, 4)
    torch.testing.assert_close(before.sum((2, 3, 4)).sort(1).values, after.sum((2, 3, 4)).sort(1).values)


@pytest.mark.parametrize("params", [{"restarts": 0}, {"rounds": -1}, {"joint": 0}])
def test_senseless_parameters_are_refused(params: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least"):
        build(Ref("attacks", "jigsaw", params))


@pytest.mark.real
@pytest.mark.skipif(not CIFAR.is_dir(), reason="no CIFAR-10 in PPBENCH_DATA")
@pytest.mark.parametrize(("patch", "least"), [(4, 0.75), (8, 0.95)])
def test_cifar_is_restored(patch: int, least: float) -> None:
    from PIL import Image

    atlas = np.asarray(Image.open(CIFAR / "cifar10_test.webp").convert("RGB"))[:32]
    tiles = atlas.reshape(32, 100, 32, 3).transpose(1, 3, 0, 2)[:24]
    costs = combo(cut(torch.from_numpy(tiles.copy()).float() / 255, patch))
    grid = (32 // patch, 32 // patch)
    boards = assemble(costs, grid, generator(0))
    assert direct_score(boards, torch.arange(grid[0] * grid[1]).view(1, *grid)).mean() > least


@pytest.mark.parametrize(("params", "words"), [
    ({"preset": "etc"}, "turned, negated, recoloured"), ({"preset": "etc", "turn": False}, "may be negated, recol"),
    ({"preset": "etc", "turn": False, "negative": "none", "colours": "none"}, "")])
def test_what_is_not_undone_is_said(params: dict[str, object], words: str) -> None:
    view = view_of(photos(2, 32, 32), Ref("defenses", "block-scrambling", {"block": 8, **params}), "image")
    note = Jigsaw(restarts=4).run(view, {}, generator(0)).note
    assert words in note if words else note == ""

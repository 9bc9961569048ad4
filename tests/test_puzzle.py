"""Scores of rebuilt puzzles: hand-made boards, and a slow reference that knows bytes and nothing of hashes."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppbench import puzzle
from ppbench.blocks import cut, join
from ppbench.defense import Pieces
from ppbench.errors import UserError
from ppbench.puzzle import SCORES, puzzle_scores, seam_costs, symmetries_of
from ppbench.seeding import generator

MOVED = Pieces(4, moved=True)
ETC = Pieces(4, moved=True, turned=True, negated=True, recoloured=True)


def board(rows: int, columns: int, channels: int = 3, size: int = 4, count: int = 1) -> Tensor:
    """Noise in 8 bit, in which no two blocks are alike."""
    levels = torch.randint(0, 256, (count, channels, rows * size, columns * size), generator=generator(0))
    return levels.float() / 255


def placed(images: Tensor, places: Tensor, size: int = 4) -> Tensor:
    """Put block `places[r, c]` of every image at place (r, c)."""
    blocks = cut(images, size)[:, places.flatten()]
    return join(blocks, (images.shape[1], places.shape[0] * size, places.shape[1] * size))


def scored(estimates: Tensor, private: Tensor, pieces: Pieces = MOVED) -> tuple[float, ...]:
    """Return direct, neighbour, largest, perfect of the first image."""
    found = puzzle_scores(estimates, private, pieces)
    assert tuple(found) == SCORES
    assert all(values.shape == (len(private),) and values.dtype == torch.float64 for values in found.values())
    return tuple(found[name][0].item() for name in SCORES[:4])


# --- an independent reference

Block = tuple[tuple[int, ...], bytes]


def block(levels: np.ndarray) -> Block:
    return levels.shape, np.ascontiguousarray(levels).tobytes()


def looks(levels: np.ndarray, pieces: Pieces) -> Iterator[np.ndarray]:
    """Everything that the cipher's symmetries make of an image `[C, H, W]`."""
    for quarters, mirror in itertools.product(range(4), (False, True)) if pieces.turned else [(0, False)]:
        turned = np.rot90(levels, quarters, (1, 2))
        turned = turned[:, :, ::-1] if mirror else turned
        for order in itertools.permutations(range(len(levels))) if pieces.recoloured else [range(len(levels))]:
            coloured = turned[list(order)]
            yield coloured
            if pieces.negated:
                yield 255 - coloured


def canonical(levels: np.ndarray, pieces: Pieces) -> Block:
    return min(block(look) for look in looks(levels, pieces))


def slow_scores(estimate: np.ndarray, private: np.ndarray, pieces: Pieces) -> list[float]:
    """Score one image of levels `[C, H, W]` from the definitions."""
    size = pieces.size
    rows, columns = private.shape[1] // size, private.shape[2] // size

    def part(image: np.ndarray, place: tuple[int, int], height: int = 1, width: int = 1) -> np.ndarray:
        r, c = place
        return image[:, r * size:(r + height) * size, c * size:(c + width) * size]

    places = list(itertools.product(range(rows), range(columns)))
    blocks = [Counter(canonical(part(image, place), pieces) for place in places) for image in (estimate, private)]
    if (blocks[0] & blocks[1]).total() < len(places) / 2:
        return [float("nan")] * 5
    direct = max(sum(block(part(look, place)) == block(part(private, place)) for place in places) / len(places)
                 for look in looks(estimate, pieces) if look.shape == private.shape)
    seams = [(place, (1, 2)) for place in places if place[1] + 1 < columns]
    seams += [(place, (2, 1)) for place in places if place[0] + 1 < rows]
    mine, true = ([canonical(part(image, place, *extent), pieces) for place, extent in seams]
                  for image in (estimate, private))
    neighbour = (Counter(mine) & Counter(true)).total() / len(seams) if seams else 1.0
    joined = [{(r, c), (r + height - 1, c + width - 1)}
              for ((r, c), (height, width)), seam in zip(seams, mine, strict=True) if seam in true]
    parts = [{place} for place in places]
    for ends in joined:
        met = [found for found in parts if found & ends]
        parts = [found for found in parts if not found & ends] + [set().union(*met)]
    cheaper = slow_costs(estimate, size) < slow_costs(private, size) * (1 - 1e-6)
    return [direct, neighbour, max(map(len, parts)) / len(places), float(direct == 1), float(cheaper)]


def slow_costs(levels: np.ndarray, size: int) -> float:
    """Add up the seam costs of an image `[C, H, W]`, pair by pair, with np.cov over steps and dummies."""
    total = 0.0
    for image in (levels.astype(float), levels.swapaxes(1, 2).astype(float)):
        channels, height, width = image.shape
        unit = np.eye(channels)
        ones = np.ones((1, channels))
        dummies = np.concatenate([0 * ones, ones, -ones, unit, -unit])
        for top, seam in itertools.product(range(0, height, size), range(size, width, size)):
            one, other = (image[:, top:top + size, start:start + size] for start in (seam - size, seam))
            mgc = missed = 0.0
            for a, b in ((one, other), (other[:, :, ::-1], one[:, :, ::-1])):  # from the left, from the right
                edge, inner, beyond = a[:, :, -1].T, a[:, :, -2 if size > 1 else -1].T, b[:, :, 0].T
                steps = edge - inner
                samples = np.concatenate([steps - steps.mean(0), dummies])
                inverse = np.linalg.inv(np.cov(samples.T).reshape(channels, channels))
                for row in range(size):
                    off = beyond[row] - edge[row] - steps.mean(0)
                    mgc += off @ inverse @ off
                missed += np.abs(2 * edge - inner - beyond).sum()
            total += np.log(1 + mgc) + np.log(1 + missed)
    return total


ciphers = st.builds(Pieces, st.sampled_from([1, 2]), st.just(True), turned=st.booleans(), negated=st.booleans(),
                    recoloured=st.booleans())


@given(ciphers, st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_scores_are_their_definitions(pieces: Pieces, rows: int, columns: int, channels: int, seed: int) -> None:
    """Few kinds of blocks, shuffled a little or wholly, some of them turned, negative, recoloured, or foreign."""
    rng = np.random.default_rng(seed)
    count = rows * columns
    kinds = rng.integers(0, rng.choice([2, 256]), (rng.integers(1, 2 * count + 1), channels, pieces.size, pieces.size))
    private = kinds[rng.integers(0, len(kinds), (2, count))]
    estimates = private.copy()
    for image in estimates:
        moved = rng.choice(count, rng.integers(1, count + 1), replace=False)
        image[moved] = image[rng.permutation(moved)]
        for place in np.flatnonzero(rng.random(count) < rng.choice([0, 0.3])):
            image[place] = rng.choice(list(looks(image[place], ETC)))
        for place in np.flatnonzero(rng.random(count) < rng.choice([0, 0.4])):
            image[place] = rng.integers(0, 256, image[place].shape)
    images = [join(torch.from_numpy(side.copy()), (channels, rows * pieces.size, columns * pieces.size)).numpy()
              for side in (estimates, private)]
    whole = [list(looks(image, pieces)) for image in images[0]]
    images[0] = np.stack([rng.choice([look for look in found if look.shape == images[1][0].shape]) for found in whole])
    found = puzzle_scores(*(torch.from_numpy(side).float() / 255 for side in images), pieces)
    for n in range(2):
        expected = slow_scores(images[0][n], images[1][n], pieces)
        np.testing.assert_allclose([found[name][n].item() for name in SCORES], expected, atol=1e-12)


@pytest.mark.parametrize(("channels", "size", "shape"), [(3, 4, (3, 4)), (1, 4, (2, 2)), (3, 2, (1, 3)), (1, 1, (3, 2)),
                                                         (3, 1, (2, 2)), (2, 3, (3, 1))])
@pytest.mark.parametrize("top", [2, 256])
def test_seam_costs_are_their_definition(channels: int, size: int, shape: tuple[int, int], top: int) -> None:
    levels = np.random.default_rng(0).integers(0, top, (3, channels, shape[0] * size, shape[1] * size))
    found = seam_costs(torch.from_numpy(levels).float() / 255, size)
    np.testing.assert_allclose(found, [slow_costs(image, size) for image in levels], rtol=1e-9)


def test_seam_costs_are_the_same_under_every_symmetry() -> None:
    smooth = torch.nn.functional.interpolate(board(2, 2, size=2), (12, 12), mode="bilinear")
    for image in (board(3, 3), smooth):
        levels = (image[0] * 255).round().long().numpy()
        turned = torch.from_numpy(np.stack(list(looks(levels, ETC)))).float() / 255
        assert len(turned) == len(symmetries_of(ETC, 3)) == 96
        costs = seam_costs(turned, 4)
        torch.testing.assert_close(costs, costs[:1].expand(96), rtol=1e-9, atol=0)
        found = puzzle_scores(turned, torch.from_numpy(levels)[None].expand(96, -1, -1, -1) / 255, ETC)
        assert (found["piece_perfect"] == 1).all()
        assert (found["piece_cheaper"] == 0).all()


# --- boards made by hand

def test_the_private_image_is_right_all_over() -> None:
    private = board(3, 4, count=2)
    assert scored(private, private) == scored(private, private, ETC) == (1, 1, 1, 1)


def test_a_rolled_board() -> None:
    private = board(3, 4)
    # 6 of the 9 pairs side by side and all 8 below one another are there; the last column hangs on its own
    assert scored(private.roll(4, 3), private) == pytest.approx((0, 14 / 17, 9 / 12, 0))


def test_two_swapped_pieces() -> None:
    private = board(3, 4)
    places = torch.arange(12).view(3, 4)
    places[0, 0], places[0, 1] = 1, 0
    assert scored(placed(private, places), private) == pytest.approx((10 / 12, 13 / 17, 10 / 12, 0))


def test_two_halves_exchanged() -> None:
    private = board(2, 4)
    halves = placed(private, torch.arange(8).view(2, 4).roll(2, 1))
    assert scored(halves, private) == pytest.approx((0, 8 / 10, 0.5, 0))


def test_nothing_that_fits_hangs_together() -> None:
    private = board(2, 2)
    assert scored(placed(private, torch.tensor([[3, 2], [1, 0]])), private) == pytest.approx((0, 0, 1 / 4, 0))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_half_turned_is_a_part_of_its_own(quarters: int) -> None:
    """On a board of two squares side by side, either may be turned in its place."""
    private = board(2, 4)
    half = torch.cat([private[..., :8].rot90(quarters, (2, 3)), private[..., 8:]], 3)
    assert scored(half, private, Pieces(4, True, turned=True)) == pytest.approx((0.5, 8 / 10, 0.5, 0))
    assert scored(half, private)[1:3] == pytest.approx((4 / 10, 0.5))


def test_a_turned_board_is_right_where_the_cipher_turns() -> None:
    private = board(3, 3)
    turned = private.rot90(1, (2, 3)).flip(3)
    assert scored(turned, private, Pieces(4, True, turned=True)) == (1, 1, 1, 1)
    assert np.isnan(scored(turned, private)).all()


def test_on_a_board_that_is_not_square_the_whole_is_turned_by_its_shape_alone() -> None:
    private = board(2, 3)
    pieces = Pieces(4, True, turned=True)
    for look in (private.flip(2), private.flip(3), private.flip(2, 3)):
        assert scored(look, private, pieces) == (1, 1, 1, 1)
    pair = cut(private, 4)[:, :2]  # blocks 0 and 1, as a column in another frame
    mixed = cut(private, 4).clone()
    mixed[:, [0, 3]], mixed[:, 1] = pair.rot90(-1, (3, 4)), mixed[:, 3]
    found = scored(join(mixed, (3, 8, 12)), private, pieces)
    assert found == pytest.approx((3 / 6, 3 / 7, 3 / 6, 0))  # 2 and 5, 4 and 5; and 0 and 1 in their own frame


def test_a_negative_is_right_where_the_cipher_negates() -> None:
    private = board(2, 2)
    assert scored(1 - private, private, Pieces(4, True, negated=True)) == (1, 1, 1, 1)
    assert np.isnan(scored(1 - private, private, Pieces(4, True, turned=True, recoloured=True))).all()


def test_other_colours_are_right_where_the_cipher_recolours() -> None:
    private = board(2, 2)
    assert scored(private[:, [2, 0, 1]], private, Pieces(4, True, recoloured=True)) == (1, 1, 1, 1)
    assert np.isnan(scored(private[:, [2, 0, 1]], private, Pieces(4, True, turned=True, negated=True))).all()


@pytest.mark.parametrize("wrong", [4, 8, 24, 36])
def test_with_shared_pixels_most_values_make_a_block(wrong: int) -> None:
    """The same values are wrong in every block, as after a guess that is nearly right; not too far off."""
    private = board(3, 3)
    blocks = cut(private, 4).flatten(2)
    blocks[:, :, :wrong] = 1 - blocks[:, :, :wrong]
    nearly = join(blocks.view(1, 9, 3, 4, 4), (3, 12, 12)).rot90(1, (2, 3))
    found = scored(nearly, private, Pieces(4, True, "shared"))
    assert found == (1, 1, 1, 1) if wrong < 24 else np.isnan(found).all()
    assert np.isnan(scored(nearly, private, Pieces(4, True, turned=True))).all()
    if wrong != 24:
        assert scored(1 - nearly, private, Pieces(4, True, "shared", negated=True)) == (1, 1, 1, 1)


def test_grey_images() -> None:
    private = board(3, 3, channels=1)
    assert len(symmetries_of(ETC, 1)) == 16
    assert scored(1 - private.rot90(1, (2, 3)), private, ETC) == (1, 1, 1, 1)
    assert scored(private.roll(4, 2), private) == pytest.approx((0, 9 / 12, 6 / 9, 0))


def test_exact_copies_count_as_the_same() -> None:
    private = placed(board(2, 3), torch.tensor([[0, 0, 2], [3, 4, 0]]))
    places = torch.tensor([[1, 0, 2], [3, 4, 5]])  # the copies change places
    assert scored(placed(private, places), private) == (1, 1, 1, 1)
    copied = placed(private, torch.tensor([[0, 0, 2], [3, 4, 3]]))  # 0 is there twice, not three times
    assert scored(copied, private) == pytest.approx((5 / 6, 5 / 7, 5 / 6, 0))


def test_a_pair_counts_as_often_as_the_private_image_has_it() -> None:
    private = placed(board(2, 3), torch.tensor([[0, 1, 2], [3, 4, 5]]))
    twice = placed(private, torch.tensor([[0, 1, 2], [0, 1, 5]]))
    # 0-1 1-2 above, 2-5 below; the second 0-1 hangs by nothing
    assert scored(twice, private) == pytest.approx((4 / 6, 3 / 7, 4 / 6, 0))


def test_what_one_block_gains_the_other_may_lose() -> None:
    """Pairs are told apart by all values of both blocks, not by what a product of sums would leave."""
    kinds = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80], [10, 21, 30, 40], [49, 60, 70, 80]]) / 255
    private = join(kinds[[0, 1, 3, 2]].view(1, 4, 1, 2, 2), (1, 2, 8))
    estimate = join(kinds[[2, 3, 1, 0]].view(1, 4, 1, 2, 2), (1, 2, 8))
    assert scored(estimate, private, Pieces(2, True)) == pytest.approx((0, 0, 1 / 4, 0))


def test_a_single_block() -> None:
    private = board(1, 1)
    assert scored(private, private) == (1, 1, 1, 1)
    assert scored(private.flip(3), private, ETC) == (1, 1, 1, 1)
    assert puzzle_scores(private, private, MOVED)["piece_cheaper"].item() == 0
    assert np.isnan(scored(private.flip(3), private)).all()


def test_an_estimate_that_is_not_made_of_the_blocks_has_no_score() -> None:
    private = board(4, 4, count=2)
    estimates = private.clone()
    estimates[0] = torch.nn.functional.avg_pool2d(private[0], 3, 1, 1)
    found = puzzle_scores(estimates, private, MOVED)
    assert all(values[0].isnan() and not values[1].isnan() for values in found.values())


def test_half_of_the_blocks_make_a_puzzle() -> None:
    private = board(2, 2)
    estimate = private.clone()
    estimate[..., 4:] = 0
    assert scored(estimate, private) == pytest.approx((0.5, 0.25, 0.5, 0))
    estimate[..., :4, :4] = 0
    assert np.isnan(scored(estimate, private)).all()


def test_less_than_half_a_level_is_no_difference() -> None:
    private = board(2, 3)
    noise = (torch.rand(private.shape, generator=generator(1)) - 0.5) * 0.9 / 255
    assert scored((private + noise).clamp(0, 1), private) == (1, 1, 1, 1)
    assert np.isnan(scored(private + 1 / 255 * (private < 0.5), private)).all()


def test_cheaper_says_whether_the_cost_misled_the_solver() -> None:
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    scrambled = placed(ramp, torch.tensor([2, 0, 3, 1]) + 4 * torch.arange(4)[:, None])
    assert puzzle_scores(scrambled, ramp, MOVED)["piece_cheaper"].item() == 0
    assert puzzle_scores(ramp, scrambled, MOVED)["piece_cheaper"].item() == 1
    assert puzzle_scores(ramp, ramp, MOVED)["piece_cheaper"].item() == 0


def test_small_chunks_cover_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    private = board(2, 2, count=5)
    estimates = torch.stack([placed(image[None], torch.randperm(4, generator=generator(n)).view(2, 2))[0]
                             for n, image in enumerate(private)])
    whole = puzzle_scores(estimates, private, ETC)
    monkeypatch.setattr(puzzle, "_CHUNK_VALUES", 1)
    parts = puzzle_scores(estimates, private, ETC)
    assert all(torch.equal(whole[name], parts[name]) for name in SCORES)
    assert len(whole["piece_direct"].unique()) > 1


def test_blocks_that_do_not_tile_the_images_are_refused() -> None:
    with pytest.raises(UserError, match="does not divide images of 8 x 12"):
        puzzle_scores(board(2, 3), board(2, 3), Pieces(3, True))


def test_whatever_a_shared_shuffle_of_values_hides_is_as_good() -> None:
    """Of a turned image another shuffle makes the same release."""
    private = board(2, 2)
    changed = 1 - private.rot90(1, (2, 3)).flip(3)[:, [2, 0, 1]]
    assert scored(1 - changed, private, Pieces(4, True, "shared")) == (1, 1, 1, 1)
    assert scored(changed, private, Pieces(4, True, "shared", negated=True)) == (1, 1, 1, 1)
    for pieces in (Pieces(4, True, "shared"), Pieces(4, True, "own", negated=True)):
        assert np.isnan(scored(changed, private, pieces)).all()

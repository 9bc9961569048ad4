"""The scorer: the original scores 1, a blind guess 0, and every figure says what it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sheets import GROUPS, GUESSES, PRIVATE, SPLIT, TARGETS, sheet_of
from torch import Tensor

from ppbench import scorers
from ppbench.attack import Reconstruction
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.calibrate import Guess, Guesses
from ppbench.data import Images, Split
from ppbench.defense import Pieces, Release, resize
from ppbench.puzzle import SCORES
from ppbench.scorers import ScoreSettings, Yardstick
from ppbench.seeding import generator


def test_the_original_itself_scores_one_and_leaks_all() -> None:
    values = sheet_of(Reconstruction(PRIVATE)).values
    assert values["ssim"] == pytest.approx(1, abs=1e-6)
    assert values["psnr"] == 60
    assert values["identification"] == 1
    assert values["leakage_ssim"] == pytest.approx(1, abs=1e-6)
    assert values["leakage_identification"] == 1
    assert 0 < values["ssim_floor"] < 1
    assert "release_ssim" not in values


@pytest.mark.parametrize("labels_known", [True, False])
@pytest.mark.parametrize("metric", ["ssim", "identification"])
def test_a_blind_guess_leaks_exactly_nothing(metric: str, labels_known: bool) -> None:
    labels = SPLIT.private.labels[:TARGETS] if labels_known else None
    guess = GUESSES[metric].knowing(labels)
    found = Reconstruction(guess.for_targets(labels, TARGETS, SPLIT.public))
    sheet = sheet_of(found, labels_known=labels_known)
    assert sheet.values[f"leakage_{metric}"] == 0
    assert sheet.values[f"leakage_{metric}_low"] == sheet.values[f"leakage_{metric}_high"] == 0
    assert sheet.values[metric] == sheet.values[f"{metric}_floor"]
    assert torch.equal(sheet.per_image[metric], sheet.per_image[f"{metric}_floor"])
    assert sheet.texts[f"{metric}_floor_method"] == guess.method


def test_leakage_is_the_share_of_the_way_from_the_floor_to_the_original() -> None:
    found = Reconstruction((PRIVATE + 0.3 * torch.rand(PRIVATE.shape, generator=generator(3))).clamp(0, 1))
    values = sheet_of(found).values
    for name in ("ssim", "identification"):
        floor = values[f"{name}_floor"]
        assert values[f"leakage_{name}"] == pytest.approx((values[name] - floor) / (1 - floor))
        assert values[f"leakage_{name}_low"] <= values[f"leakage_{name}"] <= values[f"leakage_{name}_high"]
    assert values["ssim_low"] <= values["ssim"] <= values["ssim_high"] <= values["ssim_worst"]


def test_a_guess_worse_than_blind_leaks_less_than_nothing() -> None:
    values = sheet_of(Reconstruction(1 - PRIVATE)).values
    assert values["leakage_ssim"] < 0


def test_a_floor_as_good_as_the_original_leaves_no_leakage_to_speak_of() -> None:
    known = Guess("class-random", torch.empty(0, 3, 16, 16), 0)
    spoilt = Guesses(Guess("mean", PRIVATE[:1], 0), known)
    same = PRIVATE[:1].expand(TARGETS, -1, -1, -1)
    private = Images(same, SPLIT.private.labels[:TARGETS], SPLIT.private.ids[:TARGETS])
    split = Split(private, SPLIT.public, SPLIT.test, 3)
    values = sheet_of(Reconstruction(same), groups=["psnr", "ssim"], split=split, guesses={"ssim": spoilt},
                      labels_known=False).values
    assert values["ssim_floor"] == 1
    assert not any(name.startswith("leakage") for name in values)


def test_only_what_was_asked_for_is_measured() -> None:
    sheet = sheet_of(Reconstruction(PRIVATE), groups=["psnr"])
    assert set(sheet.values) == {"psnr"}
    assert set(sheet.texts) == {"psnr_def"}
    assert sheet.notes == []


def test_every_figure_says_what_it_is() -> None:
    texts = sheet_of(Reconstruction(PRIVATE)).texts
    assert set(texts) == {"ssim_def", "psnr_def", "identification_def", "ssim_floor_method",
                          "identification_floor_method"}


def test_equal_generators_give_equal_sheets() -> None:
    found = Reconstruction(SPLIT.public.pixels[:TARGETS], aligned=False)
    one, other = sheet_of(found), sheet_of(found)
    assert one.values == other.values
    assert one.texts == other.texts


# --- LPIPS

def test_lpips_is_absent_with_its_reason_where_there_are_no_weights(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    sheet = sheet_of(Reconstruction(PRIVATE), groups=["ssim", "lpips"])
    assert not any("lpips" in name for name in [*sheet.values, *sheet.texts, *sheet.per_image])
    assert len(sheet.notes) == 1
    assert "ppbench weights fetch" in sheet.notes[0]
    assert sheet.values["ssim"] == pytest.approx(1, abs=1e-6)


# --- unordered reconstructions

def test_an_unordered_set_is_matched_to_the_targets() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    sheet = sheet_of(Reconstruction(PRIVATE[order], aligned=False))
    assert torch.equal(sheet.shown, PRIVATE)
    assert sheet.values["ssim"] == pytest.approx(1, abs=1e-6)
    assert sheet.values["identification"] == 1
    assert sheet.texts["ssim_floor_method"] == "random public images, assigned"
    aligned = sheet_of(Reconstruction(PRIVATE[order]))
    assert aligned.values["ssim"] < 0.9


def test_an_unordered_set_is_matched_inside_its_batches_alone() -> None:
    inside, across = torch.tensor([2, 0, 1, 5, 3, 4]), torch.tensor([5, 0, 1, 2, 3, 4])
    assert torch.equal(sheet_of(Reconstruction(PRIVATE[inside], aligned=False, within=3)).shown, PRIVATE)
    assert not torch.equal(sheet_of(Reconstruction(PRIVATE[across], aligned=False, within=3)).shown, PRIVATE)


def test_public_images_as_an_unordered_set_leak_next_to_nothing() -> None:
    found = Reconstruction(SPLIT.public.pixels[:TARGETS], aligned=False)
    assert abs(sheet_of(found).values["leakage_ssim"]) < 0.35


def test_one_image_for_all_identifies_one_target_at_most() -> None:
    found = Reconstruction(PRIVATE[:1].expand(TARGETS, -1, -1, -1), aligned=False)
    assert sheet_of(found).values["identification"] == pytest.approx(1 / TARGETS)


# --- estimates of the release

def halved(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 2)


def test_an_estimate_of_a_release_of_another_shape_is_fitted_to_the_private_one() -> None:
    release = Release(halved(SPLIT.private.pixels), SPLIT.private.labels, torch.arange(10))
    sheet = sheet_of(Reconstruction(release.images[:TARGETS], of="released"), release=release)
    assert sheet.shown.shape == PRIVATE.shape
    assert torch.equal(sheet.shown, resize(release.images[:TARGETS], (3, 16, 16)))
    assert sheet.values["release_psnr"] == 60
    assert "release_ssim" not in sheet.values  # 8 pixels are too small for SSIM's window
    assert 0 < sheet.values["ssim"] < 1


def test_a_grey_release_is_fitted_to_colour() -> None:
    release = Release(SPLIT.private.pixels.mean(1, keepdim=True), SPLIT.private.labels, torch.arange(10))
    sheet = sheet_of(Reconstruction(release.images[:TARGETS], of="released"), release=release)
    assert sheet.shown.shape == PRIVATE.shape
    assert sheet.values["release_ssim"] == pytest.approx(1, abs=1e-6)


def test_a_perfect_recovery_of_a_shuffled_release_shows_in_the_release_columns() -> None:
    shuffled = SPLIT.private.pixels.flatten(2)[..., torch.randperm(256, generator=generator(5))].reshape(10, 3, 16, 16)
    release = Release(shuffled, SPLIT.private.labels, torch.arange(10))
    values = sheet_of(Reconstruction(shuffled[:TARGETS], of="released"), release=release).values
    assert values["release_ssim"] == pytest.approx(1, abs=1e-6)
    assert values["release_psnr"] == 60
    assert values["leakage_ssim"] < 0.1


def test_in_a_chain_the_outer_attack_is_scored_against_the_release() -> None:
    outer = Reconstruction(halved(PRIVATE), of="released")
    release = Release(halved(SPLIT.private.pixels), SPLIT.private.labels, torch.arange(10))
    values = sheet_of(Reconstruction(PRIVATE), outer, release=release).values
    assert values["ssim"] == pytest.approx(1, abs=1e-6)
    assert values["release_psnr"] == 60


def test_an_unordered_outer_attack_leaves_the_chain_unordered() -> None:
    order = torch.tensor([1, 0, 2, 4, 3, 5])
    outer = Reconstruction(PRIVATE[order], of="released", aligned=False, within=3)
    sheet = sheet_of(Reconstruction(PRIVATE[order]), outer)
    assert torch.equal(sheet.shown, torch.cat([PRIVATE[:3], PRIVATE[3:]]))
    assert sheet.values["release_psnr"] == 60
    assert sheet.texts["ssim_floor_method"] == "random public images, assigned"


def test_a_release_without_partners_is_matched() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    release = Release(PRIVATE[order], SPLIT.private.labels[:TARGETS][order], None)
    sheet = sheet_of(Reconstruction(PRIVATE[order], of="released"), release=release)
    assert torch.equal(sheet.shown, PRIVATE)
    assert sheet.values["release_psnr"] == 60


# --- puzzles

PUZZLE = [*GROUPS, "pieces"]
MOVED = Pieces(4, moved=True)


def shuffled(pixels: Tensor) -> Tensor:
    return join(permute_rows(cut(pixels, 4), permutations(len(pixels), 16, generator(7))), (3, 16, 16))


def test_a_rebuilt_puzzle_is_scored_beside_the_rest() -> None:
    half = torch.cat([PRIVATE[:3], PRIVATE[3:].roll(4, 3)])
    plain, sheet = sheet_of(Reconstruction(half)), sheet_of(Reconstruction(half), groups=PUZZLE, pieces=MOVED)
    assert set(sheet.values) - set(plain.values) == set(sheet.per_image) - set(plain.per_image) == set(SCORES)
    assert sheet.per_image["piece_perfect"].tolist() == [1, 1, 1, 0, 0, 0]
    assert sheet.values["piece_direct"] == 0.5
    assert sheet.values["piece_neighbour"] == pytest.approx((1 + (4 * 2 + 3 * 4) / 24) / 2)
    assert sheet.values["piece_largest"] == pytest.approx((1 + 3 / 4) / 2)
    assert set(sheet.texts) - set(plain.texts) == {"piece_def"}
    assert sheet.notes == []
    assert {name: sheet.values[name] for name in plain.values} == plain.values  # no other figure moves


def test_an_unordered_set_of_puzzles_is_scored_after_the_assignment() -> None:
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    values = sheet_of(Reconstruction(PRIVATE[order], aligned=False), groups=PUZZLE, pieces=MOVED).values
    assert values["piece_perfect"] == 1
    assert sheet_of(Reconstruction(PRIVATE[order]), groups=["pieces"], pieces=MOVED).values == {}


def test_beside_puzzles_other_estimates_count_as_nothing() -> None:
    blurred = torch.cat([torch.nn.functional.avg_pool2d(PRIVATE[:2], 3, 1, 1), PRIVATE[2:]])
    sheet = sheet_of(Reconstruction(blurred), groups=["pieces"], pieces=MOVED)
    assert sheet.per_image["piece_direct"].isnan().tolist() == [True] * 2 + [False] * 4
    assert sheet.per_image["piece_direct"][2:].eq(1).all()
    assert sheet.values["piece_direct"] == pytest.approx(4 / 6)
    assert sheet.values["piece_neighbour"] == pytest.approx(4 / 6)
    assert sheet.notes == [f"pieces: 2 of {TARGETS} estimates are not made of the blocks"]


@pytest.mark.parametrize(("pieces", "groups", "estimates"), [
    (None, PUZZLE, PRIVATE), (replace(MOVED, moved=False), PUZZLE, PRIVATE), (MOVED, GROUPS, PRIVATE),
    (MOVED, PUZZLE, PRIVATE[:, :, ::2, ::2]), (MOVED, PUZZLE, PRIVATE.mean(1, keepdim=True)),
    (MOVED, PUZZLE, torch.full_like(PRIVATE, 0.5))],
    ids=["no blocks", "not moved", "not asked for", "smaller", "grey", "blind"])
def test_where_there_is_no_puzzle_there_are_no_scores_of_one(pieces: Pieces | None, groups: list[str],
                                                             estimates: Tensor) -> None:
    sheet = sheet_of(Reconstruction(estimates), groups=groups, pieces=pieces)
    assert not [name for name in [*sheet.values, *sheet.per_image, *sheet.texts] if name.startswith("piece")]
    assert sheet.notes == []


# --- gallery and judge

@pytest.mark.parametrize(("distractors", "gallery"), [(1000, 10 + 5), (3, TARGETS + 3), (0, TARGETS)])
def test_the_gallery_holds_targets_and_distractors_but_nothing_public(distractors: int, gallery: int) -> None:
    sheet = sheet_of(Reconstruction(PRIVATE), distractors=distractors)
    assert sheet.values["gallery"] == gallery
    found = Yardstick(SPLIT, TARGETS, ScoreSettings([], distractors=distractors)).gallery
    assert torch.equal(found[:TARGETS], PRIVATE)
    public = {tuple(image.flatten().tolist()) for image in SPLIT.public.pixels}
    assert not public & {tuple(image.flatten().tolist()) for image in found}


class Brightness:
    """A judge that tells the classes by their mean brightness, and images by their mean colour."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.means = tensors["means"]

    def features(self, found: Tensor) -> Tensor:
        return found.mean((2, 3))

    def predict(self, found: Tensor) -> Tensor:
        return (found.mean((1, 2, 3))[:, None] - self.means).abs().argmin(1)


def test_recognition_and_feature_identification_are_the_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "Judge", Brightness)
    means = torch.stack([SPLIT.public.pixels[SPLIT.public.labels == k].mean() for k in range(3)])
    judge = {"means": means}
    sheet = sheet_of(Reconstruction(PRIVATE), groups=[*GROUPS, "recognition"], judge=judge)
    right = Brightness(judge).predict(PRIVATE) == SPLIT.private.labels[:TARGETS]
    assert sheet.values["recognition"] == float(right.double().mean())
    assert sheet.values["identification_feature"] == 1
    assert sheet.texts["recognition_def"]
    black = sheet_of(Reconstruction(torch.zeros_like(PRIVATE)), groups=["recognition"], judge=judge)
    assert black.values["recognition"] == pytest.approx(1 / 3)  # all of them look like the darkest class
    drawn = sheet_of(Reconstruction(PRIVATE), groups=["recognition"], judge=judge, labels_known=False)
    assert drawn.values["recognition"] == sheet.values["recognition"]
    assert drawn.values["recognition_floor"] < 1 == sheet.values["recognition_floor"]


def test_classes_that_public_images_do_not_show_cannot_be_recognised() -> None:
    strangers = replace(SPLIT, public=replace(SPLIT.public, labels=SPLIT.public.labels + 100))
    sheet = sheet_of(Reconstruction(PRIVATE), groups=["psnr", "recognition"], split=strangers, guesses={},
                     labels_known=False, judge={"never": torch.zeros(1)})
    assert "recognition" not in sheet.values
    assert any("none of the targets' classes" in note for note in sheet.notes)


def test_targets_without_another_photo_are_counted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        plain = torch.tensor([float("nan"), *[1.0] * (TARGETS - 1)], dtype=torch.float64)

        def verified(self, estimates: Tensor) -> Tensor:
            return self.plain / 2

    monkeypatch.setattr(Yardstick, "album", lambda self: Stub())
    sheet = sheet_of(Reconstruction(PRIVATE), groups=["psnr", "verification"], verifier={})
    assert (sheet.values["verification"], sheet.values["verification_plain"]) == (0.5, 1.0)
    assert sheet.values["verification_floor"] == 0.5
    assert sheet.values["leakage_verification"] == 0
    assert f"verification: 1 of {TARGETS} targets have no other photo" in sheet.notes


@pytest.mark.parametrize(("plain", "leakage"), [([1.0], 0.5), ([0.25], None), ([0.0, 0.55], None)])
def test_verification_leaks_up_to_what_originals_reach(plain: list[float], leakage: float | None,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where originals themselves are not, or not clearly, taken for the person rather than blind guesses are."""
    class Stub:
        def __init__(self) -> None:
            self.plain = torch.tensor(plain, dtype=torch.float64).repeat(TARGETS)[:TARGETS]

        def verified(self, estimates: Tensor) -> Tensor:
            """Accept the estimate rather than public images; originals as often as is told."""
            return torch.full((TARGETS,), 0.625 if torch.equal(estimates, PRIVATE) else 0.25, dtype=torch.float64)

    monkeypatch.setattr(Yardstick, "album", lambda self: Stub())
    sheet = sheet_of(Reconstruction(PRIVATE), groups=["verification"], verifier={})
    values = sheet.values
    assert values["verification_floor"] == 0.25
    assert any("clearly beat the floor" in note for note in sheet.notes) == (leakage is None)
    assert values.get("leakage_verification") == leakage
    assert leakage is None or values["leakage_verification_low"] == leakage


def test_without_a_judge_there_is_no_recognition() -> None:
    sheet = sheet_of(Reconstruction(PRIVATE), groups=[*GROUPS, "recognition"])
    assert not {"recognition", "recognition_floor", "identification_feature"} & set(sheet.values)

"""The quality metrics of piq: their direction, range and smallest image, and what stands where they are not defined."""

from pathlib import Path
from typing import Any

import numpy as np
import piq
import pytest
import torch
from conftest import Run
from sheets import GUESSES, PRIVATE, SPLIT, TARGETS, sheet_of
from torch import Tensor, nn

from ppbench import piq_scores
from ppbench.attack import Reconstruction
from ppbench.data import Images, Split
from ppbench.piq_scores import inception, piq_scorers
from ppbench.quality import METRICS, SETS, choose, quality_definition, sentences, unreadable
from ppbench.seeding import generator

BY_IMAGE = [name for name, metric in METRICS.items() if not metric.weights]
LARGE = (3, 161, 161)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def smooth(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    coarse = torch.rand(count, shape[0], 8, 8, generator=generator(seed))
    return nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)


def noisy(images: Tensor, much: float) -> Tensor:
    return (images + much * torch.randn(images.shape, generator=generator(5))).clamp(0, 1)


@pytest.mark.parametrize("name", BY_IMAGE)
def test_the_original_is_best_and_more_noise_is_worse(name: str) -> None:
    metric, images = METRICS[name], smooth(3, LARGE, 0)
    score = piq_scorers([name], images)[name]
    clean, little, much = (score(noisy(images, noise)) for noise in (0, 0.05, 0.2))
    best = metric.low if metric.better == "lower" else 1.0
    assert torch.allclose(clean, torch.full_like(clean, best), atol=1e-5)
    assert clean.dtype == torch.float64
    sign = -1 if metric.better == "lower" else 1
    assert (sign * clean > sign * little).all()
    assert (sign * little > sign * much).all()
    unlike = score(smooth(3, LARGE, 1))
    for found in (little, much, unlike):
        assert found.shape == (3,)
        assert ((found >= metric.low - 1e-6) & (found <= metric.high + 1e-6)).all()


@pytest.mark.parametrize("name", BY_IMAGE)
def test_each_is_defined_from_its_least_size_on(name: str) -> None:
    metric = METRICS[name]
    for side in (metric.least, metric.least + 1):
        assert name in choose((3, side, 2 * side), 5)[0]
        images = smooth(2, (3, side, 2 * side), 0)
        assert piq_scorers([name], images)[name](noisy(images, 0.1)).isfinite().all()
    names, reasons = choose((3, metric.least - 1, 300), 5)
    assert name not in names
    assert f"at least {metric.least} x {metric.least} pixels" in reasons[name]


@pytest.mark.parametrize("name", ["ms_ssim", "iw_ssim", "vif", "haarpsi"])
def test_piq_itself_refuses_what_is_smaller(name: str) -> None:
    side = METRICS[name].least - 1
    images = smooth(2, (3, side, side), 0)
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        piq_scorers([name], images)[name](images)


@pytest.mark.parametrize("name", BY_IMAGE)
def test_an_image_scores_the_same_alone_among_others_and_in_grey(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = smooth(3, (1, 161, 161), 0)
    whole = piq_scorers([name], grey)[name](noisy(grey, 0.1))
    monkeypatch.setattr(piq_scores, "_CHUNK_PIXELS", 1)
    colour = grey.expand(-1, 3, -1, -1)
    alone = piq_scorers([name], colour)[name](noisy(grey, 0.1).expand(-1, 3, -1, -1) * 1.0)
    assert torch.allclose(whole, alone, atol=1e-5)
    beyond = piq_scorers([name], grey)[name](torch.where(grey > 0.5, 1.7, -0.3))
    assert torch.allclose(beyond, piq_scorers([name], grey)[name]((grey > 0.5).float()), atol=1e-6)


def test_gmsd_is_the_spread_of_how_alike_gradients_are() -> None:
    images = smooth(1, (1, 32, 32), 0)
    other = noisy(images, 0.1)
    one, two = (gradient(part[0, 0].double().numpy()) for part in (images, other))
    alike = (2 * one * two + 170 / 255**2) / (one**2 + two**2 + 170 / 255**2)
    found = piq_scorers(["gmsd"], images)["gmsd"](other)
    assert float(found) == pytest.approx(alike.std(), abs=2e-3)


def gradient(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Halve an image, and return how strong its edges are (Prewitt), with black around it."""
    half = image.reshape(16, 2, 16, 2).mean((1, 3))
    framed = np.pad(half, 1)
    across = sum(framed[y:y + 16, :-2] - framed[y:y + 16, 2:] for y in range(3)) / 3
    down = sum(framed[:-2, x:x + 16] - framed[2:, x:x + 16] for x in range(3)) / 3
    return np.sqrt(across**2 + down**2)


def test_metrics_left_out_for_one_reason_share_a_sentence() -> None:
    _, reasons = choose((3, 32, 32), 5)
    assert "ms_ssim, iw_ssim: not measured: wants images of at least 161 x 161 pixels" in sentences(reasons)
    assert "fid: not measured: wants at least 2049 targets" in sentences(reasons)


# --- weights

def test_weights_that_are_absent_or_not_safe_are_named(hub: Path) -> None:
    assert "brisque_svm_weights.pt is not there" in choose((3, 64, 64), 5)[1]["brisque"]
    torch.save({"run": Path("/")}, hub / "brisque_svm_weights.pt")  # an object, where tensors are wanted
    assert "brisque_svm_weights.pt cannot be read" in choose((3, 64, 64), 5)[1]["brisque"]
    assert "brisque" not in quality_definition()


def test_weights_are_fetched_where_they_are_absent(hub: Path, command_line: Run,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {file for metric in METRICS.values() for file in metric.weights}
    (hub / "dists_weights.pt").write_bytes(b"here")
    asked = []

    def download(address: str, path: str, digest: str | None, progress: bool) -> None:
        asked.append(address.rpartition("/")[2])
        assert digest == {"vgg16-397923af.pth": "397923af", "brisque_svm_weights.pt": None}.get(asked[-1], "6726825d")
        Path(path).write_bytes(b"new")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    code, text, _ = command_line("weights", "fetch", "--quality")
    assert code == 0
    assert sorted(asked) == sorted(wanted - {"dists_weights.pt"})
    assert {Path(line).name for line in text.split()} == {path.name for path in hub.iterdir()} == wanted
    assert (hub / "dists_weights.pt").read_bytes() == b"here"


def test_a_failed_download_says_what_to_copy_where(hub: Path, command_line: Run,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    code, _, errors = command_line("weights", "fetch", "--quality")
    assert code == 2
    assert "could not be downloaded (no route): copy https://" in errors
    assert str(hub) in errors


def test_brisque_looks_at_estimates_alone(hub: Path) -> None:
    rng = generator(0)
    torch.save((torch.rand(4, 1, generator=rng), torch.rand(4, 36, generator=rng)), hub / "brisque_svm_weights.pt")
    assert unreadable("brisque_svm_weights.pt") is None
    assert quality_definition().endswith(" brisque_svm_weights.pt")
    images = noisy(smooth(3, (3, 48, 48), 0), 0.1)
    found = [piq_scorers(["brisque"], originals)["brisque"](images) for originals in (images, images.flip(0))]
    assert torch.equal(*found)
    assert found[0].unique().numel() == 3


@pytest.mark.slow
def test_dists_is_piqs(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network of random weights, which no score would be made of: the files are not there."""
    import torchvision

    holder = nn.Module()
    holder.features = torchvision.models.vgg16(weights=None, init_weights=False).features
    monkeypatch.setattr("piq.perceptual.vgg16", lambda **_: holder)
    weights = {name: torch.full((1, 1475, 1, 1), 1 / 2950) for name in ("alpha", "beta")}
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: weights)
    images = smooth(2, (3, 32, 32), 0)
    score = piq_scorers(["dists"], images)["dists"]
    clean, worse = score(images), score(noisy(images, 0.2))
    assert torch.allclose(clean, torch.zeros(2, dtype=torch.float64), atol=1e-4)
    assert (worse > clean + 1e-3).all()


@pytest.mark.slow
def test_features_of_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights, as above."""
    monkeypatch.setattr("piq.feature_extractors.fid_inception.load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr("torchvision.models.Inception3.load_state_dict", lambda *_: None)
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, **_: tensor)  # it takes half a minute
    assert inception(smooth(2, (1, 32, 32), 0)).shape == (2, 2048)


# --- scores of sets

@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piq_scores, "inception", lambda images: features(images))


def features(images: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(images, 8).flatten(1).double()


@pytest.mark.usefixtures("halved")
def test_scores_of_sets_do_not_ask_who_is_who() -> None:
    images, others = smooth(40, (3, 16, 16), 0), 0.5 * smooth(40, (3, 16, 16), 1)
    found = {name: piq_scorers([name], images)[name] for name in SETS}
    for name, score in found.items():
        assert score(images).shape == (40,)
        assert torch.allclose(score(others), score(others.flip(0)))
        worse, same = float(score(others)[0]), float(score(images)[0])
        assert worse < same if METRICS[name].better == "higher" else worse > same + 1e-3
    assert float(found["fid"](images)[0]) == pytest.approx(0, abs=1e-3)
    assert float(found["precision"](images)[0]) == float(found["recall"](images)[0]) == 1


@pytest.mark.usefixtures("halved")
def test_kid_and_fid_are_what_their_papers_say() -> None:
    images, others = smooth(30, (1, 16, 16), 0), 0.7 * smooth(30, (1, 16, 16), 1)
    x, y = (features(part).numpy() for part in (images, others))
    kernels = [(a @ b.T / x.shape[1] + 1)**3 for a, b in ((x, x), (y, y), (x, y))]
    unbiased = [(k.sum() - np.trace(k)) / (30 * 29) for k in kernels[:2]]
    assert float(piq_scorers(["kid"], images)["kid"](others)[0]) == pytest.approx(
        sum(unbiased) - 2 * kernels[2].mean(), rel=1e-4, abs=1e-6)
    roots = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T)).real.clip(0)
    fid = ((x.mean(0) - y.mean(0))**2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * np.sqrt(roots).sum()
    assert float(piq_scorers(["fid"], images)["fid"](others)[0]) == pytest.approx(fid, rel=1e-3, abs=1e-5)


# --- in a sheet

def test_quality_stands_beside_its_floor_and_changes_no_other_figure() -> None:
    found = Reconstruction(noisy(PRIVATE, 0.1))
    without, sheet = sheet_of(found), sheet_of(found, groups=["ssim", "psnr", "identification", "quality"])
    assert without.values.items() <= sheet.values.items()
    for name in ("fsim", "gmsd", "haarpsi", "mdsi"):
        assert len(sheet.per_image[name]) == TARGETS
        better = sheet.values[name] - sheet.values[f"{name}_floor"]
        assert better < 0 if METRICS[name].better == "lower" else better > 0
        assert f"leakage_{name}" not in sheet.values
        assert sheet.texts[f"{name}_floor_method"]
    assert "ms_ssim" not in sheet.values
    assert any(note.startswith("ms_ssim, iw_ssim: not measured") for note in sheet.notes)
    assert sheet.texts["quality_def"].startswith(f"piq {piq.__version__}")
    assert "quality_def" not in without.texts


@pytest.mark.parametrize("name", ["fsim", "gmsd"])
def test_the_floor_is_the_best_guess_in_the_metrics_own_direction(name: str) -> None:
    found = Reconstruction(PRIVATE)
    floors = [sheet_of(found, groups=["ssim", "quality"], guesses=guesses, labels_known=False).values[f"{name}_floor"]
              for guesses in ({}, GUESSES)]
    guess = GUESSES["ssim"].plain.for_targets(None, TARGETS, SPLIT.public)
    blind = float(piq_scorers([name], PRIVATE)[name](guess).mean())
    best = min if METRICS[name].better == "lower" else max
    assert floors[1] == pytest.approx(best(blind, floors[0]), abs=1e-6)
    assert abs(blind - floors[0]) > 1e-4


@pytest.mark.usefixtures("halved")
def test_scores_of_sets_stand_in_rows_and_not_beside_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppbench.quality.unreadable", lambda file: None if "inception" in file else "absent")
    sheet = sheet_of(Reconstruction(PRIVATE), groups=["quality"])
    assert sheet.values["precision"] == 1
    assert sheet.values["kid"] < sheet.values["kid_floor"]
    assert not SETS & sheet.per_image.keys()


def test_what_brisque_makes_of_the_originals_stands_beside_it(hub: Path) -> None:
    rng = generator(0)
    torch.save((torch.rand(4, 1, generator=rng), torch.rand(4, 36, generator=rng)), hub / "brisque_svm_weights.pt")
    large = [Images(noisy(smooth(len(part), (3, 32, 32), seed), 0.1), part.labels, part.ids)
             for seed, part in enumerate((SPLIT.private, SPLIT.public, SPLIT.test))]
    sheet = sheet_of(Reconstruction(large[0].pixels[:TARGETS]), groups=["quality"], split=Split(*large, 3), guesses={})
    assert sheet.values["brisque"] == sheet.values["brisque_plain"]
    assert not any("other photo" in note for note in sheet.notes)
    assert "leakage_brisque" not in sheet.values

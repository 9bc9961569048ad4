import os
from pathlib import Path

import numpy as np
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from ppbench import metrics
from ppbench.errors import UserError
from ppbench.metrics import identification, identification_unordered, psnr, ssim

REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / "../shared"))


def pairs(size: int, channels: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Unrelated, slightly distorted, flat and identical pairs."""
    rng = torch.Generator().manual_seed(size + channels)
    x = torch.rand(count, channels, size, size, generator=rng)
    y = torch.rand(count, channels, size, size, generator=rng)
    y[1] = (x[1] + 0.1 * torch.randn(x[1].shape, generator=rng)).clamp(0, 1)
    x[2], y[2] = 0.25, 0.26
    y[3] = x[3]
    return x, y


def by_skimage(x: Tensor, y: Tensor) -> Tensor:
    return torch.tensor([structural_similarity(
        a.double().permute(1, 2, 0).numpy(), b.double().permute(1, 2, 0).numpy(), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=1, channel_axis=2) for a, b in zip(x, y, strict=True)])


def by_piq(x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = piq.ssim(x.double(), y.double(), kernel_size=11, kernel_sigma=1.5, downsample=False,
                             reduction="none")
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [11, 32, 224])
def test_ssim_equals_two_references(size: int, channels: int) -> None:
    x, y = (side[1:] if size == 224 else side for side in pairs(size, channels))
    found = ssim(x, y)
    torch.testing.assert_close(found, by_skimage(x, y), atol=1e-9, rtol=0)
    torch.testing.assert_close(found, by_piq(x, y), atol=1e-9, rtol=0)
    torch.testing.assert_close(ssim(x, y, torch.float32).double(), found, atol=1e-4, rtol=0)


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "data/imagenet_sample").is_dir(), reason="no PPBENCH_DATA with data/imagenet_sample")
@pytest.mark.parametrize("size", [32, 224])
def test_ssim_equals_two_references_on_photographs(size: int) -> None:
    files = sorted((REAL / "data/imagenet_sample").glob("*.jpg"))[:4]
    images = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB").resize((size, size))))
                          for f in files]).permute(0, 3, 1, 2) / 255
    x, y = images[:-1], images[1:].clone()
    y[0] = (x[0] * 4).round() / 4
    torch.testing.assert_close(ssim(x, y), by_skimage(x, y), atol=1e-9, rtol=0)
    torch.testing.assert_close(ssim(x, y), by_piq(x, y), atol=1e-9, rtol=0)
    grey = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    torch.testing.assert_close(ssim(*grey), by_skimage(*grey), atol=1e-9, rtol=0)


def test_ssim_handles_oblong_images() -> None:
    x, y = torch.rand(2, 2, 3, 15, 40).unbind()
    torch.testing.assert_close(ssim(x, y), by_skimage(x, y), atol=1e-9, rtol=0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_ssim_of_flat_images_is_the_luminance_term(a: float, b: float) -> None:
    found = ssim(torch.full((1, 1, 12, 12), a, dtype=torch.float64), torch.full((1, 1, 12, 12), b, dtype=torch.float64))
    assert float(found) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-9)


def test_ssim_is_symmetric_and_one_only_for_equals() -> None:
    x, y = pairs(32, 3)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 4)
    assert (ssim(x, y)[:3] < 1 - 1e-6).all()


def test_ssim_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(2, 9, 3, 16, 16).unbind()
    whole = ssim(x, y)
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 2 * 3 * 16 * 16)
    torch.testing.assert_close(ssim(x, y), whole, atol=1e-12, rtol=0)
    assert ssim(x[:0], y[:0]).shape == (0,)


def test_ssim_is_differentiable() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 1, 12, 12, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(ssim, (x, y))


@pytest.mark.parametrize("bad", [(1, 3, 10, 32), (1, 3, 32, 8)])
def test_ssim_refuses_images_smaller_than_its_window(bad: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="at least 11 x 11"):
        ssim(torch.rand(bad), torch.rand(bad))


@pytest.mark.parametrize("score", [ssim, psnr])
def test_pairs_of_unequal_shapes_are_refused(score: object) -> None:
    assert callable(score)
    with pytest.raises(UserError, match="one shape"):
        score(torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32))


def test_psnr_equals_the_reference_and_is_capped_and_clipped() -> None:
    x, y = pairs(32, 3)
    expected = [peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=1)
                for a, b in zip(x[:3], y[:3], strict=True)]
    assert psnr(x, y)[:3].tolist() == pytest.approx(expected)
    assert psnr(x, x).tolist() == [60.0] * 4
    assert psnr(x, x + 1e-6).tolist() == [60.0] * 4
    ones = torch.ones(1, 3, 8, 8)
    assert psnr(ones * 7, ones).item() == 60.0


def nearest_by_hand(estimates: np.ndarray, gallery: np.ndarray) -> list[set[int]]:
    squared = ((estimates[:, None].astype(int) - gallery[None].astype(int)) ** 2).sum(2)
    return [set(np.flatnonzero(row == row.min())) for row in squared]


small = arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(3)), elements=st.integers(0, 2))


@settings(max_examples=200)
@given(small, arrays.arrays(np.uint8, (7, 3), elements=st.integers(0, 2)))
def test_identification_counts_ties_exactly(estimates: np.ndarray, gallery: np.ndarray) -> None:
    nearest = nearest_by_hand(estimates, gallery)
    x, y = torch.from_numpy(estimates).float() / 255, torch.from_numpy(gallery).float() / 255
    expected = [(i in near) / len(near) for i, near in enumerate(nearest)]
    assert identification(x, y).tolist() == pytest.approx(expected)
    missed = [np.prod([1 - (j in near) / len(near) for near in nearest]) for j in range(len(estimates))]
    assert identification_unordered(x, y).tolist() == pytest.approx([1 - m for m in missed])


def test_identification_of_the_originals_is_perfect_and_twins_share() -> None:
    gallery = (torch.rand(50, 3, 16, 16) * 255).round() / 255
    assert identification(gallery[:20], gallery).tolist() == [1.0] * 20
    gallery[30] = gallery[31] = gallery[4]
    found = identification(gallery[:20], gallery)
    assert found[4].item() == pytest.approx(1 / 3)
    assert found.sum().item() == pytest.approx(19 + 1 / 3)


def test_one_grey_level_decides_between_nearly_equal_images() -> None:
    original = torch.full((3, 64, 64), 100 / 255)
    twin = original.clone()
    twin[0, 0, 0] = 101 / 255
    assert identification(original[None], torch.stack([original, twin])).tolist() == [1.0]
    assert identification(twin[None], torch.stack([original, twin])).tolist() == [0.0]


def test_a_constant_guess_identifies_at_most_one_target() -> None:
    gallery = torch.rand(40, 3, 8, 8)
    guess = gallery.mean(0).expand(30, -1, -1, -1)
    assert identification(guess, gallery).sum() <= 1
    assert identification_unordered(guess, gallery).sum() <= 1


def test_features_that_tell_nothing_give_chance() -> None:
    assert identification(torch.ones(5, 7), torch.ones(20, 7)).tolist() == pytest.approx([1 / 20] * 5)


def test_identification_unordered_ignores_the_order() -> None:
    gallery = torch.rand(30, 3, 8, 8)
    shuffled = gallery[torch.randperm(12)]
    assert identification_unordered(shuffled, gallery).tolist() == [1.0] * 12
    half = gallery[:12].clone()
    half[6:] = half[:6]
    assert identification_unordered(half.flip(0), gallery).tolist() == [1.0] * 6 + [0.0] * 6


def test_identification_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates, gallery = torch.rand(6, 40), torch.rand(9, 40)
    whole = identification(estimates, gallery)
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 45)
    assert identification(estimates, gallery).tolist() == whole.tolist()


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (9, 1, 8, 8)])
def test_a_gallery_without_every_target_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="gallery of at least 5"):
        identification(torch.rand(5, 3, 8, 8), torch.rand(shape))

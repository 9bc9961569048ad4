import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppbench import judge as module
from ppbench.data import Images
from ppbench.errors import UserError
from ppbench.judge import Judge, train_judge
from ppbench.metrics import identification
from ppbench.seeding import generator

REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / "../shared"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for a second at most."""
    monkeypatch.setattr(module, "_STEPS", 40)


def stripes(count: int, size: int = 32, channels: int = 3, seed: int = 0) -> Images:
    """Two classes: stripes across and stripes down, of any phase and contrast, in noise."""
    rng = generator(seed)
    labels = torch.arange(count) % 2
    wave = (torch.arange(size) * 8 // size % 2).float()
    pattern = torch.where(labels.reshape(-1, 1, 1) == 0, wave[None, :, None], wave[None, None, :])
    contrast = torch.rand(count, 1, 1, generator=rng) * 0.5 + 0.2
    noise = torch.rand(count, channels, size, size, generator=rng) * 0.3
    return Images((pattern * contrast)[:, None] + noise, labels, torch.arange(count))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3), (50, 3)])
def test_the_judge_learns_at_any_size_in_grey_and_colour(size: int, channels: int) -> None:
    judge = Judge(train_judge(stripes(64, size, channels), 2, generator(0)))
    unseen = stripes(40, size, channels, seed=1)
    assert (judge.predict(unseen.pixels) == unseen.labels).float().mean() > 0.9
    assert judge.features(unseen.pixels).shape == (40, 4352)


@pytest.mark.usefixtures("short")
def test_equal_generators_give_equal_judges_and_global_state_is_untouched() -> None:
    public, before = stripes(16), torch.get_rng_state()
    first, again, other = (train_judge(public, 2, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.usefixtures("short")
def test_a_verdict_depends_on_the_image_alone() -> None:
    judge = Judge(train_judge(stripes(16), 2, generator(0)))
    images = stripes(6, seed=2).pixels
    alone = torch.cat([judge.features(image[None]) for image in images])
    torch.testing.assert_close(judge.features(images), alone, atol=1e-5, rtol=0)
    assert torch.equal(judge.predict(images), torch.cat([judge.predict(image[None]) for image in images]))


@pytest.mark.usefixtures("short")
def test_features_find_images_that_were_shifted() -> None:
    judge = Judge(train_judge(stripes(64), 2, generator(0)))
    rng = generator(3)
    images = torch.nn.functional.interpolate(torch.rand(60, 3, 6, 6, generator=rng), (32, 32), mode="bicubic")
    shifted = images.clamp(0, 1).roll((2, 2), (2, 3))
    by_feature = identification(judge.features(shifted), judge.features(images)).mean()
    assert by_feature > 0.9


@pytest.mark.usefixtures("short")
def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        train_judge(stripes(1), 2, generator(0))
    with pytest.raises(UserError, match="at least 8 x 8"):
        train_judge(stripes(8, 7), 2, generator(0))
    judge = Judge(train_judge(stripes(8), 2, generator(0)))
    with pytest.raises(UserError, match="at least 8 x 8"):
        judge.predict(torch.rand(1, 3, 32, 4))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "data/cifar10").is_dir(), reason="no PPBENCH_DATA with data/cifar10")
def test_half_of_cifar_is_recognised_after_a_thousand_images() -> None:
    atlas = np.asarray(Image.open(REAL / "data/cifar10/cifar10_test.webp").convert("RGB"))
    tiles = atlas.reshape(-1, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    labels = np.load(REAL / "data/cifar10/cifar10_labels.npz")["test"].astype(np.int64)
    pixels = torch.from_numpy(tiles[:2000].transpose(0, 3, 1, 2) / np.float32(255))
    public = Images(pixels[:1000], torch.from_numpy(labels[:1000]), torch.arange(1000))
    judge = Judge(train_judge(public, 10, generator(0)))
    assert (judge.predict(pixels[1000:]) == torch.from_numpy(labels[1000:2000])).float().mean() > 0.42

import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import lpips
import pytest
import torch
import torchvision
from torch import Tensor, nn

from ppbench import perceptual
from ppbench.errors import UserError
from ppbench.perceptual import Lpips, Net, Trunk, fetch, find_trunk
from ppbench.seeding import generator

REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / "../shared"))
TRAINED = REAL / "weights/torch_home/hub"
SQUEEZE = "squeezenet1_1-b8a52dc0.pth"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """Let torch.hub look into an empty folder; yield its checkpoint folder."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def untrained(hub: Path) -> Path:
    """Put a file of random weights in the trunk's place, so that the arithmetic is tested without the real one."""
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), hub / SQUEEZE)
    return hub


def found(net: Net = "squeeze") -> Lpips:
    trunk = find_trunk(net)
    assert isinstance(trunk, Trunk)
    return Lpips(trunk)


def reference() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = lpips.LPIPS(net="squeeze", verbose=False)
        return net


def images(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=generator(seed))


@pytest.mark.parametrize("size", [64, 100])
def test_equals_the_package_on_large_images(untrained: Path, size: int) -> None:
    x, y = images(3, size), images(3, size, seed=1)
    expected = reference()(x * 2 - 1, y * 2 - 1).flatten()
    torch.testing.assert_close(found()(x, y), expected, atol=1e-5, rtol=0)


def test_equals_the_package_on_small_images_enlarged(untrained: Path) -> None:
    x, y = images(3, 32), images(3, 32, seed=1)
    up = nn.Upsample((64, 64), mode="bilinear", align_corners=False)
    expected = reference()(up(x), up(y), normalize=True).flatten()
    torch.testing.assert_close(found()(x, y), expected, atol=1e-5, rtol=0)


def test_grey_is_repeated_and_sides_keep_their_ratio(untrained: Path) -> None:
    metric = found()
    x, y = images(2, 40, 1), images(2, 40, 1, seed=1)
    torch.testing.assert_close(metric(x, y), metric(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)), atol=1e-6, rtol=0)
    assert perceptual._prepare(torch.rand(1, 1, 32, 48)).shape == (1, 3, 64, 96)
    assert perceptual._prepare(torch.rand(1, 3, 64, 70)).shape == (1, 3, 64, 70)


def test_identical_images_are_at_distance_zero(untrained: Path) -> None:
    x = torch.cat([images(2, 32), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    assert found()(x, x).tolist() == [0.0] * 4


def test_neither_chunks_nor_kept_features_change_the_figure(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = found()
    x, y = images(5, 32), images(5, 32, seed=1)
    whole = metric(x, y)
    assert whole.shape == (5,)
    kept = metric.against(y)(x)
    monkeypatch.setattr(perceptual, "_CHUNK_COST", 2)
    monkeypatch.setattr(perceptual, "_KEPT_COST", 0)
    for other in (metric(x, y), kept, metric.against(y)(x)):
        torch.testing.assert_close(other, whole, atol=1e-6, rtol=0)


def test_mean_distance_to_a_group_is_exact(untrained: Path) -> None:
    metric = found()
    group = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    public, guesses = images(7, 32), images(2, 32, seed=1)
    mean = metric.mean_distance(guesses, metric.statistics(public, group, 2))
    for k in (0, 1):
        mine = public[group == k]
        expected = metric(guesses[k: k + 1].expand_as(mine), mine).mean()
        torch.testing.assert_close(mean[k], expected, atol=1e-5, rtol=0)


def test_gradients_reach_the_images_alone(untrained: Path) -> None:
    metric = found()
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    metric(x, images(1, 32)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in metric._net.parameters())


def test_loading_is_silent_and_leaves_global_generators_alone(untrained: Path, capsys: pytest.CaptureFixture[str],
                                                              recwarn: pytest.WarningsRecorder) -> None:
    before = torch.get_rng_state()
    found()
    assert torch.equal(before, torch.get_rng_state())
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_every_trunk_gets_its_own_weights(hub: Path, net: Net) -> None:
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    features = torchvision.models.get_model(name, weights=None).features.eval()
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()},
               hub / perceptual._FILES[net])
    metric = found(net)
    x = images(1, 64)
    deepest = metric.features(x)[-1]
    inside = features[:12] if net == "alex" else features[:30]
    scaled = (x * 2 - 1 - torch.tensor([-.030, -.088, -.188])[:, None, None]) \
        / torch.tensor([.458, .448, .450])[:, None, None]
    with torch.no_grad():
        expected = nn.functional.normalize(inside(scaled), dim=1)
    torch.testing.assert_close(deepest, expected, atol=1e-5, rtol=0)


def test_the_definition_tells_trunk_files_apart(untrained: Path) -> None:
    first = found().definition
    assert first.startswith("lpips ")
    assert " squeeze v0.1 trunk " in first
    assert first.endswith("upsampled to 64")
    other = untrained / "other.pth"
    other.write_bytes(b"x")
    assert Trunk("squeeze", other).definition != first


def test_no_weights_no_figure_but_a_reason(hub: Path) -> None:
    reason = find_trunk("squeeze")
    assert isinstance(reason, str)
    assert "ppbench weights fetch" in reason
    assert SQUEEZE in reason
    assert not list(hub.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a weight file", None])
def test_a_broken_file_is_refused(hub: Path, content: bytes | None) -> None:
    if content is None:
        torch.save({"features.0.weight": torch.zeros(1)}, hub / SQUEEZE)
    else:
        (hub / SQUEEZE).write_bytes(content)
    with pytest.raises(UserError, match="does not hold torchvision's weights"):
        found()


def test_unequal_shapes_are_refused(untrained: Path) -> None:
    with pytest.raises(UserError, match="pairs of one shape"):
        found()(images(2, 32), images(1, 32))


def test_nothing_is_downloaded_unless_the_host_answers(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", forbidden)
    monkeypatch.setattr(perceptual, "_connects", lambda host: True)
    assert isinstance(find_trunk("squeeze"), str)
    monkeypatch.setattr(perceptual, "_connects", lambda host: False)
    assert isinstance(find_trunk("squeeze", download=True), str)


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(perceptual, "_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(perceptual, "_connects", lambda host: never.wait())
    assert not perceptual._reachable("example.org")
    never.set()


def test_a_host_that_answers_is_fetched_from_with_the_hash_checked(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(perceptual, "_connects", lambda host: True)
    assert find_trunk("squeeze", download=True) == Trunk("squeeze", hub / SQUEEZE)
    assert asked == [(f"https://download.pytorch.org/models/{SQUEEZE}", "b8a52dc0")]


def test_a_failed_download_says_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError, match="copy the file"):
        fetch("alex")
    monkeypatch.setattr(perceptual, "_connects", lambda host: True)
    assert "could not be downloaded" in str(find_trunk("alex", download=True))


@pytest.fixture
def trained() -> Iterator[None]:
    if not (TRAINED / "checkpoints" / SQUEEZE).is_file():
        pytest.skip("no PPBENCH_DATA with weights/torch_home")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(TRAINED))
    yield
    torch.hub.set_dir(before)


@pytest.mark.real
@pytest.mark.usefixtures("trained")
def test_known_answer_of_the_trained_trunk() -> None:
    torch.manual_seed(123)
    x, y = (torch.rand(10, 3, 100, 100) for _ in range(2))
    assert found()(x, y).mean().item() == pytest.approx(0.1008, abs=5e-5)
    expected = reference()(x * 2 - 1, y * 2 - 1).flatten()
    torch.testing.assert_close(found()(x, y), expected, atol=1e-5, rtol=0)

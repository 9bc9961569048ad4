import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ppbench.data import Dataset, Pool, SplitSizes, check_pools, split
from ppbench.datasets import hub
from ppbench.datasets._resize import square, squares
from ppbench.datasets._skimage import wheel_file
from ppbench.datasets.faces import Faces
from ppbench.datasets.folder import Folder
from ppbench.datasets.hub import Cifar10, Cifar100, Stl10
from ppbench.datasets.npz import Npz
from ppbench.datasets.photos import FLAT, Photos, columns
from ppbench.errors import UserError
from ppbench.plugins import configure, load_class, registered

REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / "../shared")).resolve()
real = pytest.mark.real
absent = pytest.mark.skipif(not (REAL / "data").is_dir(), reason=f"no real data in {REAL} (set PPBENCH_DATA)")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but those to this machine, and proxies with them."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    connect = socket.create_connection

    def local_only(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        if address[0] != "127.0.0.1":
            raise OSError("a test reached for the network")
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", local_only)


def assert_reads_or_names(dataset: Dataset, path: Path) -> None:
    """A damaged file gives whole pools or a sentence that names it, and nothing else."""
    try:
        message = ""
        check_pools(dataset.pools(8))
    except UserError as error:
        message = str(error)
    assert not message or path.name in message


# --- every data set -------------------------------------------------------------------------------------------------


def test_the_built_in_names_build_data_sets() -> None:
    given_params: dict[str, dict[str, Any]] = {"npz": {"path": "x.npz"}, "folder": {"path": "x"}}
    sizes = {"photos": 32, "faces": 32, "cifar10": 32, "cifar100": 32, "stl10": 96, "npz": None, "folder": None}
    assert sizes.keys() <= registered("datasets").keys()
    for name, size in sizes.items():
        dataset = configure(load_class("datasets", name), name, given_params.get(name, {}))
        assert isinstance(dataset, Dataset)
        assert dataset.default_size == size


# --- resizing -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 50), st.integers(0, 99))
def test_square_agrees_with_torch_antialiased_bicubic(h: int, w: int, channels: int, size: int, seed: int) -> None:
    image = noise(h, w, channels, seed=seed) // 4 + 96  # overshoot stays within 8 bits
    result = square(image, size)
    assert result.dtype == np.uint8
    assert result.shape == (size, size, channels)
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    crop = torch.from_numpy(image[top:top + side, left:left + side]).permute(2, 0, 1)[None].float()
    reference = torch.nn.functional.interpolate(crop, (size, size), mode="bicubic", antialias=True)
    # Pillow rounds to 8 bits after each of its two passes.
    np.testing.assert_allclose(result, reference[0].permute(1, 2, 0).numpy(), atol=1.5)


def test_squares_of_the_right_size_are_untouched() -> None:
    images = noise(3, 8, 8, 3)
    assert squares(images, 8) is images
    assert squares(images, None) is images


# --- photos ---------------------------------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": skimage.data.astronaut, "chelsea": skimage.data.chelsea, "coffee": skimage.data.coffee,
    "rocket": skimage.data.rocket, "hubble": skimage.data.hubble_deep_field,
    "ihc": skimage.data.immunohistochemistry, "retina": skimage.data.retina,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
}


@pytest.fixture(scope="module")
def photos() -> dict[str, Pool]:
    return dict(Photos().pools(32))


def places(size: int) -> dict[bytes, set[tuple[int, int, int]]]:
    """Where every crop of the grid stands: (photograph, row, column), by its content."""
    found: dict[bytes, set[tuple[int, int, int]]] = {}
    for label, load in enumerate(SOURCES.values()):
        photo = load()
        for y in range(0, photo.shape[0] - size + 1, size):
            for x in range(0, photo.shape[1] - size + 1, size):
                found.setdefault(photo[y:y + size, x:x + size].tobytes(), set()).add((label, y, x))
    return found


def test_photos_are_crops_of_their_photograph_a_crop_apart(photos: dict[str, Pool]) -> None:
    where = places(32)
    spans: dict[str, list[tuple[int, int]]] = {}
    used: set[tuple[int, int, int]] = set()
    for name, pool in photos.items():
        found = [where[crop.tobytes()] for crop in pool.pixels]
        assert all(len(at) == 1 for at in found)
        at = [next(iter(at)) for at in found]
        assert not used & set(at)
        used |= set(at)
        assert [label for label, _, _ in at] == pool.labels.tolist()
        spans[name] = [(min(x for k, _, x in at if k == label), max(x for k, _, x in at if k == label) + 32)
                       for label in range(8)]
    for label in range(8):
        private, public, test = (spans[name][label] for name in ("private", "public", "test"))
        assert public[0] - private[1] >= 32
        assert test[0] - public[1] >= 32


def test_photos_have_enough_of_every_photograph_in_every_pool(photos: dict[str, Pool]) -> None:
    check_pools(photos)
    assert {name: len(pool.labels) for name, pool in photos.items()} == {"private": 1199, "public": 1037, "test": 485}
    assert all(np.bincount(pool.labels, minlength=8).min() >= 18 for pool in photos.values())
    result = split(photos, SplitSizes(360, 344, 144), 0)
    assert result.classes == 8
    assert np.bincount(result.private.labels.numpy()).tolist() == [45] * 8


def test_every_crop_that_is_left_out_is_flat_or_lies_in_a_gap(photos: dict[str, Pool]) -> None:
    kept = {crop.tobytes() for pool in photos.values() for crop in pool.pixels}
    for crop in kept:
        assert np.mean(np.std(np.frombuffer(crop, np.uint8).reshape(-1, 3), axis=0) ** 2) >= FLAT ** 2
    for label, load in enumerate(SOURCES.values()):
        photo = load()
        across = photo.shape[1] // 32
        gaps = set(range(across)) - {c for region in columns(across).values() for c in region}
        assert len(gaps) == 2, label
        for column in set(range(across)) - gaps:
            for row in range(photo.shape[0] // 32):
                crop = photo[row * 32:row * 32 + 32, column * 32:column * 32 + 32]
                flat = np.mean(np.std(crop.reshape(-1, 3), axis=0) ** 2) < FLAT ** 2
                assert flat == (crop.tobytes() not in kept)


@given(st.integers(5, 200))
def test_columns_are_shared_out_with_a_gap(count: int) -> None:
    parts = columns(count)
    private, public, test = (parts[name] for name in ("private", "public", "test"))
    assert all(map(len, (private, public, test)))
    assert (private.start, public.start, test.start, test.stop) == (0, private.stop + 1, public.stop + 1, count)
    used = count - 2
    assert abs(len(private) - 0.4 * used) <= 0.5
    assert abs(len(test) - 0.2 * used) <= 0.5


@pytest.mark.parametrize(("size", "classes"), [(64, 8), (96, 7), (128, 4), (282, 1)])
def test_photos_too_small_for_a_size_are_left_out(size: int, classes: int) -> None:
    pools = Photos().pools(size)
    check_pools(pools)
    for pool in pools.values():
        assert pool.pixels.shape[1:] == (size, size, 3)
        assert np.unique(pool.labels).tolist() == list(range(classes))


@pytest.mark.parametrize("size", [283, 4000, 1, 0, -3])
def test_photos_refuse_sizes_that_no_photograph_serves(size: int) -> None:
    with pytest.raises(UserError, match="choose a smaller size"):
        Photos().pools(size)


def test_photos_without_a_size_are_32_pixels(photos: dict[str, Pool]) -> None:
    np.testing.assert_array_equal(Photos().pools(None)["test"].pixels, photos["test"].pixels)


def test_a_file_missing_from_the_wheel_is_a_user_error() -> None:
    with pytest.raises(UserError, match="install scikit-image"):
        wheel_file("no_such_photo.png")


# --- faces ----------------------------------------------------------------------------------------------------------


def test_faces_are_the_first_hundred_of_the_subset() -> None:
    pools = Faces().pools(32)
    check_pools(pools)
    assert list(pools) == ["all"]
    pixels, labels = pools["all"]
    assert pixels.shape == (200, 32, 32, 1)
    assert labels.tolist() == [1] * 100 + [0] * 100
    native = Faces().pools(None)["all"].pixels
    np.testing.assert_allclose(native[..., 0] / 255, skimage.data.lfw_subset(), atol=0.5001 / 255)


def test_faces_split_into_balanced_parts() -> None:
    result = split(Faces().pools(32), SplitSizes(80, 80, 40), 0)
    assert result.classes == 2
    for part in (result.private, result.public, result.test):
        assert part.shape == (1, 32, 32)
        assert part.labels.float().mean() == 0.5


# --- torchvision's data sets ----------------------------------------------------------------------------------------


def write_cifar(folder: Path, layout: list[str], key: str, meta: str, names: str, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(layout):
        content = {"data": noise(6, 3072, seed=seed + i), key: [0, 1, 2, 3, 4, 5]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / meta).write_bytes(pickle.dumps({names: list("abcdef")}))


def pin(monkeypatch: pytest.MonkeyPatch, cls: type, folder: Path) -> None:
    """Let torchvision expect the small files in a folder in place of the official ones."""
    def pinned(names: list[str]) -> list[list[str]]:
        return [[name, md5((folder / name).read_bytes()).hexdigest()] for name in names]

    official: Any = cls
    monkeypatch.setattr(cls, "train_list", pinned([name for name, _ in official.train_list]))
    monkeypatch.setattr(cls, "test_list", pinned([name for name, _ in official.test_list]))
    if hasattr(official, "meta"):
        digest = md5((folder / official.meta["filename"]).read_bytes()).hexdigest()
        monkeypatch.setattr(cls, "meta", {**official.meta, "md5": digest})


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a tiny CIFAR-10 in torchvision's own layout."""
    root = tmp_path / "root"
    folder = root / "cifar-10-batches-py"
    write_cifar(folder, [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], "labels", "batches.meta",
                "label_names")
    pin(monkeypatch, torchvision.datasets.CIFAR10, folder)
    return root


def test_cifar10_is_read_from_root(cifar10: Path) -> None:
    pools = Cifar10(root=str(cifar10), download=False).pools(32)
    check_pools(pools)
    assert {name: pool.pixels.shape for name, pool in pools.items()} == {"train": (30, 32, 32, 3),
                                                                         "test": (6, 32, 32, 3)}
    np.testing.assert_array_equal(pools["train"].pixels[7].transpose(2, 0, 1).ravel(), noise(6, 3072, seed=1)[1])
    assert pools["train"].labels.tolist() == [0, 1, 2, 3, 4, 5] * 5
    assert Cifar10(root=str(cifar10)).pools(16)["test"].pixels.shape == (6, 16, 16, 3)


def test_cifar100_has_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, ["train", "test"], "fine_labels", "meta", "fine_label_names")
    pin(monkeypatch, torchvision.datasets.CIFAR100, folder)
    pools = Cifar100(root=str(tmp_path), download=False).pools(32)
    check_pools(pools)
    assert pools["test"].labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_stl10_is_upright_and_counts_classes_from_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = {"train": noise(4, 3, 96, 96), "test": noise(2, 3, 96, 96, seed=1), "unlabeled": noise(1, 3, 96, 96)}
    for name, planes in images.items():
        planes.tofile(folder / f"{name}_X.bin")  # the official files are column-major
    np.array([1, 2, 3, 10], np.uint8).tofile(folder / "train_y.bin")
    np.array([4, 5], np.uint8).tofile(folder / "test_y.bin")
    pin(monkeypatch, torchvision.datasets.STL10, folder)
    pools = Stl10(root=str(tmp_path), download=False).pools(96)
    check_pools(pools)
    assert pools["train"].labels.tolist() == [0, 1, 2, 9]
    np.testing.assert_array_equal(pools["test"].pixels, images["test"].transpose(0, 3, 2, 1))


@pytest.mark.parametrize("cls", [Cifar10, Cifar100, Stl10])
def test_absent_files_name_root_and_the_remedy(cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"root='.*' and download is off: put the unpacked .*\.tar\.gz there"):
        cls(root=str(tmp_path), download=False).pools(32)
    with pytest.raises(UserError, match=r"root='.*' and http.* cannot be reached: put the unpacked .*\.tar\.gz there"):
        cls(root=str(tmp_path)).pools(32)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_not_unpickled(cifar10: Path) -> None:
    evil = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    proof = cifar10 / "proof"
    evil.write_bytes(b"cpathlib\nPath\n(S'" + str(proof).encode() + b"'\ntR.")
    with pytest.raises(UserError, match="not \\(whole\\) in root"):
        Cifar10(root=str(cifar10), download=False).pools(32)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve the folder `web` on this machine."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    (tmp_path / "web").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web"))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def offer(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(content).hexdigest())


def test_absent_files_are_downloaded_once(cifar10: Path, server: str, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(cifar10 / "cifar-10-batches-py", arcname="cifar-10-batches-py")
    (tmp_path / "web" / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue())
    offer(monkeypatch, f"{server}/cifar-10-python.tar.gz", buffer.getvalue())
    fresh = Cifar10(root=str(tmp_path / "fresh"))
    np.testing.assert_array_equal(fresh.pools(32)["train"].pixels, Cifar10(str(cifar10)).pools(32)["train"].pixels)
    (tmp_path / "web" / "cifar-10-python.tar.gz").unlink()
    assert len(fresh.pools(32)["test"].labels) == 6
    assert socket.getdefaulttimeout() is None


def test_a_download_of_other_bytes_is_refused(cifar10: Path, server: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web" / "cifar-10-python.tar.gz").write_bytes(b"a login page")
    offer(monkeypatch, f"{server}/cifar-10-python.tar.gz", b"the true archive")
    with pytest.raises(UserError, match=r"its download from .* failed"):
        Cifar10(root=str(tmp_path / "fresh")).pools(32)
    offer(monkeypatch, f"{server}/gone.tar.gz", b"the true archive")
    with pytest.raises(UserError, match=r"its download from .* failed .*404"):
        Cifar10(root=str(tmp_path / "other")).pools(32)


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        offer(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz", b"")
        with pytest.raises(UserError, match="cannot be reached"):
            Cifar10(root=str(tmp_path)).pools(32)


# --- npz ------------------------------------------------------------------------------------------------------------


def arrays_of(*parts: str, shape: tuple[int, ...] = (6, 5), n: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for i, part in enumerate(parts):
        found[f"{part}_images"] = noise(n + i, *shape, seed=seed + i)
        found[f"{part}_labels"] = np.arange(n + i) % 3
    return found


def saved(tmp_path: Path, arrays: dict[str, Any], compressed: bool = False) -> str:
    (np.savez_compressed if compressed else np.savez)(tmp_path / "set.npz", **arrays)
    return str(tmp_path / "set.npz")


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_keeps_pixels_and_joins_val_to_train(shape: tuple[int, ...], compressed: bool, tmp_path: Path) -> None:
    arrays = arrays_of("train", "val", "test", shape=shape)
    arrays["val_labels"] = arrays["val_labels"][:, None].astype(np.uint8)
    pools = Npz(saved(tmp_path, arrays, compressed)).pools(None)
    check_pools(pools)
    assert list(pools) == ["train", "test"]
    joined = np.concatenate([arrays["train_images"], arrays["val_images"]]).reshape(9, 6, 5, -1)
    np.testing.assert_array_equal(pools["train"].pixels, joined)
    assert pools["train"].labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(pools["test"].pixels, arrays["test_images"].reshape(6, 6, 5, -1))
    assert pools["test"].labels.dtype == np.int64


@pytest.mark.parametrize("parts", [("train",), ("train", "val")])
def test_npz_without_test_images_is_one_pool(parts: tuple[str, ...], tmp_path: Path) -> None:
    pools = Npz(saved(tmp_path, arrays_of(*parts))).pools(None)
    assert list(pools) == ["all"]
    assert len(pools["all"].labels) == {1: 4, 2: 9}[len(parts)]


def test_npz_is_resized_to_the_size_asked_for(tmp_path: Path) -> None:
    arrays = arrays_of("train", "test", shape=(6, 5, 3))
    pools = Npz(saved(tmp_path, arrays)).pools(8)
    assert pools["train"].pixels.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(pools["test"].pixels[1], square(arrays["test_images"][1], 8))


GOOD = arrays_of("train", "test")
BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"x": np.zeros(3)}, "lacks train_images and train_labels: name its arrays train_images"),
    "no train": (arrays_of("test"), "lacks train_images"),
    "half train": ({"train_images": GOOD["train_images"]}, "only one of train_images and train_labels"),
    "half test": ({k: v for k, v in GOOD.items() if k != "test_labels"}, "only one of test_images and test_labels"),
    "half val": ({**GOOD, "val_labels": GOOD["test_labels"]}, "only one of val_images and val_labels"),
    "float images": ({**GOOD, "train_images": GOOD["train_images"] / 255}, "float64 .*: give uint8"),
    "flat images": ({**GOOD, "train_images": GOOD["train_images"][:, 0]}, r"uint8 \[4, 5\]: give uint8"),
    "volumes": ({**GOOD, "train_images": noise(4, 5, 5, 5)}, "give uint8"),
    "four channels": ({**GOOD, "train_images": noise(4, 5, 5, 4)}, "give uint8"),
    "no pixels": ({**GOOD, "train_images": noise(4, 0, 5)}, "give uint8"),
    "float labels": ({**GOOD, "train_labels": np.array([0.0, 1, 2, 0])}, "float64 .*: give integers"),
    "text labels": ({**GOOD, "train_labels": np.array(list("abca"))}, "give integers"),
    "scalar labels": ({**GOOD, "train_labels": np.array(3)}, "give integers"),
    "multi-label": ({**GOOD, "train_labels": np.zeros((4, 14), np.uint8)}, "not supported: give one label an image"),
    "unequal": ({**GOOD, "test_labels": np.arange(3)}, "has 5 test_images but 3 test_labels"),
    "negative": ({**GOOD, "train_labels": np.array([-1, 0, 1, 2])}, "number the classes 0 to 3"),
    "negative in number": ({"train_images": noise(3, 4, 4), "train_labels": np.array([-1, 1, 2])}, "0 to 2"),
    "from one": ({k: v + 1 if "labels" in k else v for k, v in GOOD.items()}, "run from 1 to 3 .* 0 to 2"),
    "with a gap": ({**GOOD, "train_labels": np.array([0, 1, 2, 9])}, "number the classes 0 to 3"),
    "empty": ({"train_images": noise(0, 5, 5), "train_labels": np.zeros(0, int)}, "is empty"),
    "mixed colour": ({**GOOD, "test_images": noise(5, 6, 5, 3)}, "mixes grey and colour"),
    "mixed sizes": ({**GOOD, "test_images": noise(5, 7, 5)}, "give size=PIXELS"),
    "pickled": ({**GOOD, "train_images": np.array([None] * 4, dtype=object)}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    arrays, words = BAD_NPZ[case]
    with pytest.raises(UserError, match=words):
        Npz(saved(tmp_path, arrays)).pools(None)


def test_npz_parts_of_different_sizes_are_accepted_with_a_size(tmp_path: Path) -> None:
    arrays, _ = BAD_NPZ["mixed sizes"]
    pools = Npz(saved(tmp_path, arrays)).pools(5)
    check_pools(pools)
    assert pools["train"].pixels.shape[1:] == pools["test"].pixels.shape[1:] == (5, 5, 1)


def test_npz_refuses_files_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    with pytest.raises(UserError, match="does not exist"):
        Npz(str(path)).pools(None)
    for content in (b"", b"hello", b"PK\x03\x04", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            Npz(str(path)).pools(None)
    with path.open("wb") as file:
        np.save(file, noise(3, 4, 4))
    with pytest.raises(UserError, match=r"no \.npz archive"):
        Npz(str(path)).pools(None)
    with pytest.raises(UserError, match="does not exist"):
        Npz(str(tmp_path)).pools(None)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.booleans())
def test_damaged_npz_never_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, compressed: bool, at: float,
                                               junk: bytes, cut: bool) -> None:
    folder = tmp_path_factory.mktemp("npz")
    path = Path(saved(folder, GOOD, compressed))
    whole = path.read_bytes()
    place = int(at * len(whole))
    path.write_bytes(whole[:place] + junk + (b"" if cut else whole[place + len(junk):]))
    assert_reads_or_names(Npz(str(path)), path)


# --- folder ---------------------------------------------------------------------------------------------------------


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, **options)


def test_folder_labels_are_the_sorted_names(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "b.PNG", noise(6, 4, 3, seed=1))
    put(tmp_path / "cat" / "a.bmp", noise(6, 4, 3, seed=2))
    put(tmp_path / "ant" / "x.webp", noise(6, 4, 3, seed=3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    pools = Folder(str(tmp_path)).pools(None)
    check_pools(pools)
    assert list(pools) == ["all"]
    assert pools["all"].labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(pools["all"].pixels, np.stack([noise(6, 4, 3, seed=s) for s in (3, 2, 1)]))


def test_folder_keeps_train_and_test_apart_with_common_labels(tmp_path: Path) -> None:
    for seed, name in enumerate(["train/b", "train/c", "val/b", "test/a", "test/c"]):
        put(tmp_path / name / "x.png", noise(4, 4, seed=seed))
    pools = Folder(str(tmp_path)).pools(None)
    check_pools(pools)
    assert pools["train"].labels.tolist() == [1, 2, 1]
    assert pools["test"].labels.tolist() == [0, 2]
    np.testing.assert_array_equal(pools["train"].pixels[2, ..., 0], noise(4, 4, seed=2))


def test_folder_with_a_class_called_train_is_one_pool(tmp_path: Path) -> None:
    for name in ("train", "test", "plane"):
        put(tmp_path / name / "x.png", noise(4, 4))
    assert Folder(str(tmp_path)).pools(None)["all"].labels.tolist() == [0, 1, 2]


def test_folder_without_class_folders_is_one_class(tmp_path: Path) -> None:
    put(tmp_path / "x.png", noise(4, 4))
    put(tmp_path / "y.png", noise(4, 4, seed=1))
    pool = Folder(str(tmp_path)).pools(None)["all"]
    assert pool.labels.tolist() == [0, 0]
    assert pool.pixels.shape == (2, 4, 4, 1)


def test_folder_crops_and_resizes_every_image(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.png", noise(9, 20, 3))
    put(tmp_path / "a" / "y.png", noise(31, 8, 3, seed=1))
    with pytest.raises(UserError, match=r"differ in size .*give size=PIXELS"):
        Folder(str(tmp_path)).pools(None)
    pixels = Folder(str(tmp_path)).pools(7)["all"].pixels
    np.testing.assert_array_equal(pixels, [square(noise(9, 20, 3), 7), square(noise(31, 8, 3, seed=1), 7)])


def test_folder_parts_of_different_sizes_want_a_size(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a" / "x.png", noise(4, 4))
    put(tmp_path / "test" / "a" / "x.png", noise(5, 5))
    with pytest.raises(UserError, match="give size=PIXELS"):
        Folder(str(tmp_path)).pools(None)


def test_folder_grey_becomes_rgb_beside_colour_even_across_parts(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a" / "x.png", noise(4, 4))
    put(tmp_path / "test" / "a" / "x.png", noise(4, 4, 3))
    pools = Folder(str(tmp_path)).pools(None)
    check_pools(pools)
    np.testing.assert_array_equal(pools["train"].pixels[0], np.repeat(noise(4, 4)[..., None], 3, axis=2))
    np.testing.assert_array_equal(pools["test"].pixels[0], noise(4, 4, 3))


def test_folder_turns_images_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 6, 3))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held a quarter turn clockwise
    picture.save(tmp_path / "x.png", exif=exif)
    pixels = Folder(str(tmp_path)).pools(None)["all"].pixels
    np.testing.assert_array_equal(pixels[0], np.rot90(noise(4, 6, 3), -1))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_folder_reads_the_modes_of_image_files(mode: str, channels: int, tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).convert(mode).save(tmp_path / "x.png")
    assert Folder(str(tmp_path)).pools(None)["all"].pixels.shape == (1, 8, 8, channels)


def test_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Folder(str(tmp_path / "none")).pools(None)
    with pytest.raises(UserError, match=r"has no images: put .*\.png"):
        Folder(str(tmp_path)).pools(None)
    put(tmp_path / "x.png", noise(4, 4))
    with pytest.raises(UserError, match="does not exist"):
        Folder(str(tmp_path / "x.png")).pools(None)
    put(tmp_path / "a" / "x.png", noise(4, 4))
    with pytest.raises(UserError, match="1 images beside its class folders"):
        Folder(str(tmp_path)).pools(None)


def test_folder_with_val_for_test_is_asked_to_rename_it(tmp_path: Path) -> None:
    for name in ("train", "val"):
        put(tmp_path / name / "a" / "x.png", noise(4, 4))
    with pytest.raises(UserError, match="rename val to test"):
        Folder(str(tmp_path)).pools(None)


def test_folder_refuses_more_than_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png' has more than 8 bits"):
        Folder(str(tmp_path)).pools(None)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "jpg", "webp", "bmp"]), st.floats(0, 1, exclude_max=True), st.binary(max_size=6),
       st.booleans())
def test_damaged_images_are_named(tmp_path_factory: pytest.TempPathFactory, suffix: str, at: float, junk: bytes,
                                  cut: bool) -> None:
    path = tmp_path_factory.mktemp("folder") / f"broken.{suffix}"
    put(path, noise(9, 9, 3))
    whole = path.read_bytes()
    place = int(at * len(whole))
    path.write_bytes(whole[:place] + junk + (b"" if cut else whole[place + len(junk):]))
    assert_reads_or_names(Folder(str(path.parent)), path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_images_with_a_damaged_header_are_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{suffix}"
    put(path, noise(90, 90, 3))
    whole = path.read_bytes()
    for place in range(64):
        for value in (b"\0", b"\xff"):
            path.write_bytes(whole[:place] + value + whole[place + 1:])
            assert_reads_or_names(Folder(str(tmp_path)), path)


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unpacked")
    subprocess.run([sys.executable, str(REAL / "data" / "unpack.py"), str(out)], check=True, capture_output=True)
    return out


@real
@absent
def test_real_cifar10_is_balanced(unpacked: Path) -> None:
    pools = Npz(str(unpacked / "cifar10.npz")).pools(32)
    check_pools(pools)
    assert np.bincount(pools["train"].labels).tolist() == [2000] * 10
    assert np.bincount(pools["test"].labels).tolist() == [1000] * 10
    result = split(pools, SplitSizes(2000, 2000, 1000), 0)
    assert result.classes == 10
    for part, each in ((result.private, 200), (result.public, 200), (result.test, 100)):
        assert part.shape == (3, 32, 32)
        assert np.bincount(part.labels.numpy()).tolist() == [each] * 10


@real
@absent
def test_real_lfw_gives_private_and_public_the_same_people(unpacked: Path) -> None:
    pools = Npz(str(unpacked / "lfw.npz")).pools(None)
    check_pools(pools)
    assert sum(len(pool.labels) for pool in pools.values()) == 2843
    result = split(pools, SplitSizes(1000, 1000, 400), 0)
    assert result.classes == 151
    counts = [np.bincount(part.labels.numpy(), minlength=151) for part in (result.private, result.public)]
    assert min(count.min() for count in counts) > 0
    assert np.abs(counts[0] - counts[1]).max() <= 2


@real
@absent
@pytest.mark.parametrize(("name", "train", "test"), [("breastmnist", 546 + 78, 156),
                                                     ("pneumoniamnist", 4708 + 524, 624)])
def test_real_medmnist_is_grey_with_two_classes(name: str, train: int, test: int) -> None:
    pools = Npz(str(REAL / "data" / "medmnist" / f"{name}.npz")).pools(None)
    check_pools(pools)
    assert {part: pool.pixels.shape for part, pool in pools.items()} == {"train": (train, 28, 28, 1),
                                                                         "test": (test, 28, 28, 1)}
    assert all(np.unique(pool.labels).tolist() == [0, 1] for pool in pools.values())
    assert Npz(str(REAL / "data" / "medmnist" / f"{name}.npz")).pools(32)["test"].pixels.shape == (test, 32, 32, 1)


@real
@absent
def test_real_imagenet_sample_is_one_class_of_photographs() -> None:
    pools = Folder(str(REAL / "data" / "imagenet_sample")).pools(64)
    check_pools(pools)
    assert pools["all"].pixels.shape == (250, 64, 64, 3)
    assert not pools["all"].labels.any()
    assert pools["all"].pixels.std() > 40

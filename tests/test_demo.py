"""The command `jigsaw`: one picture shuffled and solved, what is said of it, and what is refused."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from conftest import Run
from PIL import Image

from ppbench import demo
from ppbench.demo import GAP, Settings, cropped, learnt, public_photos, read_picture, side_by_side, view_of


def photo(width: int, height: int) -> Image.Image:
    """Crop scikit-image's astronaut, shrunk to half its size (its JPEG grid would mark the seams)."""
    return Image.fromarray(skimage.data.astronaut()).reduce(2).crop((40, 0, 40 + width, height))


def parts(path: Path, width: int, height: int) -> list[np.ndarray]:
    """Return original, shuffled and solved out of a picture of three beside one another."""
    pixels = np.asarray(Image.open(path))
    assert pixels.shape[:2] == (height, 3 * width + 2 * GAP)
    return [pixels[:, i * (width + GAP):][:, :width] for i in range(3)]


def share(text: str, score: str) -> float:
    """Read a percentage out of a report."""
    (line,) = [line for line in text.splitlines() if line.startswith(score)]
    return float(line.partition(": ")[2].partition("%")[0]) / 100


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a photo of 128 x 160 pixels."""
    photo(128, 160).save(tmp_path / "photo.png")
    (tmp_path / "text.jpg").write_text("no image\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place: Path, command_line: Run) -> Run:
    """Call `ppbench jigsaw` there; return exit code, stdout and stderr."""
    return partial(command_line, "jigsaw")


# --- what it does

def test_a_photo_is_shuffled_and_solved(call: Run, place: Path) -> None:
    code, out, err = call("photo.png", "--piece", "16")
    assert (code, err) == (0, "")
    assert "cropped" not in out
    assert "grid: 10 x 8 (rows x columns), pieces of 16 x 16 pixels: 80 pieces, shuffled\n" in out
    assert "attack: " in out
    assert "training" not in out
    assert "picture (original, shuffled, solved): photo-jigsaw.png" in out
    assert share(out, "neighbour comparison (Nc)") > 0.9
    assert share(out, "direct comparison (Dc)") > 0.9
    assert share(out, "largest component") > 0.9
    assert out.count("perfect: ") == out.count("seams cost less than the original's: ") == 1
    assert "the right way round" not in out
    original, shuffled, solved = parts(place / "photo-jigsaw.png", 128, 160)
    assert (original == np.asarray(photo(128, 160))).all()
    assert np.abs(solved.astype(float) - original).mean() < 0.2 * np.abs(shuffled.astype(float) - original).mean()
    assert (np.sort(shuffled.reshape(-1, 3), 0) == np.sort(original.reshape(-1, 3), 0)).all()


@pytest.mark.parametrize(("flags", "said"), [
    (["--turn"], "80 pieces, shuffled, turned\n"), (["--negative"], "80 pieces, shuffled, negative\n"),
    (["--recolour"], "80 pieces, shuffled, recoloured\n"),
    (["--turn", "--negative", "--recolour"], "80 pieces, shuffled, turned, negative, recoloured\n")])
def test_pieces_may_be_turned_and_recoloured(call: Run, place: Path, flags: list[str], said: str) -> None:
    code, out, err = call("photo.png", "--output", "new/out.png", *flags)
    assert (code, err) == (0, "")
    assert said in out
    assert "note: up to the state of the whole image" in out
    assert share(out, "neighbour comparison (Nc)") > 0.7
    assert "turned or coloured as fits best" in out
    assert out.count("whole picture the right way round and in its colours: ") == 1
    assert len(parts(place / "new" / "out.png", 128, 160)) == 3


def test_the_same_seed_gives_the_same_bytes(call: Run, place: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert call("photo.png", "--seed", seed, "-o", f"{name}.png", "--effort", "500")[0] == 0
    a, b, c = ((place / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_grey_stays_grey(call: Run, place: Path) -> None:
    photo(128, 160).convert("L").save(place / "grey.jpg", quality=95)
    code, out, _ = call("grey.jpg", "--recolour", "--piece", "32")
    assert code == 0
    assert "20 pieces, shuffled\n" in out
    with Image.open(place / "grey-jigsaw.png") as found:
        assert found.mode == "L"


def test_a_picture_is_cropped_to_whole_pieces_about_its_middle(call: Run, place: Path) -> None:
    photo(101, 85).save(place / "odd.png")
    code, out, _ = call("odd.png", "--piece", "20")
    assert code == 0
    assert "cropped to whole pieces: from 101 x 85 to 100 x 80 pixels\n" in out
    assert "grid: 4 x 5 (rows x columns)" in out
    original, *_ = parts(place / "odd-jigsaw.png", 100, 80)
    assert (original == np.asarray(photo(101, 85))[2:82, 0:100]).all()


def test_a_picture_is_turned_as_its_camera_noted(place: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    photo(32, 48).save(place / "lying.png", exif=exif)
    plain = read_picture(place / "photo.png")[:, :48, :32]
    assert torch.equal(read_picture(place / "lying.png"), plain.rot90(-1, (1, 2)))


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK", "L"])
def test_pictures_of_any_mode_are_read(place: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    photo(32, 48).convert(mode).save(place / f"any.{suffix}")
    found = read_picture(place / f"any.{suffix}")
    assert found.shape == (1 if mode in ("1", "LA", "L") else 3, 48, 32)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("flags", [[], ["--turn", "--negative", "--recolour"]])
def test_a_single_piece_and_a_flat_picture_work(call: Run, place: Path, flags: list[str]) -> None:
    code, out, _ = call("photo.png", "--piece", "100", *flags)
    assert code == 0
    assert "1 piece, nothing to shuffle" in out
    assert "perfect: yes" in out
    Image.new("RGB", (48, 32), (200, 30, 90)).save(place / "flat.png")
    code, out, _ = call("flat.png", "--piece", "8", *flags)
    assert code == 0
    assert "24 pieces" in out
    assert "perfect: yes" in out


def test_copies_of_a_piece_count_as_one(call: Run, place: Path) -> None:
    Image.fromarray(np.tile(np.asarray(photo(8, 8)), (3, 4, 1))).save(place / "tiles.png")
    code, out, _ = call("tiles.png", "--piece", "8")
    assert code == 0
    assert "perfect: yes" in out


def test_wide_pictures_stand_below_one_another() -> None:
    found = side_by_side(*torch.zeros(3, 1, 10, 20).unbind())
    assert found.shape == (1, 30 + 2 * GAP, 20)
    assert found[:, :10].max() == 0
    assert (found[:, 10:10 + GAP] == 0.5).all()
    assert side_by_side(*torch.zeros(3, 1, 10, 19).unbind()).shape == (1, 10, 57 + 2 * GAP)


# --- public photos

def test_public_photos_are_learnt_from(call: Run, place: Path) -> None:
    for i in range(6):
        photo(96, 96).rotate(10 * i).save(place / "folder" / f"{i}.png")
    code, out, err = call("photo.png", "--piece", "32", "--turn", "--public", "folder", "--steps", "2")
    assert (code, err) == (0, "")
    assert "public photos to learn from: 6, of 128 x 128 pixels" in out
    assert ", of which training " in out


def test_the_picture_itself_is_no_public_photo(call: Run, place: Path) -> None:
    photo(128, 160).save(place / "folder" / "itself.png")
    photo(128, 160).save(place / "folder" / "copy.png")
    picture = read_picture(place / "photo.png")
    code, out, err = call("photo.png", "--public", "folder")
    assert (code, out) == (2, "")
    assert "no photo but the picture itself" in err
    photo(128, 160).transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("CMYK").save(place / "folder" / "mirrored.jpg")
    photo(128, 160).rotate(90, expand=True).save(place / "folder" / "turned.gif")
    Image.fromarray(skimage.data.coffee()).save(place / "folder" / "other.png")
    for side in (32, 128, 160):
        assert len(public_photos(place / "folder", side, picture)) == 1
    photo(128, 160).convert("L").save(place / "grey.png")
    assert public_photos(place / "folder", 64, read_picture(place / "grey.png")).shape == (1, 1, 64, 64)


def test_grey_photos_serve_a_picture_in_colour(place: Path) -> None:
    photo(64, 64).convert("L").save(place / "folder" / "grey.png")
    assert public_photos(place / "folder", 32, read_picture(place / "photo.png")).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("public", [None, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))])
def test_the_attack_sees_what_ciphertext_only_grants(place: Path, public: torch.Tensor | None) -> None:
    settings = Settings(turn=True)
    view = view_of(cropped(read_picture(place / "photo.png"), 16), settings, public)
    assert view.granted == {"images", "algorithm"} | ({"public"} if public is not None else set())
    assert view.sealed.keys is None
    assert view.sealed.labels is None
    assert view.release.labels.tolist() == [-1]
    if public is None:
        assert learnt(demo.build(settings.solver), view, settings.rng("training")) == {}


# --- what is refused

@pytest.mark.parametrize(("arguments", "words"), [
    (("nowhere.png",), ["'nowhere.png' does not exist", "give the path of an image file"]),
    (("text.jpg",), ["'text.jpg' cannot be read", "give an image file"]),
    (("folder",), ["'folder' cannot be read", "give an image file"]),
    (("x" * 300 + ".png",), ["cannot be read", "give an image file"]),
    (("deep.png",), ["more than 8 bits", "save it with 8 bits"]),
    (("photo.png", "--piece", "129"), ["128 x 160", "choose --piece 128 or less"]),
    (("photo.png", "--piece", "0"), ["--piece", "x>=1", "ppbench jigsaw --help"]),
    (("photo.png", "--effort", "0"), ["--effort", "x>=1"]),
    (("photo.png", "--effort", "9" * 20), ["effort is 9", "must be from 1 to 2,147,483,647"]),
    (("photo.png", "--public", "folder", "-o", "new/out.png"), ["'folder' has no images"]),
    (("photo.png", "--seed", "-1"), ["--seed", "x>=0"]),
    (("photo.png", "--public", "folder"), ["'folder' has no images"]),
    (("photo.png", "--public", "nowhere"), ["'nowhere' does not exist", "folder of images"]),
    (("photo.png", "--steps", "5"), ["--public FOLDER"]),
    (("photo.png", "-o", "out.jpg"), ["'out.jpg'", "ends in .png"]),
    (("photo.png", "-o", "photo.png"), ["would replace the picture itself", "--output"]),
    (("photo.png", "-o", "folder/../photo.png"), ["would replace the picture itself", "--output"]),
    (("photo.png", "-o", "text.jpg/out.png"), ["'text.jpg/out.png' cannot be written", "--output"]),
    (("photo.png", "-o", "taken.png"), ["'taken.png' cannot be written", "--output"]),
    (("photo.png", "-o", "x" * 300 + ".png"), ["cannot be written", "--output"]),
    ((), ["IMAGE", "ppbench jigsaw --help"]),
])
def test_bad_input_is_one_sentence(call: Run, place: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(place / "deep.png")
    (place / "taken.png").mkdir()
    before = sorted(place.rglob("*"))
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ppbench: ")
    assert all(word in err for word in words), err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("flags", "words"), [
    ([], ["20,480 pieces need about 31.3 GiB"]), (["--turn"], ["20,480 pieces in 8 states need about 250.0 GiB"]),
    (["--public", "folder"], ["20,480 pieces need about 43.8 GiB"])])
def test_more_pieces_than_memory_are_refused(call: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str],
                                             words: list[str]) -> None:
    monkeypatch.setattr(demo.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**30}))
    code, out, err = call("photo.png", "--piece", "1", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in [*words, "1.0 GiB are free", "choose a larger --piece"]), err


def test_a_picture_beyond_memory_is_refused_with_large_pieces_too(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**21}))
    code, out, err = call("photo.png", "--piece", "64")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a smaller picture" in err


def test_a_picture_of_too_many_pixels_is_refused_for_that(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    code, out, err = call("photo.png")
    assert (code, out, err) == (2, "", "ppbench: the picture 'photo.png' has more than 20,000 pixels: give a smaller "
                                "one\n")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # where pillow only warns
    assert call("photo.png")[::2] == (0, "")


@pytest.mark.parametrize(("turned", "negated", "right"), [(False, False, True), (True, False, False),
                                                          (False, True, False)])
def test_which_way_round_a_picture_came_back_is_told(turned: bool, negated: bool, right: bool) -> None:
    original = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    view = view_of(original, Settings(turn=True, negative=True), None)
    solved = original.rot90(1, (1, 2)) if turned else original
    words = demo.in_words(demo.scores_of(1 - solved if negated else solved, original, view))
    assert words[-1] == f"whole picture the right way round and in its colours: {'yes' if right else 'no'}"
    assert "perfect: yes" in words


def test_a_disk_that_fills_up_is_told(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "write_atomic", full)
    code, _, err = call("photo.png", "--piece", "40")
    assert (code, err.count("\n")) == (2, 1)
    assert "'photo-jigsaw.png' cannot be written: No space left on device" in err

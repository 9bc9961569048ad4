"""Bad input on the command line: one sentence that names the fix, exit code 2, and nothing computed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from ppbench.store import Store

BASE = """
name = "mine"
targets = 4
[[dataset]]
use = "npz:tiny.npz"
private = 8
public = 8
test = 4
[[defense]]
use = "none"
[[attack]]
use = "as-released"
[victim]
epochs = 1
[score]
groups = ["psnr"]
"""
SMALL = "private=8,public=8,test=4"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a good suite and 40 images of 16 x 16 pixels."""
    np.savez(tmp_path / "tiny.npz", train_images=noise(40, 16, 16, 3), train_labels=np.arange(40) % 2)
    (tmp_path / "good.toml").write_text(BASE)
    (tmp_path / "file").write_text("a regular file\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place: Path, command_line: Run) -> Run:
    """Call the command line there; return exit code, stdout and stderr."""
    return command_line


@pytest.fixture
def refused(call: Run, place: Path) -> Callable[..., str]:
    """Call `ppbench run` with bad input; check how it is refused and return the sentence."""

    def run(*arguments: str, suite: str | None = "good.toml") -> str:
        where = ["--engine", "inline"] if "--output" in arguments else ["--engine", "inline", "--output", "out"]
        code, out, err = call("run", *([suite] if suite else []), *where, *arguments)
        assert code == 2, err
        assert out == ""
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert err.startswith("ppbench: ")
        assert "Traceback" not in err
        assert "internal error" not in err
        assert not list(place.rglob("cells"))
        computed = {path.name for path in place.glob("out/.store/*") if any(path.iterdir())}
        assert computed <= {"split"}  # the data are loaded and checked, nothing more
        return err.removeprefix("ppbench: ")

    return run


def holds(text: str, *words: str) -> bool:
    """Say whether all words stand in a sentence; show it if not."""
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    return True


def test_the_good_suite_runs(call: Run, place: Path) -> None:
    code, out, err = call("run", "good.toml", "--engine", "inline", "--output", "out")
    assert code == 0, err
    assert "results: out/mine/results.csv" in out
    assert len(list((place / "out/mine/cells").iterdir())) == 1


# --- flags

@pytest.mark.parametrize(("arguments", "words"), [
    (("--dataset", "photo"), ["data set 'photo'", "did you mean photos?"]),
    (("--defense", "mix-up"), ["defense 'mix-up'", "did you mean mixup?"]),
    (("--attack", "jigsw"), ["attack 'jigsw'", "did you mean jigsaw?"]),
    (("--attack", "as-released+jigsw"), ["attack 'jigsw'", "did you mean jigsaw?"]),
    (("--threat", "whitebox"), ["threat model 'whitebox'", "did you mean white-box?"]),
    (("--threat", "whitebox,pairs=3"), ["threat model 'whitebox'", "did you mean white-box?"]),
    (("--attack", "xyzzy"), ["attack 'xyzzy'", "known: as-released, blind"]),
    (("--dataset", ""), ["cannot read ''", "write NAME,key=value"]),
    (("--defense", "mixup,patch"), ["cannot read 'mixup,patch'", "write NAME,key=value"]),
    (("--defense", "mixup,patch=2,patch=4"), ["'patch' twice", "give it once"]),
    (("--defense", "mixup,pach=2"), ["mixup has no parameter 'pach'", "did you mean patch?"]),
    (("--defense", "none,patch=2"), ["none has no parameter 'patch'", "it takes none"]),
    (("--defense", "mixup,patch=x"), ["mixup", "'patch' is 'x'", "integer"]),
    (("--defense", "mixup,patch=true"), ["mixup", "'patch' must be a number", "True"]),
    (("--defense", "mixup,patch=2.5"), ["mixup", "'patch' is 2.5", "integer"]),
    (("--defense", "mixup,use=none"), ["'use' cannot be given as a parameter"]),
    (("--attack", "blind,metric=ssmi"), ["blind", "'metric' is 'ssmi'", "'ssim'"]),
    (("--attack", "jigsaw,restarts=-1"), ["jigsaw", "restarts", "from 1 to"]),
    (("--attack", "gradient-matching,learning_rate=NaN"), ["'learning_rate' is nan", "finite number"]),
    (("--attack", "gradient-matching,learning_rate=inf"), ["'learning_rate' is 'inf'", "finite number"]),
    (("--attack", "unet-inverter,steps=10000000"), ["unet-inverter", "steps is 10000000", "from 1 to 1,000,000"]),
    (("--attack", "gan-inversion,prior_steps=0"), ["gan-inversion", "prior_steps is 0", "from 1 to 1,000,000"]),
    (("--attack", "gradient-matching,steps=-5"), ["gradient-matching", "steps is -5", "from 1 to"]),
    (("--attack", "blind+jigsaw+jigsaw"), ["chains 3 attacks", "at most OUTER+INNER"]),
    (("--attack", "as-released+memorization"), ["memorization acts in training", "let it come first"]),
    (("--attack", "blind,then=jigsaw"), ["'then'", "write OUTER+INNER"]),
    (("--defense", "block-scrambling,block=5"), ["block=5 does not divide images of 16 x 16", "1, 2, 4, 8, 16"]),
    (("--defense", "block-scrambling,block=-4"), ["block=-4 does not divide", "choose one of"]),
    (("--defense", "block-scrambling,block=0"), ["block=0 does not divide", "choose one of"]),
    (("--defense", "patch-shuffle,patch=3"), ["patch=3 does not divide", "choose one of"]),
    (("--defense", "mixup,patch=1"), ["patch=1 cannot be cut", "choose an even side"]),
    (("--defense", "block-scrambling,key_scope=mine"), ["'mine'", "'image', 'client' or 'global'"]),
    (("--defense", "block-scrambling,clients=4"), ["'global'", "give clients with key_scope=client"]),
    (("--defense", "patch-shuffle,key_scope=global"), ["patch-shuffle", "'global' is not supported", "image"]),
    (("--defense", "none,key_scope=global"), ["none", "'global' is not supported", "has no key"]),
    (("--defense", "none,quantise=7"), ["quantise", "7", "0 or 8"]),
    (("--threat", "known-plaintext,pairs=0"), ["pairs is 0", "at least 1"]),
    (("--threat", "known-plaintext,pairs=many"), ["pairs", "'many'", "integer"]),
    (("--threat", "known-plaintext,pair=3"), ["unknown key", "pair", "did you mean pairs"]),
    (("--name", "a/b"), ["'a/b'", "use letters, digits"]),
    (("--name", ".."), ["'..'", "use letters, digits"]),
    (("--name", ""), ["''", "use letters, digits"]),
    (("--seed", "-1"), ["--seed", "-1", "x>=0", "ppbench run --help"]),
    (("--seed", "x"), ["--seed", "'x'", "ppbench run --help"]),
    (("--jobs", "0"), ["--jobs", "x>=1"]),
    (("--engine", "ray"), ["--engine", "'ray'", "processes", "inline"]),
    (("--sed", "1"), ["--sed", "--seed", "ppbench run --help"]),
    (("--output",), ["--output", "requires an argument"]),
    (("another.toml", "third.toml"), ["unexpected extra argument", "ppbench run --help"]),
])
def test_a_wrong_flag_is_named_with_what_would_do(refused: Callable[..., str], arguments: tuple[str, ...],
                                                  words: list[str]) -> None:
    assert holds(refused(*arguments), *words)


def test_a_seed_twice_is_refused(refused: Callable[..., str]) -> None:
    assert holds(refused("--seed", "1", "--seed", "1"), "seeds", "different numbers")


# --- data

@pytest.mark.parametrize(("spec", "words"), [
    (f"npz:nowhere.npz,{SMALL}", ["nowhere.npz", "does not exist"]),
    (f"npz:,{SMALL}", ["'npz:' names no path", "write npz:PATH"]),
    (f"npz,{SMALL}", ["npz needs the parameter 'path'"]),
    (f"npz:empty,{SMALL}", ["empty", "give the path of an .npz archive"]),
    (f"folder:nowhere,{SMALL}", ["nowhere", "does not exist"]),
    (f"folder:file,{SMALL}", ["file", "give the path of a folder of images"]),
    (f"folder:empty,{SMALL}", ["empty", "has no images", ".png"]),
    ("npz:tiny.npz,private=30,public=8,test=4", ["40 distinct images", "42 are asked for", "lower private"]),
    ("npz:tiny.npz,private=3,public=8,test=4", ["targets is 4", "3 private images", "lower targets or raise private"]),
    ("npz:tiny.npz,private=-1", ["private", "-1", "greater than or equal to 1"]),
    ("npz:tiny.npz,public=0", ["public", "0", "greater than or equal to 1"]),
    ("npz:tiny.npz,size=0", ["size", "0", "greater than or equal to 1"]),
    ("npz:tiny.npz,size=x", ["size", "'x'", "integer"]),
    ("npz:tiny.npz,colour=1", ["npz has no parameter 'colour'", "known: path"]),
])
def test_wrong_data_is_named_with_what_would_do(refused: Callable[..., str], spec: str, words: list[str]) -> None:
    assert holds(refused("--dataset", spec), *words)


def truncated(path: Path) -> None:
    np.savez(path, train_images=noise(40, 16, 16, 3), train_labels=np.arange(40) % 2)
    path.write_bytes(path.read_bytes()[:20_000])


def damaged(path: Path) -> None:
    np.savez_compressed(path, train_images=noise(40, 16, 16, 3) // 64, train_labels=np.arange(40) % 2)
    whole = bytearray(path.read_bytes())
    whole[200:260] = bytes(60)
    path.write_bytes(whole)


def plain_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, noise(4, 4))


@pytest.mark.parametrize(("write", "words"), [
    (lambda path: path.write_bytes(noise(5000).tobytes()), ["write it again with numpy.savez"]),
    (lambda path: path.write_bytes(b""), ["write it again with numpy.savez"]),
    (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), ["write it again with numpy.savez"]),
    (truncated, ["write it again with numpy.savez"]),
    (damaged, ["write it again with numpy.savez"]),
    (plain_array, ["is no .npz archive", "numpy.savez"]),
    (lambda path: np.savez(path, x=noise(40, 16, 16, 3), y=np.arange(40)), ["name its arrays train_images"]),
    (lambda path: np.savez(path, train_images=noise(40, 16, 16, 3)), ["only one of train_images and train_labels"]),
    (lambda path: np.savez(path, train_images=noise(40, 16, 16, 3).astype(float), train_labels=np.arange(40) % 2),
     ["float64", "give uint8"]),
    (lambda path: np.savez(path, train_images=noise(40, 16, 16, 3), train_labels=np.arange(39) % 2),
     ["40 train_images but 39 train_labels"]),
    (lambda path: np.savez(path, train_images=noise(40, 16, 16, 3), train_labels=np.arange(40) % 2 + 5),
     ["number the classes 0 to 1"]),
    (lambda path: np.savez(path, train_images=np.array([{"a": 1}] * 40), train_labels=np.arange(40) % 2),
     ["write it again with numpy.savez"]),
])
def test_an_unusable_archive_is_told(refused: Callable[..., str], place: Path, write: Any, words: list[str]) -> None:
    write(place / "bad.npz")
    assert holds(refused("--dataset", f"npz:bad.npz,{SMALL}"), "bad.npz", *words)


def test_an_unreadable_image_in_a_folder_is_told(refused: Callable[..., str], place: Path) -> None:
    Image.fromarray(noise(16, 16, 3)).save(place / "empty" / "a.png")
    (place / "empty" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    assert holds(refused("--dataset", f"folder:empty,{SMALL}"), "b.png", "replace or remove it")


def test_images_too_small_for_ssim_are_told(refused: Callable[..., str], place: Path) -> None:
    (place / "ssim.toml").write_text(BASE.replace('"psnr"', '"psnr", "ssim"'))
    text = refused("--dataset", f"npz:tiny.npz,size=8,{SMALL}", suite="ssim.toml")
    assert holds(text, "SSIM needs images of at least 11 pixels", "8 x 8", "choose a larger size")


def test_verification_by_known_people_is_told(refused: Callable[..., str], place: Path) -> None:
    (place / "known.toml").write_text(BASE.replace('"psnr"', '"verification"'))
    assert holds(refused(suite="known.toml"), "other people than those in private", "set disjoint = true")


def test_one_public_person_is_too_few(refused: Callable[..., str], place: Path) -> None:
    """Two classes of 20: eight public images take one of them, and leave one."""
    suite = BASE.replace('"psnr"', '"verification"').replace("private = 8", "private = 8\ndisjoint = true")
    (place / "one.toml").write_text(suite)
    assert holds(refused(suite="one.toml"), "two classes or more: public holds 1", "raise public or lower")


def test_too_few_disjoint_images_are_told(refused: Callable[..., str], place: Path) -> None:
    """Two classes of 20: eight public images take one of them."""
    (place / "few.toml").write_text(BASE.replace("private = 8", "private = 18\ndisjoint = true"))
    assert holds(refused(suite="few.toml"), "20 distinct images for private + test in classes", "or public")


# --- suites

def put(suite: str, old: str, new: str) -> str:
    assert old in suite
    return suite.replace(old, new)


@pytest.mark.parametrize(("body", "words"), [
    (put(BASE, "targets = 4", "targest = 4"), ["unknown key 'targest'", "did you mean targets"]),
    (put(BASE, "groups", "group"), ["unknown key 'score.group'", "did you mean groups?"]),
    (put(BASE, "targets = 4", 'targets = "4"'), ["'targets' is '4'", "integer"]),
    (put(BASE, "targets = 4", "targets = -4"), ["'targets' is -4", "greater than or equal to 1"]),
    (put(BASE, "targets = 4", "targets = 9"), ["targets is 9", "8 private images", "lower targets or raise private"]),
    (put(BASE, "[[defense]]\nuse = \"none\"", ""), ["at least one table [[defense]]"]),
    (put(BASE, "[[attack]]", "[attack]"), ["at least one table [[attack]]"]),
    (put(BASE, 'use = "none"', "patch = 4"), ["'defense.0.use' is missing", "add it"]),
    (put(BASE, 'name = "mine"', 'name = "a/b"'), ["'name' is 'a/b'", "use letters, digits"]),
    (put(BASE, 'name = "mine"', "schema = 2"), ["'schema' is 2"]),
    (put(BASE, "epochs = 1", "epochs = -1"), ["victim", "epochs is -1", "at least 1"]),
    (put(BASE, "epochs = 1", "epoch = 1"), ["victim has no parameter 'epoch'", "did you mean epochs"]),
    (put(BASE, "epochs = 1", "learning_rate = nan"), ["victim", "'learning_rate' is nan", "finite"]),
    (put(BASE, "epochs = 1", 'model = "resnet18"'), ["victim", "'resnet18'", "timm:NAME", "torchvision:NAME"]),
    (put(BASE, "epochs = 1", 'model = "torchvision:resnet1"'), ["'torchvision:resnet1' cannot be built", "Unknown"]),
    (put(BASE, "epochs = 1", 'model = "no.such.module:net"'), ["'no.such.module:net' cannot be built", "'no'"]),
    (put(BASE, "epochs = 1", 'model = "json:dumps"'), ["'json:dumps'"]),
    (put(BASE, "epochs = 1", "kwargs = { width = -1 }"), ["'ppbench.nets:convnet' cannot be built", "-1"]),
    (put(BASE, "epochs = 1", "kwargs = { widht = 8 }"), ["'ppbench.nets:convnet' cannot be built", "'widht'"]),
    (put(BASE, 'use = "as-released"', 'use = "as-released"\nthreats = []'), ["'attack.0.threats'", "at least 1"]),
    (put(BASE, 'use = "as-released"', 'use = "as-released"\nthen = "jigsaw"'), ["'attack.0.then' is 'jigsaw'"]),
    (BASE + '[[threat]]\nname = "white-box"\nbase = "ciphertext-only"\n', ["white-box", "choose a new one"]),
    (BASE + "[limits]\nseconds = 0\n", ["'limits.seconds' is 0", "greater than 0"]),
    ("targets = \n", ["is no valid TOML", "line 1"]),
    ("\0", ["is no valid TOML"]),
])
def test_a_wrong_suite_is_told(refused: Callable[..., str], place: Path, body: str, words: list[str]) -> None:
    (place / "bad.toml").write_text(body)
    assert holds(refused(suite="bad.toml"), *words)


@pytest.mark.parametrize("body", ["attack = 3\n", "attack = [3]\n", "[attack]\nuse = 'blind'\n", "", "threat = 3\n"])
def test_a_wrong_suite_is_told_also_where_flags_change_it(refused: Callable[..., str], place: Path, body: str) -> None:
    (place / "bad.toml").write_text(body)
    assert "[[" in refused("--threat", "known-plaintext,pairs=2", suite="bad.toml")


@pytest.mark.parametrize(("suite", "words"), [
    ("nowhere.toml", ["'nowhere.toml' does not exist", "photos"]), ("phots", ["'phots' does not exist", "photos"]),
    ("empty", ["cannot be read", "give a TOML file"]), ("tiny.npz", ["cannot be read", "UTF-8"])])
def test_a_suite_that_is_not_there_is_told(refused: Callable[..., str], suite: str, words: list[str]) -> None:
    assert holds(refused(suite=suite), *words)


# --- plug-ins

PLUGIN = '''
from dataclasses import dataclass
from ppbench.attack import Attack, Reconstruction
@dataclass(frozen=True)
class Mine(Attack):
    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    steps: int = 3
    def run(self, view, priors, rng):
        return Reconstruction(view.images)
'''


@pytest.mark.parametrize(("spec", "body", "words"), [
    ("gone.py:Mine", None, ["gone.py", "does not exist", "give FILE.py:Class"]),
    ("mine.py", PLUGIN, ["names a file but no class", "write mine.py:CLASS"]),
    ("mine.py:Mien", PLUGIN, ["no class 'Mien'", "did you mean Mine?"]),
    ("mine.py:Mine,step=3", PLUGIN, ["no parameter 'step'", "did you mean steps?"]),
    ("mine.py:Mine,steps=many", PLUGIN, ["'steps' is 'many'", "integer"]),
    ("mine.py:Mine", put(PLUGIN, "def run", "def walk"), ["lacks the contract", "write its method(s) run"]),
    ("mine.py:Mine", put(PLUGIN, "(Attack)", ""), ["is no attack", "derive the class from ppbench.attack.Attack"]),
    ("mine.py:Mine", put(PLUGIN, "    requires", "    needs"), ["set the class attribute(s) requires"]),
    ("mine.py:Mine", put(PLUGIN, '{"images"}', '{"image"}'), ["unknown capability 'image'", "did you mean images?"]),
    ("mine.py:Mine", put(PLUGIN, "@dataclass(frozen=True)\n", ""), ["put @dataclass(frozen=True) above the class"]),
    ("mine.py:Mine", "def oops(:\n", ["mine.py", "SyntaxError"]),
    ("mine.py:Mine", "raise RuntimeError('two\\nlines')\n", ["mine.py", "RuntimeError: two lines"]),
    ("as-released+gone.py:Mine", None, ["gone.py", "does not exist"]),
])
def test_a_wrong_plug_in_is_told(refused: Callable[..., str], place: Path, spec: str, body: str | None,
                                 words: list[str]) -> None:
    if body is not None:
        (place / "mine.py").write_text(body)
    assert holds(refused("--attack", spec), *words)


def test_paths_in_flags_are_those_of_the_working_folder(call: Run, place: Path) -> None:
    (place / "mine.py").write_text(PLUGIN)
    (place / "suites").mkdir()
    (place / "suites" / "good.toml").write_text(BASE)
    code, out, err = call("run", "suites/good.toml", "--dry-run", "--dataset", f"npz:tiny.npz,{SMALL}",
                          "--attack", "gradient-matching+mine.py:Mine")
    assert code == 0, err
    assert "gradient-matching+mine.py:Mine" in out


# --- where results go

@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_written_is_told(refused: Callable[..., str], output: str) -> None:
    assert holds(refused("--output", output), f"'{output}/mine' cannot be written", "choose another with --output")


def test_bad_input_destroys_nothing_that_was_finished(call: Run, place: Path) -> None:
    where = ["--engine", "inline", "--output", "out"]
    assert call("run", "good.toml", *where)[0] == 0
    before = {path: path.read_bytes() for path in (place / "out/mine").rglob("*") if path.is_file()}
    for bad in (["--defense", "block-scrambling,block=5"], ["--dataset", "npz:nowhere.npz"], ["--attack", "x"]):
        assert call("run", "good.toml", *where, *bad)[0] == 2
    assert {path: path.read_bytes() for path in (place / "out/mine").rglob("*") if path.is_file()} == before


# --- other commands, and the process itself

@pytest.mark.parametrize(("arguments", "words"), [
    (("rnu",), ["'rnu'", "ppbench --help"]),
    (("list", "attack"), ["'attack'", "'attacks'", "ppbench list --help"]),
    (("weights", "fetch", "--trunk", "resnet"), ["'resnet'", "'squeeze'", "ppbench weights fetch --help"]),
])
def test_other_commands_refuse_in_one_sentence_too(call: Run, arguments: tuple[str, ...], words: list[str]) -> None:
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert holds(err, "ppbench: ", *words)


def test_no_command_shows_the_help(call: Run) -> None:
    code, out, err = call()
    assert (code, out) == (2, "")
    assert "Commands:" in err


def test_an_error_of_ours_is_one_line_with_a_log(call: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Store, kind: str, key: str) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(Store, "find", broken)
    code, out, err = call("run", "good.toml", "--engine", "inline", "--output", "out")
    assert (code, out, err.count("\n")) == (3, "", 1)
    (log,) = place.glob("ppbench-*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()


def test_the_process_ends_with_the_code_and_the_sentence(place: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "ppbench", "run", "nowhere.toml"], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ppbench: the suite 'nowhere.toml' does not exist")
    assert done.stderr.count("\n") == 1

"""Code identity: what changes a component's digest, and what does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppbench.sources import code_digest, file_code_digest, versions

FILES = {
    "__init__.py": "",
    "main.py": "import os\nimport numpy\nfrom tiny_pkg import near\nfrom .sub import deep\n"
               "from tiny_pkg.attr import NAME\n",
    "near.py": "from . import further\n",
    "further.py": "X = 1\n",
    "attr.py": "NAME = 1\n",
    "late.py": "Y = 1\n",
    "unrelated.py": "Z = 1\n",
    "sub/__init__.py": "",
    "sub/deep.py": "def f():\n    from .. import late\n    return late\n",
    "sub/aside.py": "",
}
REACHED = ["main.py", "near.py", "further.py", "attr.py", "late.py", "sub/deep.py", "sub/__init__.py"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small package that can be found but is never imported."""
    root = tmp_path / "tiny_pkg"
    for name, body in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    code_digest.cache_clear()
    yield root
    code_digest.cache_clear()


def digest(module: str = "tiny_pkg.main") -> str:
    code_digest.cache_clear()
    return code_digest(module)


@pytest.mark.parametrize("name", REACHED)
def test_a_change_in_what_is_reached_changes_the_digest(package: Path, name: str) -> None:
    before = digest()
    (package / name).write_text((package / name).read_text() + "# changed\n")
    assert digest() != before


@pytest.mark.parametrize("name", ["unrelated.py", "sub/aside.py"])
def test_a_change_elsewhere_does_not(package: Path, name: str) -> None:
    before = digest()
    (package / name).write_text("# changed\n")
    (package / "new.py").write_text("")
    assert digest() == before


def test_a_new_import_counts(package: Path) -> None:
    (package / "further.py").write_text("X = 1\nimport tiny_pkg.unrelated\n")
    before = digest()
    (package / "unrelated.py").write_text("Z = 2\n")
    assert digest() != before


def test_modules_that_import_each_other_end(package: Path) -> None:
    (package / "further.py").write_text("from tiny_pkg import main\n")
    assert len(digest()) == 64


def test_a_file_with_a_syntax_error_still_has_a_digest(package: Path) -> None:
    (package / "further.py").write_text("def oops(:\n")
    before = digest()
    (package / "further.py").write_text("def oops((:\n")
    assert digest() != before


def test_nothing_is_imported(package: Path) -> None:
    (package / "main.py").write_text("raise SystemExit\n")
    (package / "__init__.py").write_text("raise SystemExit\n")
    assert len(digest()) == 64


def test_the_digest_does_not_depend_on_where_the_package_lies(package: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    package.rename(moved / "tiny_pkg")
    monkeypatch.syspath_prepend(moved)
    assert digest() == before


def test_a_package_without_init_is_read_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in (("one", "main.py"), ("two", "near.py")):  # two places, as namespace packages may have
        folder = tmp_path / place / "tiny_space"
        folder.mkdir(parents=True)
        (folder / name).write_text("from tiny_space import near\n")
        monkeypatch.syspath_prepend(tmp_path / place)
    before = digest("tiny_space.main")
    (tmp_path / "two" / "tiny_space" / "near.py").write_text("X = 1\n")
    between = digest("tiny_space.main")
    (tmp_path / "one" / "tiny_space" / "main.py").write_text("from . import near\n")
    assert len({"", before, between, digest("tiny_space.main")}) == 4


def test_a_single_file_module_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny_module.py"
    file.write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = digest("tiny_module")
    assert before == file_code_digest(file)
    file.write_text("X = 2\n")
    assert digest("tiny_module") != before


def test_what_is_nowhere_has_no_digest() -> None:
    assert digest("no_such_package_at_all.module") == ""


def test_built_in_plug_ins_have_digests_of_their_own() -> None:
    found = {digest(f"ppbench.defenses.{name}") for name in ("none", "constant", "mixup", "patch_shuffle")}
    assert len(found) == 4
    assert all(len(one) == 64 for one in found)


def test_a_file_plug_in_rests_on_itself_and_on_what_it_imports_of_ours(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from ppbench.blocks import cut\nimport json\n")
    before = file_code_digest(file)
    file.write_text("from ppbench.blocks import cut\nimport json\n# changed\n")
    assert file_code_digest(file) != before
    file.write_text("from ppbench.blocks import cut\nimport json\n")
    assert file_code_digest(file) == before

    def other_sources(module: str) -> str:
        return "changed" if module == "ppbench.blocks" else code_digest(module)

    monkeypatch.setattr("ppbench.sources.code_digest", other_sources)
    assert file_code_digest(file) != before


def test_a_file_plug_in_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [tmp_path / "mine.py", tmp_path / "a" / "mine.py"]
    for file in files:
        file.write_text("X = 1\n")
    assert file_code_digest(files[0]) == file_code_digest(files[1])


def test_versions_name_the_libraries_that_figures_depend_on() -> None:
    found: dict[str, Any] = versions()
    assert {"python", "torch", "torchvision", "timm", "numpy", "scipy", "lpips"} <= set(found)
    assert all(found.values())

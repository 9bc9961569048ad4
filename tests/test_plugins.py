"""The registry: helpful errors, and one broken plug-in breaks nothing else."""

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest

from ppbench import plugins
from ppbench.attack import Attack
from ppbench.data import Dataset
from ppbench.defense import Defense
from ppbench.errors import UserError
from ppbench.plugins import build, class_at, configure, is_file, load_class, registered, suggest
from ppbench.ref import Ref

BASES = {"datasets": Dataset, "defenses": Defense, "attacks": Attack}
Register = Callable[[str, str, str], None]

ATTACK = '''
from dataclasses import dataclass
from ppbench.attack import Attack, Reconstruction
{extra}
@dataclass(frozen=True)
class Mine(Attack):
    """Mine."""
    requires = frozenset({{"images"}})
    default_threat = "ciphertext-only"
    steps: int = 3
    rate: float = 0.5
    def run(self, view, priors, rng):
        return Reconstruction(view.images)
'''


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Add entry points to those that are installed."""
    extra: dict[str, list[EntryPoint]] = {}

    def found(*, group: str) -> list[EntryPoint]:
        return [*importlib.metadata.entry_points(group=group), *extra.get(group, [])]

    def add(group: str, name: str, value: str) -> None:
        extra.setdefault(f"ppbench.{group}", []).append(EntryPoint(name, value, f"ppbench.{group}"))
        registered.cache_clear()

    monkeypatch.setattr(plugins, "entry_points", found)
    registered.cache_clear()
    yield add
    registered.cache_clear()


def write(folder: Path, body: str, name: str = "mine.py") -> str:
    """Write a file plug-in and return how its class is named."""
    (folder / name).write_text(body)
    return f"{folder / name}:Mine"


def complaint(call: Callable[[], Any]) -> str:
    """Return the one sentence that a call complains with."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("group", list(BASES))
def test_every_built_in_can_be_loaded(group: str) -> None:
    assert registered(group)
    for name in registered(group):
        cls = load_class(group, name)
        assert issubclass(cls, BASES[group])
        assert cls.__module__.startswith(f"ppbench.{group}.")


@pytest.mark.parametrize(("group", "name", "near"), [
    ("attacks", "jigsw", "did you mean jigsaw?"), ("defenses", "mix-up", "did you mean mixup?"),
    ("datasets", "photo", "did you mean photos?"), ("attacks", "xyzzy", "known: as-released, blind")])
def test_an_unknown_name_gets_a_suggestion(group: str, name: str, near: str) -> None:
    text = complaint(lambda: load_class(group, name))
    assert repr(name) in text
    assert near in text


def test_suggestions_name_the_nearest_or_all() -> None:
    assert suggest("patc", ["patch", "block"]) == "; did you mean patch?"
    assert suggest("xyz", ["patch", "block"]) == "; known: patch, block"
    assert suggest("xyz", []) == "; it takes none"


# --- parameters

class Opaque:
    """A type that nothing on a command line can spell."""


@dataclass(frozen=True)
class Tool:
    """Every kind of parameter."""

    size: int
    rate: float = 0.5
    mode: Literal["a", "b"] = "a"
    many: tuple[int, ...] = ()
    deep: dict[str, Any] = field(default_factory=dict)
    maybe: int | None = None
    on: bool = False
    made: "Callable[[Opaque], None] | Opaque | None" = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")
        if self.size == 99:
            raise RuntimeError("99 is a bad size")


def test_parameters_are_held_to_their_types() -> None:
    made = configure(Tool, "tool", {"size": 4.0, "rate": 1, "mode": "b", "many": [1, 2], "deep": {"x": 1}, "maybe": 3})
    assert made == Tool(4, 1.0, "b", (1, 2), {"x": 1}, 3)
    assert type(made.size) is int
    assert type(made.rate) is float


@pytest.mark.parametrize(("params", "words"), [
    ({}, ["needs the parameter 'size'", "write tool,size=VALUE"]),
    ({"size": 1, "rat": 1}, ["no parameter 'rat'", "did you mean rate?"]),
    ({"size": "x"}, ["'size'", "'x'", "integer"]),
    ({"size": 1.5}, ["'size'", "1.5", "integer"]),
    ({"size": True}, ["'size'", "number", "True"]),
    ({"size": 1, "rate": "x"}, ["'rate'", "'x'", "number"]),
    ({"size": 1, "rate": float("nan")}, ["'rate'", "finite number", "nan"]),
    ({"size": 1, "rate": float("-inf")}, ["'rate'", "finite number", "-inf"]),
    ({"size": 1, "rate": False}, ["'rate'", "number", "False"]),
    ({"size": 1, "mode": "c"}, ["'mode'", "'c'", "'a' or 'b'"]),
    ({"size": 1, "many": 3}, ["'many'", "3", "tuple"]),
    ({"size": 1, "deep": [1]}, ["'deep'", "dict"]),
    ({"size": 1, "on": "perhaps"}, ["'on'", "'perhaps'", "boolean"]),
    ({"size": None}, ["'size'", "None", "integer"]),
    ({"size": 1, "made": 1}, ["'made'", "leave it out"]),
    ({"size": 0}, ["size is 0; it must be at least 1"]),
    ({"size": 99}, ["99 is a bad size"]),
])
def test_wrong_parameters_are_told_by_name(params: dict[str, Any], words: list[str]) -> None:
    text = complaint(lambda: configure(Tool, "tool", params))
    assert text.startswith("tool")
    for word in words:
        assert word in text


def test_a_class_without_parameters_says_so() -> None:
    text = complaint(lambda: build(Ref("defenses", "none", {"patch": 4})))
    assert text == "none has no parameter 'patch'; it takes none"


# --- file plug-ins

@pytest.mark.parametrize(("name", "expected"), [
    ("mine.py:Mine", True), ("/a b/mine.py:Mine", True), ("./x.py:A", True), ("jigsaw", False), ("npz:a.npz", False),
    ("mine.py", False), ("npz:/a/mine.py", False)])
def test_what_is_a_file_plug_in(name: str, expected: bool) -> None:
    assert is_file(name) is expected


def test_a_file_plug_in_loads_and_is_built(tmp_path: Path) -> None:
    name = write(tmp_path, ATTACK.format(extra=""))
    cls = load_class("attacks", name)
    assert issubclass(cls, Attack)
    assert cls is load_class("attacks", name)  # imported once
    assert vars(build(Ref("attacks", name, {"steps": 5}))) == {"steps": 5, "rate": 0.5}
    moved = Ref("attacks", "mine.py:Mine", {"steps": 5}, file=str(tmp_path / "mine.py"))
    assert vars(build(moved))["steps"] == 5


def test_an_edited_file_is_another_class(tmp_path: Path) -> None:
    before = load_class("attacks", write(tmp_path, ATTACK.format(extra="")))
    after = load_class("attacks", write(tmp_path, ATTACK.format(extra="# edited\n")))
    assert before is not after


def test_what_a_file_plug_in_brings_is_found_by_its_location(tmp_path: Path) -> None:
    name = write(tmp_path, ATTACK.format(extra="class Helper:\n    pass\n"))
    location = f"{load_class('attacks', name).__module__}:Helper"
    ref = Ref("attacks", name, file=str(tmp_path / "mine.py"))
    assert class_at(location, ref).__name__ == "Helper"
    assert class_at("ppbench.data:Dataset") is Dataset


@pytest.mark.parametrize(("body", "words"), [
    (None, ["does not exist", "FILE.py:Class"]),
    ("def oops(:\n", ["'mine.py'", "cannot be imported", "SyntaxError"]),
    ("import no_such_module\n", ["'mine.py'", "ModuleNotFoundError", "no_such_module"]),
    ("raise SystemExit(3)\n", ["'mine.py'", "cannot be imported", "SystemExit"]),
    ("class Mien:\n    pass\n", ["no class 'Mine'", "did you mean Mien?"]),
    ("class Other:\n    pass\nfrom pathlib import Path\n", ["no class 'Mine'", "known: Other"]),
    ("x = 1\n", ["no class 'Mine'"]),
    ("class Mine:\n    pass\n", ["no attack", "derive the class from ppbench.attack.Attack"]),
    ("def Mine():\n    pass\n", ["no attack", "derive the class from ppbench.attack.Attack"]),
    ("from ppbench.defense import Defense\nclass Mine(Defense):\n    def protect(self, a, b, c):\n        pass\n",
     ["no attack", "ppbench.attack.Attack"]),
    (ATTACK.format(extra="").replace("def run", "def walk"), ["lacks the contract", "write its method(s) run"]),
    (ATTACK.format(extra="").replace("    requires", "    needs"), ["lacks the contract", "attribute(s) requires"]),
    (ATTACK.format(extra="").replace("    default_threat", "    threat"), ["attribute(s) default_threat"]),
    (ATTACK.format(extra="").replace('frozenset({"images"})', '"images"'),
     ["requires must be a frozenset of capability names", "'images'"]),
    (ATTACK.format(extra="").replace("@dataclass(frozen=True)\n", ""), ["@dataclass(frozen=True) above the class"]),
])
def test_a_file_that_is_no_plug_in_says_why(tmp_path: Path, body: str | None, words: list[str]) -> None:
    name = f"{tmp_path / 'mine.py'}:Mine" if body is None else write(tmp_path, body)
    text = complaint(lambda: load_class("attacks", name))
    for word in words:
        assert word in text, text


def test_a_file_without_a_class_name_is_told_how_to_write_it(tmp_path: Path) -> None:
    assert "write mine.py:CLASS" in complaint(lambda: load_class("attacks", "mine.py"))


def test_a_file_that_failed_to_import_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    body = f"import pathlib\nif not pathlib.Path({str(tmp_path / 'flag')!r}).exists():\n    raise OSError('not yet')\n"
    name = write(tmp_path, body + ATTACK.format(extra=""))
    assert "not yet" in complaint(lambda: load_class("attacks", name))
    (tmp_path / "flag").touch()
    assert load_class("attacks", name).__name__ == "Mine"


def test_ctrl_c_during_an_import_stays_what_it_is(tmp_path: Path) -> None:
    name = write(tmp_path, "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_class("attacks", name)


def test_an_annotation_that_means_nothing_is_told(tmp_path: Path) -> None:
    name = write(tmp_path, ATTACK.format(extra="").replace("steps: int", 'steps: "Itn"'))
    assert "annotation that cannot be resolved" in complaint(lambda: build(Ref("attacks", name)))


def test_a_subclass_that_adds_parameters_without_decorator_is_told(tmp_path: Path) -> None:
    body = ATTACK.format(extra="").replace("class Mine", "class Base") + "class Mine(Base):\n    more: int = 1\n"
    assert "is no dataclass" in complaint(lambda: load_class("attacks", write(tmp_path, body)))


def test_a_subclass_without_parameters_of_its_own_needs_no_decorator(tmp_path: Path) -> None:
    body = ATTACK.format(extra="").replace("class Mine", "class Base") + "class Mine(Base):\n    pass\n"
    name = write(tmp_path, body)
    assert vars(build(Ref("attacks", name, {"steps": 7})))["steps"] == 7


# --- registered plug-ins of other distributions

@pytest.mark.parametrize(("body", "cause"), [
    ("raise RuntimeError('needs a licence')\n", "RuntimeError: needs a licence"),
    ("import no_such_library\n", "no_such_library"),
    ("raise SystemExit('bye')\n", "SystemExit: bye"),
    ("x = 1\n", "AttributeError"),
    ("def oops(:\n", "SyntaxError"),
])
def test_a_broken_entry_point_is_told_by_name_and_cause_and_breaks_nothing_else(
        register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, cause: str) -> None:
    module = f"third_party_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    register("attacks", "broken", f"{module}:Mine")
    assert "broken" in registered("attacks")
    assert load_class("attacks", "blind").__name__ == "Blind"
    text = complaint(lambda: load_class("attacks", "broken"))
    assert "'broken'" in text
    assert f"{module}:Mine" in text
    assert cause in text
    assert load_class("attacks", "blind").__name__ == "Blind"


def test_a_third_partys_plug_in_is_used_like_ours(register: Register, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "third_party_good.py").write_text(ATTACK.format(extra=""))
    monkeypatch.syspath_prepend(tmp_path)
    register("attacks", "theirs", "third_party_good:Mine")
    assert vars(build(Ref("attacks", "theirs", {"rate": 2}))) == {"steps": 3, "rate": 2.0}
    assert "did you mean theirs?" in complaint(lambda: load_class("attacks", "their"))


def test_nobody_takes_the_name_of_a_built_in(register: Register, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "third_party_thief.py").write_text(ATTACK.format(extra=""))
    monkeypatch.syspath_prepend(tmp_path)
    register("attacks", "blind", "third_party_thief:Mine")
    register("attacks", "blind", "a_package:Mine")
    assert load_class("attacks", "blind").__name__ == "Blind"


def test_an_entry_point_of_the_wrong_group_is_refused(register: Register) -> None:
    register("attacks", "wrong", "ppbench.defenses.none:NoDefense")
    assert "wrong is no attack" in complaint(lambda: load_class("attacks", "wrong"))


def test_a_data_sets_path_is_read_from_where_it_resolved_to(tmp_path: Path) -> None:
    ref = Ref("datasets", "npz", {"path": "a.npz"}, file=str(tmp_path / "a.npz"))
    assert build(ref).path == str(tmp_path / "a.npz")

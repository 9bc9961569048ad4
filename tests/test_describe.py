"""`ppbench list`: read from the sources, and true of the classes that they define."""

import json
import subprocess
import sys
from dataclasses import MISSING, fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from ppbench import describe as describing
from ppbench.describe import Description, describe, describe_threats
from ppbench.plugins import load_class, registered
from ppbench.threat import NAMED

GROUPS = ("datasets", "defenses", "attacks")
EVERY = [(group, found) for group in GROUPS for found in describe(group)]
each = pytest.mark.parametrize(("group", "found"), EVERY, ids=[f"{group}/{found.name}" for group, found in EVERY])


@pytest.mark.parametrize("group", GROUPS)
def test_every_registered_plug_in_is_listed(group: str) -> None:
    assert [found.name for found in describe(group)] == sorted(registered(group))


@each
def test_each_has_a_summary_and_no_problem(group: str, found: Description) -> None:
    assert found.problem == ""
    assert found.summary.endswith(".") or found.summary.endswith(")")
    assert found.summary == (load_class(group, found.name).__doc__ or "").partition("\n")[0]


@each
def test_facts_are_those_of_the_class(group: str, found: Description) -> None:
    cls: Any = load_class(group, found.name)
    expected = {
        "datasets": {"default_size": cls.default_size} if group == "datasets" else {},
        "defenses": {"key_scopes": ", ".join(getattr(cls, "key_scopes", ()))},
        "attacks": {"requires": ", ".join(sorted(getattr(cls, "requires", ()))),
                    "uses": ", ".join(sorted(getattr(cls, "uses", ()))),
                    "default_threat": getattr(cls, "default_threat", "")},
    }[group]
    for name, value in found.facts.items():
        assert value == ("" if expected[name] is None else str(expected[name]))
    if group == "attacks":
        assert set(found.facts) == {"requires", "default_threat"} | ({"uses"} if cls.uses else set())
    if group == "defenses" and cls.key_scopes:
        assert set(found.facts) == {"key_scopes"}


@each
def test_parameters_are_the_fields_with_their_defaults(group: str, found: Description) -> None:
    cls: Any = load_class(group, found.name)
    assert list(found.params) == [field.name for field in fields(cls)]
    for field in fields(cls):
        shown = found.params[field.name]
        if field.default is not MISSING:
            assert eval(shown, vars(sys.modules[cls.__module__])) == field.default
        elif field.default_factory is MISSING:
            assert shown == "required"


def test_every_named_threat_model_is_listed_with_its_capabilities() -> None:
    found = {one.name: one.summary for one in describe_threats()}
    assert list(found) == list(NAMED)
    for name, threat in NAMED.items():
        if name == "full-knowledge":
            assert found[name] == "grants everything"
        else:
            assert found[name] == "grants " + ", ".join(sorted(threat.grants))


def test_listing_imports_neither_torch_nor_any_plug_in() -> None:
    code = ("import json, sys\nfrom ppbench.describe import describe, describe_threats\n"
            "found = [one.name for group in ('datasets', 'defenses', 'attacks') for one in describe(group)]\n"
            "describe_threats()\n"
            "heavy = [name for name in sys.modules if name.partition('.')[0] in ('torch', 'timm', 'numpy', 'scipy')]\n"
            "ours = [name for name in sys.modules if name.startswith(('ppbench.attacks.', 'ppbench.defenses.', "
            "'ppbench.datasets.'))]\n"
            "print(json.dumps([found, heavy, ours]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, heavy, ours = json.loads(done.stdout)
    assert {"photos", "none", "blind"} <= set(found)
    assert heavy == []
    assert ours == []


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_the_command_lists_without_torch(flag: list[str]) -> None:
    code = (f"import sys\nsys.argv = ['ppbench', 'list', *{flag!r}]\nfrom ppbench.cli import main\nmain()\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if flag:
        found = json.loads(done.stdout)
        assert set(found) == {*GROUPS, "threats"}
        assert found["attacks"][0]["name"] == "as-released"
    else:
        assert "as-released" in done.stdout
        assert "requires: images" in done.stdout


# --- plug-ins of others

@pytest.fixture
def one_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Describe one module as if it were the only registered attack beside `blind`."""
    monkeypatch.syspath_prepend(tmp_path)
    count = 0

    def describe_it(body: str, attribute: str = "Mine") -> tuple[Description, Description]:
        nonlocal count
        count += 1
        module = f"described_{tmp_path.name.replace('-', '_')}_{count}"
        (tmp_path / f"{module}.py").write_text(body)
        entries = {"mine": EntryPoint("mine", f"{module}:{attribute}", "ppbench.attacks"),
                   "blind": registered("attacks")["blind"]}
        monkeypatch.setattr(describing, "registered", lambda group: entries)
        mine, blind = describe("attacks")
        return mine, blind

    return describe_it


@pytest.mark.parametrize(("body", "attribute", "problem"), [
    ("def oops(:\n", "Mine", "SyntaxError"),
    ("x = 1\n", "Mine", "has no class Mine"),
    ("\0", "Mine", "Error"),
    ("class Mine:\n    requires = frozenset({1, 'a'})\n", "Mine", "TypeError"),
])
def test_a_broken_plug_in_says_so_and_the_others_are_listed(one_plugin: Any, body: str, attribute: str,
                                                            problem: str) -> None:
    mine, blind = one_plugin(body, attribute)
    assert problem in mine.problem
    assert (mine.name, mine.summary) == ("mine", "")
    assert blind.problem == ""
    assert blind.summary


@pytest.mark.parametrize("value", ["no_such_module_at_all:Mine", "no_such_package.module:Mine", "nonsense value"])
def test_an_entry_point_to_nowhere_says_so(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(describing, "registered", lambda group: {"mine": EntryPoint("mine", value, "ppbench.attacks")})
    (mine,) = describe("attacks")
    assert mine.problem


def test_a_plug_in_that_raises_when_imported_can_still_be_listed(one_plugin: Any) -> None:
    mine, _ = one_plugin('raise SystemExit\nclass Mine:\n    """A line."""\n    requires = frozenset()\n    x: int\n')
    assert mine == Description("mine", "A line.", {"requires": ""}, {"x": "required"})


def test_facts_and_parameters_of_bases_in_the_file_are_inherited(one_plugin: Any) -> None:
    mine, _ = one_plugin(
        'from typing import ClassVar\n'
        'class Base:\n    requires: ClassVar = frozenset({"b", "a"})\n    default_threat = "x"\n    one: int = 1\n'
        'class Mine(Base):\n    """A line.\n\n    More."""\n    default_threat = "y"\n    one: int = 2\n'
        '    two: str = "t"\n    hidden = 3\n    kind: ClassVar[int] = 4\n')
    assert mine == Description("mine", "A line.", {"requires": "a, b", "default_threat": "y"},
                               {"one": "2", "two": "'t'"})


def test_a_computed_fact_is_shown_as_it_is_written(one_plugin: Any) -> None:
    mine, _ = one_plugin("NEEDS = {'a'}\nclass Mine:\n    requires = frozenset(NEEDS)\n")
    assert mine.facts == {"requires": "frozenset(NEEDS)"}

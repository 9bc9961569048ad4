"""What a class says of itself, to the command line and to the run."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args

from pydantic_core import to_jsonable_python

from ppbench.attack import Attack, CraftingAttack, TrainingAttack
from ppbench.defense import Defense, KeyScope
from ppbench.describe import read_plugin
from ppbench.errors import UserError
from ppbench.plugins import configure, suggest
from ppbench.threat import CAPABILITIES, NAMED

LINE = 120
_ROLES = ("attack", "floor", "ceiling")


def attack_declaration(attack: Attack, name: str) -> Iterator[str]:
    """Check what an attack declares."""
    yield from _plugin_declaration(attack, name)
    cls = type(attack)
    for name_set in ("requires", "uses"):
        for capability in sorted(getattr(cls, name_set) - CAPABILITIES):
            yield (f"`{name_set}` names the unknown capability {capability!r}"
                   f"{suggest(capability, sorted(CAPABILITIES))}: correct it")
    if "candidates" in cls.uses:
        yield ("`uses` names \"candidates\", which only attacks on membership see: name it in `requires`, or leave it "
               "out")
    listed = read_plugin(name, cls.__module__, cls.__qualname__).facts.get("requires", "")
    if listed != ", ".join(sorted(cls.requires)):
        yield ("`requires` cannot be read without importing the class: write a literal frozenset of names in the class "
               "body")
    threat = NAMED.get(cls.default_threat)
    if threat is None:
        yield f"`default_threat` {cls.default_threat!r} is no threat model{suggest(cls.default_threat, list(NAMED))}"
    elif missing := sorted(cls.requires & CAPABILITIES - threat.grants):
        yield (f"`default_threat` {threat.name!r} does not grant {', '.join(map(repr, missing))}: name a threat model "
               "that grants all of `requires`")
    if isinstance(attack, TrainingAttack) and "training" not in cls.requires:
        yield "it acts in training, but `requires` does not say so: add \"training\" to it"
    if isinstance(attack, CraftingAttack) and not cls.requires >= {"gradients", "server"}:
        yield "it crafts the clients' model, but `requires` does not say so: add \"gradients\" and \"server\" to it"
    if cls.role not in _ROLES:
        yield f"`role` is {cls.role!r}: choose one of {', '.join(_ROLES)}"


def defense_declaration(defense: Defense, name: str) -> Iterator[str]:
    """Check what a defense declares."""
    yield from _plugin_declaration(defense, name)
    cls = type(defense)
    scopes: Any = cls.key_scopes
    if not isinstance(scopes, tuple) or set(scopes) - set(get_args(KeyScope)):
        yield f"`key_scopes` is {scopes!r}: make it a tuple of {', '.join(map(repr, get_args(KeyScope)))}"
        return
    if scopes and cls.keys is Defense.keys:
        yield "it declares key scopes but draws no keys: write keys(), or leave `key_scopes` empty"
    if not scopes and cls.keys is not Defense.keys:
        yield "it draws keys but declares no key scope, so that none reach it: set `key_scopes`"
    partnered: Any = cls.partnered
    if not isinstance(partnered, bool):
        yield f"`partnered` is {partnered!r}: make it True or False"


def _plugin_declaration(component: Any, name: str) -> Iterator[str]:
    cls = type(component)
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield "it is no frozen dataclass: put @dataclass(frozen=True) above the class"
    summary = (cls.__doc__ or "").partition("\n")[0].strip()
    if not summary or summary.startswith(f"{cls.__name__}("):  # what @dataclass writes where there is none
        yield "it has no docstring: write one, its first line is what `ppbench list` shows"
    elif len(summary) > LINE:
        yield f"the first line of its docstring has {len(summary)} characters: say it in {LINE}"
    yield from _parameters(cls, name)


def _parameters(cls: type, name: str) -> Iterator[str]:
    """Hold every default to its own annotation, as if the user had given it."""
    for field in fields(cls) if is_dataclass(cls) else ():
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is MISSING:
            continue
        try:
            configure(cls, name, {field.name: to_jsonable_python(default)})
        except UserError as error:
            if "needs the parameter" not in str(error):
                yield f"the default of {field.name!r} is refused when it is given ({error}): make the two agree"

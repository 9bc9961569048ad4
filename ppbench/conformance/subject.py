"""The plug-in under check: given as SPEC, class or instance, and how another process finds it again."""

import inspect
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from ppbench.errors import UserError
from ppbench.plugins import GROUPS, build, configure, is_file, load_class, registered, suggest
from ppbench.ref import Ref, parse_spec
from ppbench.sources import code_digest, file_code_digest

Group = Literal["attacks", "defenses"]
BOTH: tuple[Group, ...] = ("attacks", "defenses")


@dataclass(frozen=True)
class Subject:
    """A configured plug-in.

    Attributes:
        ref: how any process finds it.
        component: the plug-in itself.
    """

    ref: Ref
    component: Any

    @property
    def use(self) -> str:
        """As a suite names it."""
        return f"{self.ref.file}:{self.ref.name.rpartition(':')[2]}" if self.ref.file else self.ref.name


def group_of(spec: str) -> Group:
    """Say whether a SPEC names an attack or a defense.

    Raises:
        UserError: it names neither, or one of each.
    """
    name, _ = parse_spec(spec)
    if not is_file(name) and not name.endswith(".py"):
        found = [group for group in BOTH if name in registered(group)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{name!r} is both an attack and a defense: say which with --kind")
        known = [known for group in BOTH for known in registered(group)]
        raise UserError(f"there is no attack and no defense {name!r}{suggest(name, known)}")
    refused: list[UserError] = []
    for group in BOTH:
        try:
            load_class(group, name)
        except UserError as error:
            refused.append(error)
        else:
            return group
    # An attack is no defense, and the other way round: the sentence that says more than this is the one to read.
    said = [str(error) for error in refused if "derive the class from" not in str(error)]
    raise UserError(said[0] if said else f"{name} is neither an attack nor a defense: derive the class from "
                                         "ppbench.attack.Attack or ppbench.defense.Defense")


def resolve(group: Group, target: object, params: dict[str, Any]) -> Subject:
    """Find and configure the plug-in that a SPEC, a class or an instance stands for.

    Raises:
        UserError: as `ppbench.plugins.load_class` and `configure`, or no other process could find the class.
    """
    if isinstance(target, str):
        name, given = parse_spec(target)
        params = given | params
        cls, file = load_class(group, name), _file_of(name)
    else:
        cls = target if isinstance(target, type) else type(target)
        name, file = _home(group, cls)
        params = params if isinstance(target, type) else {**_changed(target), **params}
    component = configure(cls, name, params) if isinstance(target, str | type) or params else target
    code = file_code_digest(Path(file)) if file else code_digest(cls.__module__)
    if file:
        name = f"{Path(file).name}:{name.rpartition(':')[2]}"
    ref = Ref(group, name, {key: to_jsonable_python(value) for key, value in params.items()}, code, file)
    build(ref)
    return Subject(ref, component)


def _file_of(name: str) -> str | None:
    return str(Path(name.rpartition(":")[0]).resolve()) if is_file(name) else None


def _home(group: Group, cls: type) -> tuple[str, str | None]:
    """Name a class as it is registered, or by its file."""
    location = f"{cls.__module__}:{cls.__qualname__}"
    for name, entry in registered(group).items():
        if entry.value == location:
            return name, None
    file = inspect.getsourcefile(cls)
    if file is None or "." in cls.__qualname__:
        raise UserError(f"{cls.__qualname__} cannot be found by another process: write the {GROUPS[group]} at the top "
                        "level of a file")
    path = str(Path(file).resolve())
    return f"{path}:{cls.__qualname__}", path


def _changed(component: Any) -> dict[str, Any]:
    """Return the parameters of an instance that differ from their defaults."""
    if not is_dataclass(component):
        return {}
    return {field.name: getattr(component, field.name) for field in fields(component)
            if field.default is MISSING or getattr(component, field.name) != field.default}

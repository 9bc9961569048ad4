"""The registry: names -> classes, from entry points and files; nothing is imported before it is asked for."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from ppbench.errors import UserError
from ppbench.files import file_digest
from ppbench.ref import Ref

GROUPS = {"datasets": "data set", "defenses": "defense", "attacks": "attack"}
CONTRACTS = {"datasets": "ppbench.data:Dataset", "defenses": "ppbench.defense:Defense",
             "attacks": "ppbench.attack:Attack"}
_FILE_MODULE = "ppbench_plugin_"


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Return the registered plug-ins of `datasets`, `defenses` or `attacks` by name, none of them imported.

    Nobody else's plug-in can take the name of a built-in one.
    """
    found = sorted(entry_points(group=f"ppbench.{group}"), key=lambda entry: (entry.name, _is_built_in(entry)))
    return {entry.name: entry for entry in found}


def _is_built_in(entry: EntryPoint) -> bool:
    return entry.value.startswith("ppbench.")


def is_file(name: str) -> bool:
    """Say whether a component is given as FILE.py:Class."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def load_class(group: str, name: str, file: str | None = None) -> type:
    """Import the class behind a name or `FILE.py:Class`, and hold it to the contract of its group.

    Raises:
        UserError: unknown name (the nearest are suggested), broken plug-in (name and cause), or no contract.
    """
    kind = GROUPS[group]
    if name.endswith(".py"):
        raise UserError(f"{name!r} names a file but no class: write {name}:CLASS")
    if is_file(name):
        path, _, attribute = name.rpartition(":")
        found = _from_file(Path(file or path), attribute, name)
    else:
        known = registered(group)
        if name not in known:
            raise UserError(f"there is no {kind} {name!r}{suggest(name, list(known))}")
        try:
            found = known[name].load()
        except (Exception, SystemExit) as error:
            raise UserError(f"the {kind} {name!r} ({known[name].value}) cannot be loaded: "
                            f"{type(error).__name__}: {error}") from error
    _check_contract(group, name, found)
    cls: type = found
    return cls


def build(ref: Ref) -> Any:
    """Make the configured component that a reference names.

    Raises:
        UserError: as `load_class`, or a parameter is unknown or ill-typed.
    """
    params = {**ref.params, **ref.files}
    for key, path in ref.files.items():  # named by content when the run was planned
        if not str(ref.params.get(key, "")).endswith(f"@{_digest_of(path)}"):
            raise UserError(f"{ref.name}: the file {path!r} of {key} was changed or removed during the run: run again")
    if ref.group == "datasets" and ref.file and not is_file(ref.name):
        params = {**params, "path": ref.file}
    return configure(load_class(ref.group, ref.name, ref.file), ref.name, params)


def _digest_of(path: str) -> str:
    return file_digest(Path(path))[:12] if Path(path).is_file() else "?"


def configure(cls: type, name: str, params: dict[str, Any]) -> Any:
    """Construct a plug-in's dataclass from validated parameters.

    Raises:
        UserError: a parameter is unknown, missing, ill-typed or refused by the class.
    """
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, AttributeError, TypeError) as error:
        raise UserError(f"{name} has an annotation that cannot be resolved: {error}") from error
    known = {field.name: field for field in fields(cls)} if is_dataclass(cls) else {}
    for key in params:
        if key not in known:
            raise UserError(f"{name} has no parameter {key!r}{suggest(key, list(known))}")
    for key, field in known.items():
        if key not in params and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{name} needs the parameter {key!r}: write {name},{key}=VALUE")
    values = {key: _valid(name, key, hints[key], value) for key, value in params.items()}
    try:
        return cls(**values)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {error}") from error


def suggest(name: str, known: list[str]) -> str:
    """End a sentence about an unknown name with the nearest known ones, or all of them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(known)}" if known else "; it takes none"


def _valid(name: str, key: str, hint: Any, value: Any) -> Any:
    config = None if inspect.isclass(hint) and (is_dataclass(hint) or hasattr(hint, "model_config")) \
        else ConfigDict(allow_inf_nan=False)
    if isinstance(value, bool) and hint in (int, float):
        raise UserError(f"{name}: the parameter {key!r} must be a number, not {value!r}")
    try:
        return TypeAdapter(hint, config=config).validate_python(value)
    except PydanticUserError as error:
        raise UserError(f"{name}: the parameter {key!r} is of a type that cannot be given: leave it out") from error
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{name}: the parameter {key!r} is {value!r}: {reason}") from error


def _from_file(path: Path, attribute: str, name: str) -> Any:
    if not path.is_file():
        raise UserError(f"the plug-in file {str(path)!r} does not exist: give FILE.py:Class")
    module_name = f"{_FILE_MODULE}{sha256(path.read_bytes()).hexdigest()[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise UserError(f"the plug-in file {path.name!r} cannot be imported: "
                            f"{type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        classes = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name]
        raise UserError(f"{name}: the file has no class {attribute!r}{suggest(attribute, classes)}")
    return getattr(module, attribute)


def _check_contract(group: str, name: str, found: Any) -> None:
    module, _, base_name = CONTRACTS[group].partition(":")
    base = getattr(importlib.import_module(module), base_name)
    contract = f"{module}.{base_name}"
    if not inspect.isclass(found) or not issubclass(found, base):
        raise UserError(f"{name} is no {GROUPS[group]}: derive the class from {contract}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise UserError(f"{name} lacks the contract of {contract}: write its method(s) {missing}")
    if unset := [n for n in ("requires", "default_threat") if group == "attacks" and not hasattr(found, n)]:
        raise UserError(f"{name} lacks the contract of {contract}: set the class attribute(s) {', '.join(unset)}")
    for name_set in ("requires", "uses") if group == "attacks" else ():
        value: object = getattr(found, name_set)
        if not _is_name_set(value):
            raise UserError(f"{name} lacks the contract of {contract}: {name_set} must be a frozenset of capability "
                            f"names, not {value!r}")
    own = inspect.get_annotations(found)
    if any("ClassVar" not in str(hint) for hint in own.values()) and "__dataclass_fields__" not in found.__dict__:
        raise UserError(f"{name} declares parameters but is no dataclass: put @dataclass(frozen=True) above the class")


def _is_name_set(value: object) -> bool:
    return isinstance(value, set | frozenset) and all(isinstance(name, str) for name in value)


def class_at(location: str, ref: Ref | None = None) -> Any:
    """Import `package.module:Class`, where the module may be that of a file plug-in's reference."""
    module_name, _, attribute = location.partition(":")
    if module_name.startswith(_FILE_MODULE) and ref is not None and ref.file:
        return _from_file(Path(ref.file), attribute, ref.name)
    return getattr(importlib.import_module(module_name), attribute)

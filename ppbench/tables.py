"""From a suite's table to a plug-in: found, its parameters checked, its files named by what is in them."""

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from ppbench.errors import UserError
from ppbench.files import file_digest, resolved
from ppbench.plan import network_code
from ppbench.plugins import configure, is_file, load_class
from ppbench.ref import Ref
from ppbench.sources import code_digest, file_code_digest
from ppbench.store import json_digest
from ppbench.suite import PlugInTable


def find_plugin(group: str, table: PlugInTable, folder: Path) -> tuple[Ref, type]:
    """Resolve a table's plug-in and hold its parameters to the class."""
    name, params, file = table.use, table.params, None
    if is_file(name):
        path, _, attribute = name.rpartition(":")
        source = (folder / path).resolve()
        cls = load_class(group, name, str(source))
        file, name = str(source), f"{source.name}:{attribute}"
        code = file_code_digest(source)
    else:
        if ":" in name:
            name, _, path = name.partition(":")
            if not path:
                raise UserError(f"{table.use!r} names no path: write {name}:PATH")
            params = {"path": path, **params}
        cls = load_class(group, name)
        code = code_digest(cls.__module__)
    named = [key for key in getattr(cls, "files", ()) if isinstance(params.get(key), str) and params[key]]
    files = {key: resolved(folder, params[key]) for key in named}
    contents = {key: named_by_content(path, f"{name}: {key}") for key, path in files.items()}
    places = {key: str(path) for key, path in files.items()}
    component = configure(cls, name, {**params, **places})
    networks = [network_code(str(getattr(component, key))) for key in getattr(cls, "networks", ())]
    code = json_digest([code, *networks]) if any(networks) else code
    return Ref(group, name, {**_declared(component, {**params, **places}), **contents}, code, file, places), cls


def _declared(component: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Return the validated values of the parameters that differ from their defaults.

    So `patch=4`, `patch=4.0` and nothing at all are one cell where 4 is the default.
    """
    if not is_dataclass(component):
        return params
    given = [field for field in fields(component) if field.name in params]
    return {field.name: to_jsonable_python(getattr(component, field.name)) for field in given
            if field.default is MISSING or getattr(component, field.name) != field.default}


def named_by_content(path: Path, what: str) -> str:
    """Return a file's name with the start of its digest: what it is, wherever it lies.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{what}: {str(path)!r} is no file: give one, relative to the suite")
    return f"{path.name}@{content_digest(path)[:12]}"


def content_digest(path: Path) -> str:
    """Digest a file, or the names and contents of a folder's files; a missing one is the data set's own error."""
    try:
        if path.is_file():
            return file_digest(path)
        found = [(str(file.relative_to(path)), file_digest(file)) for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    return json_digest(found)

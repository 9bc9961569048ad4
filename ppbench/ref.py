"""A component by name: how data sets, defenses and attacks are written down and cross processes."""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ppbench.errors import UserError


@dataclass(frozen=True)
class Ref:
    """One configured component.

    Attributes:
        group: `datasets`, `defenses` or `attacks`.
        name: its registered name, or `FILE.py:Class`.
        params: the parameters that were given (JSON values).
        code: SHA-256 of the sources it rests on; part of cache keys, never of seeds.
        file: where a file plug-in is loaded from, or what a data set's `path` resolves to; no part of its identity.
        files: where the files lie that parameters name, by parameter (which names them by content); neither.
    """

    group: str
    name: str
    params: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    file: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> list[Any]:
        """What the component declares itself to be: seeds and cell names derive from this alone."""
        return [self.group, self.name, self.params]

    def without_places(self) -> "Ref":
        """Return the reference without the paths where its files lie: what is stored must be the same anywhere."""
        return replace(self, file=None, files={})

    def at(self, places: "Ref") -> "Ref":
        """Return the reference with the paths of another, which names the same component."""
        return replace(self, file=places.file, files=places.files)

    def as_json(self) -> dict[str, Any]:
        """Encode for another process."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Ref":
        """Decode what `as_json` made."""
        return Ref(**tree)


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Read `NAME[,key=value]...`, `npz:PATH[,...]` or `FILE.py:Class[,...]` into a name and parameters.

    Values are JSON where they parse as such (`4`, `0.5`, `true`, `[1,2]`), otherwise strings.

    Raises:
        UserError: a part after the first has no `=`, or a key is given twice.
    """
    name, *rest = re.split(r",(?=[^\[\]{}]*?=)", spec)
    params: dict[str, Any] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read {part!r} in {spec!r}: write NAME,key=value,key=value")
        if key.strip() in params:
            raise UserError(f"{spec!r} gives {key.strip()!r} twice: give it once")
        params[key.strip()] = _literal(value)
    if not name.strip() or "," in name:
        raise UserError(f"cannot read {spec!r}: write NAME,key=value,key=value")
    return name.strip(), params


def parse_chain(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """Read `OUTER[,...]+INNER[,...]` into its components, outer first."""
    return [parse_spec(part) for part in re.split(r"\+(?=[A-Za-z./~])", spec)]


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text

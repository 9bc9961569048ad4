"""What `ppbench list` shows: read from the sources by their syntax, so that nothing heavy is imported."""

import ast
import importlib.util
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

from ppbench.plugins import registered


@dataclass(frozen=True)
class Description:
    """One plug-in, as it is listed.

    Attributes:
        name: as it is used.
        summary: first line of its docstring.
        facts: attacks: `requires`, `uses` and `default_threat`; defenses: `key_scopes`.
        params: parameter -> default, as written; `required` where there is none.
        problem: why it could not be read.
    """

    name: str
    summary: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def describe(group: str) -> list[Description]:
    """Describe every registered plug-in of `datasets`, `defenses` or `attacks`; a broken one says so."""
    return [_describe(name, entry) for name, entry in registered(group).items()]


def _describe(name: str, entry: EntryPoint) -> Description:
    try:
        return read_plugin(name, entry.module, entry.attr)
    except (Exception, SystemExit) as error:
        return Description(name, problem=f"{entry.value}: {type(error).__name__}: {error}")


def read_plugin(name: str, module: str, attribute: str) -> Description:
    """Read a class from its module's source, without importing either."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return Description(name, problem=f"the module {module} does not exist")
    tree = ast.parse(Path(spec.origin).read_bytes())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if attribute not in classes:
        return Description(name, problem=f"{module} has no class {attribute}")
    facts: dict[str, str] = {}
    params: dict[str, str] = {}
    for node in _lineage(classes[attribute], classes):
        _read(node, facts, params)
    return Description(name, (ast.get_docstring(classes[attribute]) or "").partition("\n")[0], facts, params)


def _lineage(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """Return a class after those of its bases that stand in the same file."""
    bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    return [ancestor for base in bases for ancestor in _lineage(base, classes)] + [node]


def _read(node: ast.ClassDef, facts: dict[str, str], params: dict[str, str]) -> None:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            _fact(statement.targets[0].id, statement.value, facts)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if "ClassVar" in ast.unparse(statement.annotation):
                if statement.value is not None:
                    _fact(statement.target.id, statement.value, facts)
            else:
                default = statement.value
                params[statement.target.id] = "required" if default is None else ast.unparse(default)


def _fact(name: str, value: ast.expr, facts: dict[str, str]) -> None:
    """Keep a literal class attribute that a reader of the list wants to know."""
    if name not in ("requires", "uses", "default_threat", "key_scopes", "default_size"):
        return
    literal = value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "frozenset":
        literal = value.args[0] if value.args else ast.Tuple([])
    try:
        found = ast.literal_eval(literal)
    except ValueError:
        facts[name] = ast.unparse(value)
        return
    facts[name] = str(found) if isinstance(found, str | int) else ", ".join(
        sorted(found) if isinstance(found, set) else map(str, found)) if found is not None else ""


def describe_threats() -> list[Description]:
    """Describe the named threat models, from the source of `ppbench.threat`."""
    tree = ast.parse((Path(__file__).parent / "threat.py").read_bytes())
    sets = {name: value for name, value in _assignments(tree) if name.startswith("_")}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name) and node.func.id == "ThreatModel" and len(node.args) == 2]
    found = []
    for call in calls:
        names = sorted(_capabilities(call.args[1], sets))
        name = ast.literal_eval(call.args[0])
        found.append(Description(name, "grants " + (", ".join(names) if names else "everything")))
    return found


def _assignments(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    return [(node.target.id, node.value) for node in tree.body if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name) and node.value is not None]


def _capabilities(node: ast.expr, sets: dict[str, ast.expr]) -> set[str]:
    """Collect the capability names in an expression, following the module's own sets."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
        elif isinstance(part, ast.Name) and part.id in sets:
            found |= _capabilities(sets[part.id], sets)
    return found

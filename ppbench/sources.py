"""What a component's results rest on besides its inputs: its sources, and the libraries' versions."""

import ast
import importlib.util
import platform
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OWN = "ppbench"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "lpips", "scikit-image", "pillow")


@cache
def code_digest(module: str) -> str:
    """Hash the sources statically reachable from a module inside its own top-level package, without importing them."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        return ""
    roots = [Path(location) for location in spec.submodule_search_locations or ()]  # several: a namespace package
    if not roots:
        return file_code_digest(Path(spec.origin)) if spec.origin else ""
    files: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = next(filter(None, (_module_file(root, name) for root in roots)), None)
        if path is None or name in files:
            continue
        files[name] = path.read_bytes()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported = _imports(files[name], package)
        waiting += [found for found in imported if found.partition(".")[0] == top]
        if top != OWN:
            files |= _own_digests(imported)
    return _hash(files)


def file_code_digest(path: Path) -> str:
    """Hash a file plug-in and what it imports of ppbench."""
    if not path.is_file():  # built into the interpreter
        return ""
    content = path.read_bytes()
    return _hash({path.name: content, **_own_digests(_imports(content, ""))})


def _own_digests(imported: list[str]) -> dict[str, bytes]:
    """Digest what somebody else's module imports of ppbench, its attacks and defenses too."""
    return {name: code_digest(name).encode() for name in imported if name.partition(".")[0] == OWN}


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = ""
    return found


def _module_file(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split(".")[1:])
    candidates = (base / "__init__.py", base.with_suffix(".py")) if base != root else (root / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


def _imports(source: bytes, package: str) -> list[str]:
    """Return every module name that an import statement may mean; names of attributes do no harm."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


def _hash(files: dict[str, bytes]) -> str:
    digest = sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()

"""Dataclasses of tensors <-> one safetensors file: how every artefact is stored and crosses processes.

Structure and plain values travel as JSON in the file's metadata, tensors as tensors; nothing is pickled.
"""

import json
import types
import typing
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

Tensors = dict[str, Tensor]
T = TypeVar("T")
_TENSOR = "$tensor"


def pack(value: Any, prefix: str = "") -> tuple[Any, Tensors]:
    """Split a value into a JSON tree and the tensors it holds, keyed by their path in the tree."""
    if isinstance(value, Tensor):
        return {_TENSOR: prefix}, {prefix: value.detach().cpu().contiguous()}
    if is_dataclass(value) and not isinstance(value, type):
        children: Any = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, dict):
        if _TENSOR in value:
            raise TypeError(f"the name {_TENSOR!r} in {prefix or 'the value'} is reserved: choose another")
        children = value
    elif isinstance(value, frozenset):
        return sorted(value), {}
    elif isinstance(value, list | tuple):
        packed = [pack(item, f"{prefix}/{i}") for i, item in enumerate(value)]
        return [tree for tree, _ in packed], {k: t for _, found in packed for k, t in found.items()}
    elif value is None or isinstance(value, str | int | float | bool):
        return value, {}
    else:
        raise TypeError(f"{prefix or 'the value'} is a {type(value).__name__}, which cannot be stored")
    tree, tensors = {}, {}
    for name, child in children.items():
        tree[name], found = pack(child, f"{prefix}/{_escaped(name)}")
        tensors.update(found)
    return tree, tensors


def _escaped(name: str) -> str:
    """Escape a name as JSON pointers do (RFC 6901), so that no two tensors share a path."""
    return name.replace("~", "~0").replace("/", "~1")


def unpack(kind: Any, tree: Any, tensors: Tensors) -> Any:
    """Rebuild a value of the annotated type `kind` from what `pack` made."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if tree is None:
            return None
        (kind,) = (arg for arg in args if arg is not types.NoneType)
        return unpack(kind, tree, tensors)
    if isinstance(tree, dict) and _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: unpack(hints[f.name], tree[f.name], tensors) for f in fields(kind)})
    if origin is dict:
        return {name: unpack(args[1], child, tensors) for name, child in tree.items()}
    if origin is frozenset:
        return frozenset(tree)
    if origin is tuple:
        kinds = [args[0]] * len(tree) if args[1:] == (Ellipsis,) else args
        return tuple(unpack(k, child, tensors) for k, child in zip(kinds, tree, strict=True))
    if origin is list:
        return [unpack(args[0], child, tensors) for child in tree]
    return tree


def dump(value: Any) -> bytes:
    """Encode a value as the bytes of a safetensors file: equal values give equal bytes."""
    tree, tensors = pack(value)
    return save({name: tensor.clone() for name, tensor in tensors.items()},
                metadata={"json": json.dumps(tree, sort_keys=True)})


def load(kind: type[T], path: Path) -> T:
    """Read a value of type `kind` from a file that holds what `dump` made."""
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    value: T = unpack(kind, tree, tensors)
    return value


def facts(path: Path) -> Any:
    """Read what `dump` made but for the tensors, which are left where they are: a JSON tree."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["json"])


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's encoding, as 64 hex digits."""
    return sha256(dump(value)).hexdigest()


def under(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def to_bytes8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to the 256 levels that an 8-bit file can hold."""
    return (images.clamp(0, 1) * 255).round() / 255

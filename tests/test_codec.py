"""Every artefact is a safetensors file: what comes back equals what went in, and nothing is ever unpickled."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ppbench import codec


@dataclass(frozen=True)
class Leaf:
    values: Tensor
    name: str
    weight: float


@dataclass(frozen=True)
class Node:
    leaf: Leaf | None
    table: dict[str, Tensor]
    nested: dict[str, dict[str, Tensor]]
    leaves: list[Leaf]
    many: tuple[Leaf, ...]
    pair: tuple[int, Tensor]
    tags: frozenset[str]
    kind: Literal["a", "b"] | None
    flag: bool
    options: dict[str, Any]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of the types that artefacts hold, not all of them contiguous, some of them empty."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
                                  torch.int32, torch.uint8, torch.bool]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    made = torch.randint(0, 200, shape, generator=rng).to(dtype)
    return made.transpose(0, 1) if len(shape) > 1 and draw(st.booleans()) else made


names = st.text(max_size=6).filter(lambda name: name != "$tensor")
texts = st.text(max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=True)
leaves = st.builds(Leaf, tensors(), texts, finite)
plain = st.recursive(st.none() | st.booleans() | st.integers() | finite | texts,
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
                     max_leaves=5)
nodes = st.builds(Node, st.none() | leaves, st.dictionaries(names, tensors(), max_size=3),
                  st.dictionaries(names, st.dictionaries(names, tensors(), max_size=2), max_size=2),
                  st.lists(leaves, max_size=2), st.lists(leaves, max_size=2).map(tuple),
                  st.tuples(st.integers(), tensors()), st.frozensets(texts, max_size=3),
                  st.sampled_from(["a", "b", None]), st.booleans(), st.dictionaries(names, plain, max_size=3))


def same(a: Any, b: Any) -> bool:
    """Compare by type and value, tensors by their bits."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Mapping):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codec") / "value.safetensors"


@settings(max_examples=100, deadline=None)
@given(node=nodes)
def test_what_comes_back_equals_what_went_in(node: Node, file: Path) -> None:
    file.write_bytes(codec.dump(node))
    assert same(codec.load(Node, file), node)


def reordered(value: Any) -> Any:
    """Return an equal value built anew: dictionaries in the opposite order, tensors in other memory."""
    if isinstance(value, Tensor):
        return value.t().contiguous().t() if value.ndim == 2 else value.clone()
    if is_dataclass(value):
        return replace(value, **{f.name: reordered(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    if isinstance(value, list | tuple):
        return type(value)(map(reordered, value))
    return value


@settings(max_examples=100, deadline=None)
@given(node=nodes)
def test_equal_values_give_equal_bytes(node: Node) -> None:
    again = reordered(node)
    assert codec.dump(again) == codec.dump(node)
    assert codec.digest(again) == codec.digest(node)


@pytest.mark.parametrize("other", [Leaf(torch.ones(2), "a", 0.5), Leaf(torch.zeros(2), "b", 0.5),
                                   Leaf(torch.zeros(2), "a", 0.25), Leaf(torch.zeros(2, 1), "a", 0.5),
                                   Leaf(torch.zeros(2, dtype=torch.float64), "a", 0.5)])
def test_different_values_have_different_digests(other: Leaf) -> None:
    assert codec.digest(other) != codec.digest(Leaf(torch.zeros(2), "a", 0.5))


def test_names_with_slashes_keep_their_tensors_apart(tmp_path: Path) -> None:
    value = {"a": {"b/c": torch.zeros(1)}, "a/b": {"c": torch.ones(1)}, "a~1b": {"c": torch.full((1,), 2.0)}}
    file = tmp_path / "f"
    file.write_bytes(codec.dump(value))
    assert same(codec.load(dict[str, dict[str, Tensor]], file), value)


def test_tensors_that_share_memory_or_carry_a_gradient_can_be_stored(tmp_path: Path) -> None:
    base = torch.arange(4.0).requires_grad_()
    (tmp_path / "f").write_bytes(codec.dump({"all": base, "half": base[:2]}))
    back = codec.load(dict[str, Tensor], tmp_path / "f")
    assert same(back, {"all": torch.arange(4.0), "half": torch.arange(2.0)})
    assert not back["all"].requires_grad


def test_any_safetensors_reader_can_open_an_artefact(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(codec.dump(Leaf(torch.arange(3), "a", 1.5)))
    assert torch.equal(load_file(tmp_path / "f")["/values"], torch.arange(3))


@pytest.mark.parametrize("value", [object(), {"x": 1 + 2j}, Leaf(torch.zeros(1), b"bytes", 0.0),  # type: ignore[arg-type]
                                   {"$tensor": "/elsewhere"}])
def test_what_cannot_be_stored_is_refused_rather_than_pickled(value: Any) -> None:
    with pytest.raises(TypeError):
        codec.dump(value)


class Trap:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_facts_are_read_without_tensors(tmp_path: Path) -> None:
    file = tmp_path / "value.safetensors"
    file.write_bytes(codec.dump({"tensor": torch.zeros(3), "facts": {"name": "x", "sizes": [1, 2], "none": None}}))
    assert codec.facts(file) == {"tensor": {"$tensor": "/tensor"},
                                 "facts": {"name": "x", "sizes": [1, 2], "none": None}}


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "f").write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(Exception, match=r".") as caught:
        codec.load(Leaf, tmp_path / "f")
    assert type(caught.value).__name__ == "SafetensorError"
    torch.save({"x": Trap(trace)}, tmp_path / "g")
    with pytest.raises(Exception, match=r".") as caught:
        codec.load(Leaf, tmp_path / "g")
    assert type(caught.value).__name__ == "SafetensorError"
    assert not trace.exists()


def test_a_cut_file_raises_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = codec.dump(Leaf(torch.arange(8.0), "a", 0.5))
    file = tmp_path / "f"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(Exception, match=r"."):
            codec.load(Leaf, file)


def test_a_file_that_is_another_kind_of_value_raises(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(codec.dump({"values": torch.zeros(1)}))
    with pytest.raises(KeyError, match="name"):
        codec.load(Leaf, file)


def test_metadata_is_json(tmp_path: Path) -> None:
    tree, found = codec.pack(Leaf(torch.zeros(1), "a", 0.5))
    assert json.loads(json.dumps(tree)) == {"values": {"$tensor": "/values"}, "name": "a", "weight": 0.5}
    assert set(found) == {"/values"}


@given(st.lists(st.floats(-1, 2), min_size=1))
def test_eight_bits_hold_256_levels_of_zero_to_one(values: list[float]) -> None:
    images = torch.tensor(values, dtype=torch.float64)
    rounded = codec.to_bytes8(images)
    assert torch.equal((rounded * 255).round() / 255, rounded)
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    assert (rounded - images.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-12

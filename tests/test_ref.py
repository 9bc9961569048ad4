"""How components are written on the command line."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppbench.errors import UserError
from ppbench.ref import Ref, parse_chain, parse_spec


@pytest.mark.parametrize(("spec", "name", "params"), [
    ("mixup", "mixup", {}),
    (" mixup ", "mixup", {}),
    ("mixup,patch=8", "mixup", {"patch": 8}),
    ("a,x=0.5,y=true,z=null,w=word", "a", {"x": 0.5, "y": True, "z": None, "w": "word"}),
    ("a,x=1e+5", "a", {"x": 1e5}),
    ("a,x=-1.5E-3", "a", {"x": -1.5e-3}),
    ("a,x=[1,2],y=[[3,4],[5]]", "a", {"x": [1, 2], "y": [[3, 4], [5]]}),
    ('a,x={"k":1,"l":[2,3]},y=4', "a", {"x": {"k": 1, "l": [2, 3]}, "y": 4}),
    ('a,x="4"', "a", {"x": "4"}),
    ("a,x=", "a", {"x": ""}),
    ("a, x =4", "a", {"x": 4}),
    ("a,model=timm:vit_tiny_patch16_224", "a", {"model": "timm:vit_tiny_patch16_224"}),
    ("npz:data/cifar10.npz", "npz:data/cifar10.npz", {}),
    ("npz:/a b/c=d.npz,size=32", "npz:/a b/c=d.npz", {"size": 32}),
    ("folder:../x.y/z,private=8", "folder:../x.y/z", {"private": 8}),
    ("./mine/attack.py:Mine,steps=3", "./mine/attack.py:Mine", {"steps": 3}),
])
def test_a_spec_is_a_name_and_parameters(spec: str, name: str, params: dict[str, Any]) -> None:
    assert parse_spec(spec) == (name, params)


@pytest.mark.parametrize("spec", ["", " ", ",x=1", "a,b", "a,b,x=1", "a,=1", "a,x=1,2,y=3", "a,", "a,x=1,x=2"])
def test_what_is_no_spec_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"write NAME,key=value,key=value|give it once"):
        parse_spec(spec)


words = st.from_regex(r"[a-z][a-z_-]{0,8}", fullmatch=True)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                      | words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
                      max_leaves=6)


@given(words, st.dictionaries(words, values, max_size=4))
def test_json_values_come_back(name: str, params: dict[str, Any]) -> None:
    spec = ",".join([name, *(f"{key}={json.dumps(value)}" for key, value in params.items())])
    assert parse_spec(spec) == (name, params)


@pytest.mark.parametrize(("spec", "parts"), [
    ("jigsaw", [("jigsaw", {})]),
    ("gradient-matching+jigsaw", [("gradient-matching", {}), ("jigsaw", {})]),
    ("gradient-matching,tv=1e+5,steps=3+jigsaw,restarts=8",
     [("gradient-matching", {"tv": 1e5, "steps": 3}), ("jigsaw", {"restarts": 8})]),
    ("a,x=1e+5+b,y=2E+3", [("a", {"x": 1e5}), ("b", {"y": 2e3})]),
    ("mine/attack.py:Mine,steps=2+jigsaw", [("mine/attack.py:Mine", {"steps": 2}), ("jigsaw", {})]),
    ("gradient-matching+./mine.py:Mine", [("gradient-matching", {}), ("./mine.py:Mine", {})]),
    ("gradient-matching+/home/me/mine.py:Mine,k=1", [("gradient-matching", {}), ("/home/me/mine.py:Mine", {"k": 1})]),
    ("a+b+c", [("a", {}), ("b", {}), ("c", {})]),
])
def test_a_chain_is_cut_at_its_plus_signs(spec: str, parts: list[tuple[str, dict[str, Any]]]) -> None:
    assert parse_chain(spec) == parts


def test_a_ref_crosses_processes_as_json() -> None:
    ref = Ref("attacks", "mine.py:Mine", {"steps": 3, "init": [1, 2]}, "abc", "/home/me/mine.py")
    assert Ref.from_json(json.loads(json.dumps(ref.as_json()))) == ref


def test_identity_is_what_was_declared_and_not_where_it_lies() -> None:
    ref = Ref("attacks", "mine.py:Mine", {"steps": 3}, "abc", "/home/me/mine.py")
    assert ref.identity == Ref("attacks", "mine.py:Mine", {"steps": 3}, "def", "/home/you/mine.py").identity
    assert ref.identity != Ref("attacks", "mine.py:Mine", {"steps": 4}, "abc", "/home/me/mine.py").identity
    assert ref.identity != Ref("defenses", "mine.py:Mine", {"steps": 3}, "abc", "/home/me/mine.py").identity

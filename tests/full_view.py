"""A view in which nothing is missing, for tests of what is taken away."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ppbench.data import Images
from ppbench.defense import Keys, Release
from ppbench.model import Model, Update
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.threat import CAPABILITIES
from ppbench.view import Algorithm, Candidates, Pairs, Sealed


def images(count: int, side: int, rng: torch.Generator) -> Images:
    """Random images of three classes."""
    return Images(torch.rand(count, 3, side, side, generator=rng), torch.arange(count) % 3, torch.arange(count))


def everything() -> Sealed:
    """Return what there is before a threat model cuts it down: every part filled, every tensor different."""
    rng = torch.Generator().manual_seed(0)
    state = {"w": torch.rand(2, 2, generator=rng), "b": torch.rand(2, generator=rng)}
    return Sealed(
        granted=frozenset(CAPABILITIES), image_shape=(3, 8, 8), released_shape=(3, 4, 4), n_targets=4, classes=3,
        labels=torch.tensor([0, 1, 2, 0]),
        release=Release(torch.rand(6, 3, 4, 4, generator=rng), torch.arange(6) % 3, torch.arange(6),
                        {"logits": torch.rand(6, 3, generator=rng)}),
        target_rows=torch.arange(4), public=images(5, 8, rng),
        algorithm=Algorithm(Ref("defenses", "block-scrambling", {"block": 4}, "code"), "global", 8),
        pairs=Pairs(torch.rand(2, 3, 8, 8, generator=rng), torch.rand(2, 3, 4, 4, generator=rng)),
        answers=torch.rand(3, 3, 4, 4, generator=rng),
        model=Model("ppbench.nets:convnet", {"num_classes": 3, "nested": {"a": [1, 2.5, None, True]}}, state),
        start=Model("ppbench.nets:convnet", {"num_classes": 3},
                    {name: torch.rand(value.shape, generator=rng) for name, value in state.items()}),
        update=Update({name: torch.rand_like(value)[None] for name, value in state.items()}, 4, 1, 0.01, False),
        keys=Keys({"blocks": torch.rand(1, 4, generator=rng).argsort(1)}, torch.zeros(4, dtype=torch.int64)),
        candidates=Candidates(images(6, 8, rng), torch.rand(6, 3, 4, 4, generator=rng),
                              torch.rand(5, 3, 4, 4, generator=rng)),
        recipe=Recipe(kwargs={"width": 4}, epochs=2))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Walk through all tensors that a value holds, wherever they hide."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)

"""Randomness is named by what it serves, and what a plug-in does to global state is undone."""

import json
import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from ppbench.seeding import derive_seed, generator, seeded, spawn, threads


def global_state() -> list[Any]:
    """Everything that `seeded` promises to restore."""
    legacy = [np.asarray(part).tolist() for part in np.random.get_state()]  # noqa: NPY002
    return [random.getstate(), legacy, torch.get_rng_state().tolist(), torch.get_default_dtype(),
            torch.get_num_threads()]


def disturb() -> None:
    """What a careless plug-in does."""
    random.random()
    np.random.rand(3)  # noqa: NPY002
    torch.rand(3)
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 2)


def test_global_state_is_restored() -> None:
    before = global_state()
    with seeded(7):
        disturb()
        assert torch.get_default_dtype() == torch.float64
    assert global_state() == before


def test_global_state_is_restored_after_an_exception() -> None:
    before = global_state()
    with pytest.raises(ZeroDivisionError), seeded(7):  # noqa: PT012 (the disturbance belongs inside)
        disturb()
        1 / 0  # noqa: B018
    assert global_state() == before


@pytest.mark.parametrize("draw", [random.random, lambda: float(np.random.rand()),  # noqa: NPY002
                                  lambda: float(torch.rand(())), lambda: torch.nn.Linear(1, 1).weight.item()])
def test_global_generators_follow_the_seed(draw: Callable[[], float]) -> None:
    found = []
    for seed in (7, 7, 8):
        draw()
        with seeded(seed):
            found.append(draw())
    assert found[0] == found[1] != found[2]


def test_the_generator_follows_the_seed_and_not_the_global_draws() -> None:
    with seeded(7) as rng:
        torch.rand(5)
        first = torch.rand(3, generator=rng)
    assert torch.equal(first, torch.rand(3, generator=generator(7)))


def test_the_largest_seed_is_accepted() -> None:
    with seeded(2**63 - 1) as rng:
        torch.rand(1, generator=rng)


def test_fences_can_stand_inside_each_other() -> None:
    before = global_state()
    with seeded(1):
        inside = global_state()
        with seeded(2):
            disturb()
        assert global_state() == inside
    assert global_state() == before


@given(st.integers(0, 2**31), st.text(), st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_seed_is_the_hash_of_the_identity(seed: int, kind: str, params: dict[str, Any]) -> None:
    found = derive_seed(seed, kind, params)
    assert 0 <= found < 2**63
    digest = sha256(json.dumps([seed, kind, params], sort_keys=True).encode()).hexdigest()
    assert found == int(digest[:16], 16) // 2
    assert found == derive_seed(seed, kind, dict(reversed(params.items())))


def test_different_components_get_different_seeds() -> None:
    seeds = {derive_seed(seed, kind, ["defenses", name, {}]) for seed in range(3) for kind in ("keys", "release")
             for name in ("none", "mixup")}
    assert len(seeds) == 12


def test_spawned_generators_share_no_stream() -> None:
    rng = generator(0)
    one, other = spawn(rng), spawn(rng)
    assert not torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))
    assert torch.equal(torch.rand(4, generator=spawn(generator(0))), torch.rand(4, generator=spawn(generator(0))))


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.parametrize("count", [1, 3])
def test_threads_are_set_and_restored(count: int) -> None:
    before, pools = torch.get_num_threads(), blas_threads()
    with threads(count):
        assert torch.get_num_threads() == count
        assert blas_threads() == {count}
    assert (torch.get_num_threads(), blas_threads()) == (before, pools)


def test_threads_are_restored_after_an_exception() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(before + 1):  # noqa: PT012
        torch.set_num_threads(before + 3)
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before

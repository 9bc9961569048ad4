"""Where randomness comes from: seeds named by what they serve, and a fence around global generators."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ppbench.device import device


def derive_seed(*identity: Any) -> int:
    """Hash a component's own declared identity (JSON values) to a seed in [0, 2**63)."""
    text = json.dumps(identity, sort_keys=True)
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator with the given seed."""
    return torch.Generator().manual_seed(seed)


def spawn(rng: torch.Generator) -> torch.Generator:
    """Draw a new generator from an old one, so that two consumers do not share a stream."""
    return generator(int(torch.randint(2**62, (), generator=rng)))


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Yield a generator and seed the global ones (library initialisers draw from them); restore them after.

    The default dtype and the number of threads are restored as well.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (plug-ins may still use it)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        card = device()
        with torch.random.fork_rng(devices=[card.index or 0] if card.type == "cuda" else []):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield generator(seed)
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on `count` threads: torch, BLAS and OpenMP alike (their number changes float results)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(limits=count):
            yield
    finally:
        torch.set_num_threads(before)

"""One call of a plug-in, watched: what it returned, and what it did to the state that all share."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppbench import codec
from ppbench.seeding import generator, seeded, threads

Call = Callable[[torch.Generator], Any]
GENERATORS = ("torch", "numpy", "Python")
SEED = 1
ONE, OTHER = 11, 12
_THREADS = "the number of torch threads"


@dataclass(frozen=True)
class Trial:
    """What a call gave, and what it left behind.

    Attributes:
        value: what it returned.
        digest: of that, as it would be stored; empty = it cannot be.
        settings: setting -> (before, after), where the two differ.
        drawn: the global generators whose state it changed.
        torch_state: torch's global generator afterwards.
    """

    value: Any
    digest: str
    settings: dict[str, tuple[Any, Any]]
    drawn: tuple[str, ...]
    torch_state: bytes


def attempt(call: Call, shared: int = ONE, seed: int = SEED) -> Trial:
    """Call with a generator seeded by `seed`, while the global ones are seeded by `shared`; restore everything."""
    grad, strict = torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    try:
        with threads(1), seeded(shared), _thread_calls() as asked:
            settings, states = _settings(), _states()
            value = call(generator(seed))
            after, states_after = _settings(), _states()
        if asked and after[_THREADS] == settings[_THREADS]:  # what it asked for is what the trial runs with
            after[_THREADS], settings[_THREADS] = asked[-1], "what the run decides"
    finally:
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(strict)
    changed = {name: (settings[name], after[name]) for name in settings if settings[name] != after[name]}
    drawn = tuple(name for name in GENERATORS if states[name] != states_after[name])
    return Trial(value, _stored(value), changed, drawn, states_after["torch"])


@contextmanager
def _thread_calls() -> Iterator[list[int]]:
    """Collect the numbers of threads that are asked of torch meanwhile, not counting the frame's own fence."""
    asked: list[int] = []
    honest = torch.set_num_threads

    def noted(nthreads: int) -> None:
        if sys._getframe(1).f_globals.get("__name__") != "ppbench.seeding":
            asked.append(nthreads)
        honest(nthreads)

    torch.set_num_threads = noted
    try:
        yield asked
    finally:
        torch.set_num_threads = honest


def dependence(call: Call, one: Trial, other: Trial) -> Iterator[str]:
    """Find what a result depends on besides its generator, from two calls that differ in the global state alone."""
    if one.digest == other.digest:
        return
    if attempt(call).digest == one.digest:
        names = " and ".join(f"{name}'s" for name in one.drawn) or "the"
        yield (f"its result depends on {names} global generator: draw from the `rng` it is given, and wrap library "
               "initialisers in ppbench.seeding.seeded")
    else:
        yield ("called twice with the same seed it returns different results: draw whatever is random from the `rng` "
               "it is given, and iterate over no sets")


def disturbance(one: Trial, other: Trial) -> Iterator[str]:
    """Find what two calls under different global seeds left changed.

    torch's generator may move on (every network that is built draws its first weights), but not be seeded.
    """
    for name, (before, after) in one.settings.items():
        yield f"it changes {name} from {before} to {after}: leave it as it is, the run decides"
    for name in one.drawn:
        if name != "torch":
            yield f"it draws from {name}'s global generator: seed one of its own from the `rng` it is given"
    if "torch" in one.drawn and one.torch_state == other.torch_state:
        yield ("it seeds torch's global generator: call no torch.manual_seed, or fence it with "
               "ppbench.seeding.seeded")


def _stored(value: Any) -> str:
    try:
        return codec.digest(value)
    except TypeError:
        return ""


def _settings() -> dict[str, Any]:
    return {_THREADS: torch.get_num_threads(), "the default dtype": torch.get_default_dtype(),
            "torch's grad mode": torch.is_grad_enabled(),
            "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled()}


def _states() -> dict[str, Any]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 (to see whether it is left alone)
    numpy_state = (legacy["state"]["key"].tobytes(), legacy["state"]["pos"], legacy["has_gauss"])
    return {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": numpy_state, "Python": random.getstate()}

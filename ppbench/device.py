"""Where tensors are computed on: found once for a run, and known to every stage and plug-in."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from ppbench.errors import UserError

_current: ContextVar[str] = ContextVar("device", default="cpu")


def device() -> torch.device:
    """Return the device that the run was told to compute on; the CPU outside a run."""
    return torch.device(_current.get())


@contextmanager
def computing_on(name: str) -> Iterator[None]:
    """Let `device()` name a device."""
    token = _current.set(name)
    if name != "cpu":  # the same figures again from the same seed, as close to the CPU's as can be
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        _current.reset(token)


def find_device(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into the name of a device that is there; `auto` prefers CUDA.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError:
        found = torch.device("meta")
    if found.type == "cpu":
        return "cpu"
    if found.type != "cuda":
        raise UserError(f"there is no device {name!r}: choose auto, cpu, cuda or cuda:N")
    number = found.index or 0
    if number >= torch.cuda.device_count():
        raise UserError(f"the device {name!r} is not there ({torch.cuda.device_count()} CUDA devices are found): "
                        "choose --device cpu or auto")
    return f"cuda:{number}"


def described(name: str) -> str:
    """Name a device as it stands in a row: `cpu`, or with the model of the card."""
    return name if name == "cpu" else f"{name} ({torch.cuda.get_device_name(name)})"


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory was refused, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or \
        (isinstance(error, RuntimeError) and "allocate memory" in str(error))

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


def computes_bfloat16(kind: str) -> bool:
    """Say whether a kind of device, `cpu` or `cuda`, computes in bfloat16 itself.

    Others emulate it, which takes many times as long as float32.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_has_bfloat16()


def mixed(kind: str, wanted: bool) -> torch.autocast:
    """Return what lets networks compute in bfloat16, if that is wanted, where this kind of device does so itself."""
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and computes_bfloat16(kind))


def described(name: str) -> str:
    """Name a device as it stands in a row: `cpu`, or with the model of the card; and if it has no bfloat16."""
    full = name if name == "cpu" else f"{name} ({torch.cuda.get_device_name(name)})"
    return full if computes_bfloat16(torch.device(name).type) else f"{full}, no bfloat16"


def _cpu_has_bfloat16() -> bool:
    told = getattr(torch.cpu, "get_capabilities", None)
    if told is None:  # an older torch
        return bool(torch.backends.cpu.get_cpu_capability() == "AVX512")
    return any(told().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory was refused, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or \
        (isinstance(error, RuntimeError) and "allocate memory" in str(error))

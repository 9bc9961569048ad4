"""Devices: found by name, known to what runs, and missing memory recognised."""

import pytest
import torch

from ppbench.device import computing_on, described, device, find_device, mixed, out_of_memory
from ppbench.errors import UserError


def test_devices_that_are_not_there_are_refused_in_a_sentence() -> None:
    assert find_device("cpu") == "cpu"
    assert find_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    for name in ("tpu", "gpu", "mps", "meta", "cuda:99"):
        with pytest.raises(UserError, match="auto"):
            find_device(name)


def test_what_runs_knows_its_device() -> None:
    assert device() == torch.device("cpu")
    with computing_on("meta"):
        assert device().type == "meta"
    assert device().type == "cpu"


@pytest.mark.parametrize(("given", "has"), [({"avx2": True}, False), ({"avx512_f": True, "avx512_bf16": False}, False),
                                            ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True),
                                            ({"neon": True, "bf16": True}, True), ({"neon": True}, False)])
def test_bfloat16_is_computed_in_only_where_the_processor_does(monkeypatch: pytest.MonkeyPatch,
                                                               given: dict[str, bool], has: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: given, raising=False)
    weights, rows = torch.eye(3), torch.rand(2, 3)
    for wanted in (True, False):
        with mixed("cpu", wanted):
            found = torch.nn.functional.linear(rows, weights)
        assert found.dtype == (torch.bfloat16 if has and wanted else torch.float32)
    assert described("cpu") == ("cpu" if has else "cpu, no bfloat16")


@pytest.mark.parametrize(("kernels", "has"), [("AVX512", True), ("AVX2", False)])
def test_of_an_older_torch_its_kernels_tell(monkeypatch: pytest.MonkeyPatch, kernels: str, has: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert described("cpu") == ("cpu" if has else "cpu, no bfloat16")


def test_missing_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))

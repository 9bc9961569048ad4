"""Devices: found by name, known to what runs, and missing memory recognised."""

import pytest
import torch

from ppbench.device import computing_on, device, find_device, out_of_memory
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


def test_missing_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))

"""The pipe by which a job reports: whatever is written into it, the limits hold."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppbench.engine.job import Job, Limits, Outcome
from ppbench.engine.processes import _BEGUN, _send, _watch

OK = json.dumps(asdict(Outcome("ok", info={"a": 1}))).encode()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("attack", {}, {}, 0, Limits(0.5, 64, 1), str(tmp_path / "output"), str(tmp_path / "log"))


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection, Any]]:
    """The two ends of a pipe, and a process that lives on."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    alive, held = os.pipe()
    yield receiver, sender, SimpleNamespace(sentinel=alive)
    os.close(held)


def watched(job: Job, ends: tuple[Connection, Connection, Any], *messages: bytes) -> Outcome:
    receiver, sender, process = ends
    _send(sender, _BEGUN)
    for message in messages:
        os.write(sender.fileno(), message)
    family: Any = SimpleNamespace(memory_mib=lambda limit: 0)
    return _watch(process, family, receiver, job)


def test_a_report_is_read_however_it_is_cut(job: Job, ends: Any) -> None:
    assert watched(job, ends, OK[:7], OK[7:], b"\n").info == {"a": 1}


@pytest.mark.parametrize("stray", [b"hello", b"\x00\x00\xff\xff", b'{"status": "ok"', b""])
def test_a_stray_write_does_not_hold_the_limit_up(job: Job, ends: Any, stray: bytes) -> None:
    assert watched(job, ends, stray).status == "timeout"


@pytest.mark.parametrize("stray", [b"hello\n", b"hello" + OK + b"\n", b"{}\n", b"x" * 2**12])
def test_what_is_no_report_is_said(job: Job, ends: Any, stray: bytes) -> None:
    outcome = watched(job, ends, stray if stray.endswith(b"\n") else stray + b"\n")
    assert outcome.status == "failed"
    assert "something else" in outcome.reason

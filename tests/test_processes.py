"""The engine `processes`: the exit status of a worker can be read once, and starting another reads it too."""

import asyncio
import os
import threading
from contextlib import closing
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import pytest

from ppbench.engine import processes
from ppbench.engine.job import Job, Limits


def test_the_exit_status_is_told_while_another_job_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = forkserver.read_signed  # type: ignore[attr-defined]
    reading, heard = threading.Event(), []
    job = Job("attack", {}, {}, 0, Limits(60, 600, 1), "", str(tmp_path / "no folder" / "log"))
    with closing(processes.Processes(1)) as engine:
        process: Any = engine._context.Process(target=os._exit, args=(3,))
        process.start()
        assert connection.wait([process.sentinel], 60)

        def first_is_slow(pipe: int) -> int:
            if pipe == process.sentinel and not reading.is_set():
                reading.set()
                threading.Event().wait(1)
            return int(read(pipe))

        monkeypatch.setattr(forkserver, "read_signed", first_is_slow)
        watching = threading.Thread(target=lambda: heard.append(processes._ended(process)))
        watching.start()
        assert reading.wait(60)
        assert asyncio.run(engine.run(job)).status == "failed"
        watching.join()
    assert [outcome.reason for outcome in heard] == ["the process exited with status 3 before it returned anything"]

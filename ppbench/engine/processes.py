"""Every job in a process of its own, forked from a server that has the libraries loaded and never held data."""

import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from ppbench.engine.gate import Gate
from ppbench.engine.job import Job, Outcome

PRELOAD = ["ppbench.engine.preload"]
LOG_BYTES = 256 * 1024
_BEGUN = b"begun"
_POLL = 0.2  # seconds between looks at a job's memory


class Processes:
    """Run up to `jobs` jobs at once, each in its own process; a job that hangs or grows too large is ended."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._gate = Gate(jobs)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._running: set[Any] = set()

    async def run(self, job: Job) -> Outcome:
        """Run one job and wait for it."""
        async with self._gate.entered():
            receiver, sender = self._context.Pipe(duplex=False)
            process = self._context.Process(target=serve, args=(job.dump(), sender), daemon=True)
            with _without_main():
                process.start()
            sender.close()
            self._running.add(process)
            try:
                return await asyncio.to_thread(_watch, process, receiver, job)
            finally:
                process.kill()
                process.join()
                receiver.close()
                self._running.discard(process)

    def close(self) -> None:
        """Kill what still runs."""
        for process in list(self._running):
            process.kill()


def serve(text: str, sender: Connection) -> None:
    """Run one job in a fresh process and send back what became of it, as JSON."""
    job = Job.load(text)
    _end_with_parent()
    _log_to(Path(job.log))
    from ppbench.engine.worker import execute

    sender.send_bytes(_BEGUN)
    outcome = execute(job)
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send_bytes(json.dumps(asdict(outcome)).encode())
    sender.close()
    os._exit(0)  # threads or exit handlers of a plug-in cannot hold the process


def _watch(process: Any, receiver: Connection, job: Job) -> Outcome:
    deadline = math.inf  # until the libraries are loaded and the job begins
    while True:
        ready = wait([receiver, process.sentinel], timeout=_POLL)
        _bound(job.log)
        if receiver in ready or (ready and receiver.poll()):
            try:
                message = receiver.recv_bytes()
                if message == _BEGUN:
                    deadline = time.monotonic() + job.limits.seconds
                    continue
                return Outcome(**json.loads(message))
            except (EOFError, OSError, ValueError, TypeError):
                return _ended(process)
        if ready:
            return _ended(process)
        if time.monotonic() > deadline:
            return Outcome("timeout", f"ran past its limit of {job.limits.seconds:g} seconds: raise limits.seconds")
        if (used := _memory_mib(process.pid)) > job.limits.memory_mib:
            return Outcome("killed", f"used {used} MiB of memory, more than its limit of {job.limits.memory_mib}: "
                                     "raise limits.memory_mib")


def _ended(process: Any) -> Outcome:
    process.join(5)
    code = process.exitcode
    if code is not None and code < 0:
        return Outcome("killed", f"the process was ended by signal {-code}"
                                 + (" (out of memory?)" if code == -9 else ""))
    return Outcome("failed", f"the process exited with status {code} before it returned anything")


def _memory_mib(pid: int) -> int:
    """Return the memory of a process that is its own, without the libraries it shares with the server."""
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(info.rss - getattr(info, "shared", 0)) >> 20


def _end_with_parent() -> None:
    """End this process when the one that asked for it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _log_to(path: Path) -> None:
    """Send stdout and stderr straight to a file, so that the last words of a dying process are kept."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)


def _bound(log: str) -> None:
    """Cut a log back to its first part: what appends to it goes on there."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(log) > LOG_BYTES:
            os.truncate(log, LOG_BYTES)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module, so that a worker does not run the user's script again."""
    main: dict[str, Any] = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)

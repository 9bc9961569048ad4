"""Every job in a process of its own, forked from a server that has the libraries loaded and never held data."""

import asyncio
import contextlib
import json
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

from ppbench.engine.job import Job, Outcome

PRELOAD = ["ppbench.engine.preload"]
LOG_BYTES = 256 * 1024
_POLL = 0.2  # seconds between looks at a job's memory


class Processes:
    """Run up to `jobs` jobs at once, each in its own process; a job that hangs or grows too large is ended."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._free = asyncio.Semaphore(jobs)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._running: set[Any] = set()

    async def run(self, job: Job) -> Outcome:
        """Run one job and wait for it."""
        async with self._free:
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
    _bound_log(Path(job.log))
    from ppbench.engine.worker import execute

    outcome = execute(job)
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send_bytes(json.dumps(asdict(outcome)).encode())
    sender.close()
    time.sleep(0.01)  # the log's last lines
    os._exit(0)  # threads or exit handlers of a plug-in cannot hold the process


def _watch(process: Any, receiver: Connection, job: Job) -> Outcome:
    deadline = time.monotonic() + job.limits.seconds
    while True:
        ready = wait([receiver, process.sentinel], timeout=_POLL)
        if receiver in ready or (ready and receiver.poll()):
            try:
                return Outcome(**json.loads(receiver.recv_bytes()))
            except (EOFError, OSError, ValueError, TypeError):
                process.join(5)
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


def _bound_log(path: Path) -> None:
    """Send stdout and stderr to a file that keeps the first part and drops the rest."""
    reader, writer = os.pipe()
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)

    def copy() -> None:
        kept = 0
        with path.open("wb", buffering=0) as log:
            while block := os.read(reader, 65536):
                if kept < LOG_BYTES:
                    log.write(block[: LOG_BYTES - kept])
                    if kept + len(block) >= LOG_BYTES:
                        log.write(b"\n[the rest was dropped]\n")
                kept += len(block)

    threading.Thread(target=copy, daemon=True).start()


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

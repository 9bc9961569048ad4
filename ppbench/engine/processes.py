"""Every job in a process of its own, forked from a server that has the libraries loaded and never held data."""

import asyncio
import contextlib
import faulthandler
import fcntl
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ppbench.engine.family import Family, end_children, lead
from ppbench.engine.gate import Gate
from ppbench.engine.job import Job, Outcome

PRELOAD = ["ppbench.engine.preload"]
SAFE_PATH = "PYTHONSAFEPATH"
LOG_BYTES = 256 * 1024
_BEGUN = b"begun"
_LONGEST = 2**20  # bytes of a message
_POLL = 0.2  # seconds between looks at a job's memory and log
_REAPING = threading.Lock()  # an exit status can be read once, and starting a process reads those of all others
_MUTE = 97  # exit status of a job that could not report because its plug-in closed the pipe


def warm() -> None:
    """Start the server that workers are forked from: it loads the libraries while a run is planned."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with _REAPING, _clean_start():
        forkserver.ensure_running()


class Processes:
    """Run up to `jobs` jobs at once, each in its own process; a job that hangs or grows too large is ended."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._gate = Gate(jobs)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._running: set[Family] = set()

    async def run(self, job: Job) -> Outcome:
        """Run one job and wait for it."""
        async with self._gate.entered():
            receiver, sender = self._context.Pipe(duplex=False)
            process: Any = self._context.Process(target=serve, args=(job.dump(), sender), daemon=True)
            with _REAPING, _clean_start():
                process.start()
            sender.close()
            family = Family(process.pid)
            self._running.add(family)
            try:
                return await asyncio.to_thread(_watch, process, family, receiver, job)
            finally:
                family.end()
                with _REAPING:
                    process.kill()  # where it did not get as far as to lead a session
                    process.join()
                receiver.close()
                _bound(job.log)
                self._running.discard(family)

    def close(self) -> None:
        """Kill what still runs."""
        for family in list(self._running):
            family.end()


def serve(text: str, sender: Connection) -> None:
    """Run one job in a fresh process and send back what became of it, as JSON."""
    job = Job.load(text)
    lead()
    _end_with_parent()
    _log_to(Path(job.log))
    from ppbench.engine.worker import execute

    _send(sender, _BEGUN)
    outcome = execute(job)
    end_children()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the plug-in may have closed or replaced it
            stream.flush()
    try:
        _send(sender, json.dumps(asdict(outcome)).encode())
    except OSError:
        os._exit(_MUTE)
    os._exit(0)  # threads or exit handlers of a plug-in cannot hold the process


def _send(sender: Connection, message: bytes) -> None:
    """Write a message of one line."""
    rest = message + b"\n"
    while rest:
        rest = rest[os.write(sender.fileno(), rest):]


def _watch(process: Any, family: Family, receiver: Connection, job: Job) -> Outcome:
    deadline = math.inf  # until the libraries are loaded and the job begins
    os.set_blocking(receiver.fileno(), False)  # whatever a plug-in writes into the pipe, the limits hold
    open_ends: list[Any] = [receiver, process.sentinel]
    heard = b""
    while True:
        ready = wait(open_ends, timeout=_POLL)
        _bound(job.log)
        if receiver in open_ends:
            said = _read(receiver)
            if said == b"":  # it may have closed its end, and go on all the same
                open_ends.remove(receiver)
            heard += said or b""
            if heard.startswith(_BEGUN + b"\n"):
                heard = heard.removeprefix(_BEGUN + b"\n")
                deadline = time.monotonic() + job.limits.seconds
            if b"\n" in heard or len(heard) > _LONGEST:
                return _outcome(heard)
            if said:
                continue
        if process.sentinel in ready:
            return _ended(process)
        if time.monotonic() > deadline:
            return Outcome("timeout", f"ran past its limit of {job.limits.seconds:g} seconds: raise limits.seconds")
        if (used := family.memory_mib(job.limits.memory_mib)) > job.limits.memory_mib:
            return Outcome("killed", f"used {used} MiB of memory, more than its limit of {job.limits.memory_mib}: "
                                     "raise limits.memory_mib")


def _read(receiver: Connection) -> bytes | None:
    """Return what there is to read: nothing at the end (`b""`), None where nothing has come yet."""
    try:
        return os.read(receiver.fileno(), 2**16)
    except BlockingIOError:
        return None


def _outcome(message: bytes) -> Outcome:
    try:
        return Outcome(**json.loads(message))
    except (ValueError, TypeError):
        return Outcome("failed", "something else than the result was written into the pipe by which it is returned")


def _ended(process: Any) -> Outcome:
    with _REAPING:
        process.join(5)
        code = process.exitcode
    if code is not None and code < 0:
        return Outcome("killed", f"the process was ended by signal {-code}"
                                 + (" (out of memory?)" if code == -signal.SIGKILL else ""))
    if code == _MUTE:
        return Outcome("failed", "the plug-in closed the pipe by which its result is returned: it must close no file "
                                 "descriptor that it did not open")
    return Outcome("failed", f"the process exited with status {code} before it returned anything")


def _end_with_parent() -> None:
    """End this process and its session when the one that asked for it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if hasattr(fcntl, "F_SETSIG"):  # Linux: the kernel does it, also where a plug-in never lets a thread run
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | fcntl.FASYNC)

    def watch() -> None:
        parent.join()
        end_children()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _log_to(path: Path) -> None:
    """Send stdout and stderr straight to a file, so that the last words of a dying process are kept."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable()


def _bound(log: str) -> None:
    """Cut a log back to its first part: what appends to it goes on there."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(log) > LOG_BYTES:
            os.truncate(log, LOG_BYTES)


@contextlib.contextmanager
def _clean_start() -> Iterator[None]:
    """Hide the main module, so that a worker does not run the user's script again, and the working folder.

    The server is started by `python -c`, which would take a folder `timm` that lies there for the library. It inherits
    that Ctrl-C is blocked: that is for the run, also while the server loads its libraries.
    """
    resource_tracker.ensure_running()  # starting it unblocks Ctrl-C
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    safe = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    main: dict[str, Any] = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        main.update(hidden)
        os.environ.pop(SAFE_PATH)
        if safe is not None:
            os.environ[SAFE_PATH] = safe

"""A worker and all processes that it started: the memory they hold together, and how they are ended."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

import psutil

_LOOK = 1.0  # seconds between looks for new descendants: each reads the whole process table
_SUBREAPER = 36  # Linux: orphans of this process's children become its own children, not those of init
_COUNTED = ("Pss_Anon:", "Pss_Shmem:")


class Family:
    """A worker that called `lead`, and its descendants as far as they were seen.

    Whoever stays in the worker's session is ended with it in any case. Whoever left the session is found while the
    worker lives, and afterwards if it was seen before.
    """

    def __init__(self, pid: int) -> None:
        self._leader = pid
        self._members: set[psutil.Process] = set()
        self._next_look = 0.0
        with contextlib.suppress(psutil.Error):
            self._members.add(psutil.Process(pid))

    def memory_mib(self, limit: int) -> int:
        """Return the memory of the family: an upper bound while that is within `limit`, the exact amount above.

        Exact means: without files and libraries, and of pages that are shared with others only the own share.
        """
        if time.monotonic() > self._next_look:
            self._look()
        bound = sum(_resident(process) for process in self._members) >> 20
        return bound if bound <= limit else sum(_own(process) for process in self._members) >> 20

    def end(self) -> None:
        """Kill the worker and all that descend from it."""
        self._look()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._leader, signal.SIGKILL)
        for process in self._members:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _look(self) -> None:
        self._next_look = time.monotonic() + _LOOK
        self._members = {process for process in self._members if process.is_running()}
        for process in list(self._members):
            with contextlib.suppress(psutil.Error):
                self._members.update(process.children(recursive=True))


def lead() -> None:
    """Make this process the leader of a session of its own, which adopts whatever its children leave behind."""
    os.setsid()
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """Kill all that descend from this process."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _own(process: psutil.Process) -> int:
    """Return bytes: the process's share of anonymous and shared memory."""
    try:
        lines = [line.split() for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()]
        found = [int(line[1]) << 10 for line in lines if line[0] in _COUNTED]
    except (OSError, ValueError, IndexError):
        found = []
    if found:
        return sum(found)
    try:
        return int(process.memory_full_info().uss)  # other systems, old kernels
    except psutil.Error:
        return 0

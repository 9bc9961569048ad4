"""A run that is killed again and again: started by test_kill.py in a process of its own, it reports as JSON.

Usage: python killed_runs.py FOLDER DATA.npz KILLS

Every run is forked from this process, which has the libraries loaded, and shares its server of workers; so twenty
starts load them once. A kill ends the run and its workers at the same moment, or (every other time) the run alone,
whose workers then have to end by themselves.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from conftest import plugin, tiny_plan, tiny_run

from ppbench.cell import make_row
from ppbench.engine.processes import Processes
from ppbench.plan import Plan
from ppbench.store import Store

HANGS = """
@dataclass(frozen=True)
class Hangs(Attack):
    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    mark: str
    def run(self, view, priors, rng):
        import re
        open(self.mark, "w").close()
        re.match("(a|aa)+$", "a" * 99 + "b")  # never lets another thread of its process run
"""


def counted(log: Path) -> None:
    """Write down every artefact and every row that this process finishes."""
    publish = Store.publish

    def count(self: Store, kind: str, key: str, *rest: Any) -> Any:
        made = publish(self, kind, key, *rest)
        note(log, f"{kind}/{key}")
        return made

    Store.publish = count  # type: ignore[method-assign, assignment]
    sys.modules["ppbench.runner"].make_row = counting_rows(log)  # type: ignore[attr-defined]


def counting_rows(log: Path) -> Callable[..., Any]:
    async def make(plan: Plan, cell: Any, folder: Path, flow: Any) -> Any:
        made = await make_row(plan, cell, folder, flow)
        note(log, f"row/{cell.id}")
        return made

    return make


def note(log: Path, line: str) -> None:
    """Append a line in one write, which a kill cannot cut."""
    with log.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def start(plan: Plan, output: Path) -> int:
    """Fork a run; it ends with status 0 when it is through."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
        counted(output.parent / f"{output.name}.log")
        result, _ = tiny_run(plan, output, "processes")
        note(output.parent / f"{output.name}.last", json.dumps([result.computed, result.kept]))
        status = 0
    finally:
        os._exit(status)


def served() -> None:
    """Make sure that the server has loaded everything and serves.

    Python's server ends by an EOFError where a request is killed half-way. In real life it has but one run, which is
    then gone; here the next one needs another.
    """
    for _ in range(100):
        with contextlib.suppress(OSError, EOFError):
            process = get_context("forkserver").Process(target=time.sleep, args=(0,))
            process.start()
            process.join()
            if process.exitcode == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the server of workers does not start")


def workers() -> list[psutil.Process]:
    """Return the processes of all jobs."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    try:
        return psutil.Process(server).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone() -> bool:
    """Wait until no worker is left."""
    deadline = time.monotonic() + 60
    while (left := workers()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not left


def finished_files(output: Path) -> dict[str, int]:
    """Return what is finished, and the file it is in: one that is written again is another."""
    files = [*output.glob(".store/*/*/data.safetensors"), *output.glob("tiny/cells/*/row.json")]
    found = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            found[str(file.relative_to(output))] = file.stat().st_ino
    return {name: inode for name, inode in found.items() if "/tmp/" not in name}


def timed(plan: Plan, output: Path) -> float:
    begin = time.monotonic()
    _, status = os.waitpid(start(plan, output), 0)
    assert status == 0
    return time.monotonic() - begin


def tables(output: Path) -> dict[str, str]:
    return {name: (output / "tiny" / name).read_text() for name in ("results.csv", "per_image.csv")}


def kills(plan: Plan, folder: Path, count: int) -> dict[str, Any]:
    """Kill a run `count` times at random moments, go on each time, and begin a new one whenever one is through."""
    whole = timed(plan, folder / "whole")
    again = timed(plan, folder / "whole")
    rng = random.Random(0)
    report: dict[str, Any] = {"tables": tables(folder / "whole"), "runs": [], "killed": 0, "survivors": 0,
                              "again": json.loads((folder / "whole.last").read_text().splitlines()[-1])}
    while report["killed"] < count or not report["runs"][-1]["through"]:
        if not report["runs"] or report["runs"][-1]["through"]:
            output = folder / f"cut{len(report['runs'])}"
            report["runs"].append({"through": False, "states": [], "lost": []})
        run, kept = report["runs"][-1], finished_files(output)
        pid = start(plan, output)
        # From before the work begins to a ninth of it: a run is through after several kills.
        wait = rng.uniform(again / 4, again + (whole - again) / 9) if report["killed"] < count else 600
        deadline = time.monotonic() + wait
        while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        if done[0]:
            assert done[1] == 0
            run["through"] = True
        else:
            both = [psutil.Process(pid), *(workers() if report["killed"] % 2 else [])]
            for process in both:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            os.waitpid(pid, 0)
            report["killed"] += 1
            run["states"].append(len(finished_files(output)))
        report["survivors"] += not gone()
        served()
        now = finished_files(output)
        run["lost"] += [name for name, inode in kept.items() if now.get(name) != inode]
        if run["through"]:
            run["tables"] = tables(output)
            run["twice"] = [line for line, times in Counter((folder / f"{output.name}.log").read_text().splitlines()
                                                            ).items() if times > 1]
            run["scratch"] = [str(path) for path in [*output.glob(".store/tmp/*"), *output.rglob(".*.tmp")]]
    return report


def ends_while_hanging(npz: Path, folder: Path) -> bool:
    """Kill a run while an attack of it holds the interpreter; say whether the attack's process ends."""
    mark = folder / "mark"
    file = plugin(folder, HANGS, "hangs.py")
    pid = start(tiny_plan(npz, ["none"], [{"use": f"{file}:Hangs", "mark": str(mark)}]), folder / "hanging")
    while not mark.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ended = gone()
    for process in workers():
        process.kill()
    return ended


def main() -> None:
    """Do both and print what was seen."""
    folder, npz, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    Processes(1)  # names what the server loads
    served()
    plan = tiny_plan(npz, ["none", "patch-shuffle"], ["as-released", "key-holder", "memorization"],
                     score={"groups": ["ssim"]})
    report = kills(plan, folder, count)
    report["ends"] = ends_while_hanging(npz, folder)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

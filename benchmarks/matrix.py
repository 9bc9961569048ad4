"""What a matrix costs: artefacts are made once, and cells that share them are cheaper together than alone.

    python benchmarks/matrix.py [--quick] [--json FILE]

The full form runs the built-in suite, then each of its cells alone in an empty folder (about an hour on two cores);
the quick form does the same for 2 defenses x 3 attacks, without LPIPS and the judge.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from threading import Event, Thread

import psutil
from _suites import GENERATOR, made
from _table import Figure, at_most, equal, options, show

from ppbench.flow import GUESSED
from ppbench.suite import BUILT_IN, read_suite

FULL = read_suite(BUILT_IN / "photos.toml")
DEFENSES = [table["use"] for table in FULL["defense"]]
ATTACKS = [table["use"] for table in FULL["attack"]]
TRAINS = {"memorization"}  # acts in the victim's training: a victim more for every defense
PRIORS = {"gan-inversion": {"shared", "own"}, "vit-inverter": {"own"}}  # for all, and for each defense
SEAMS = {"patch-shuffle"}  # that keep what a piece holds, so that jigsaw learns seams, once for all pieces of a size
SCORES = '[score]\ngroups = ["ssim", "psnr", "task"]\n'
BRIEF = "gan-inversion,prior_steps=2,steps=2"
TWICE = ["none", "mixup", "mixup,patch=8", "pixelate"]


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__ or "")
    defenses, attacks, scores = (["none", "mixup"], ["blind", "jigsaw", BRIEF], SCORES) if asked.quick else \
        (DEFENSES, ATTACKS, "")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        figures = generators(scratch)
        cells = len(defenses) * len(attacks)
        case = f"{len(defenses)} x {len(attacks)} cells in one run"
        seconds, memory = timed(scratch, "together", defenses, attacks, scores)
        figures += counts(case, scratch / "together", defenses, attacks, guesses=1 if scores else len(GUESSED))
        alone = sum(timed(scratch, f"alone-{i}", [defense], [attack], scores)[0]
                    for i, (defense, attack) in enumerate(product(defenses, attacks)))
        figures += [at_most(case, "seconds, 2 jobs", seconds, 120 if asked.quick else 600),
                    at_most(case, "peak memory of all processes, GiB", memory, 4),
                    Figure(f"the same {cells} cells, a run each", "seconds", alone),
                    at_most("together / a run each", "time ratio", seconds / alone, 0.75 if asked.quick else 0.5)]
    show("What a matrix costs", figures, asked.json)


def generators(scratch: Path) -> list[Figure]:
    """Count the generators trained for some defenses, and for twice as many."""
    found = []
    for defenses in (TWICE[:2], TWICE):
        name = f"gan-{len(defenses)}"
        timed(scratch, name, defenses, [BRIEF], '[score]\ngroups = ["psnr"]\n')
        found.append(equal(f"gan-inversion against {len(defenses)} defenses", "generators trained",
                           made(scratch / name, "prior", GENERATOR), 1))
    return found


def counts(case: str, output: Path, defenses: list[str], attacks: list[str], guesses: int) -> list[Figure]:
    """Hold what was computed against what D defenses x A attacks need."""
    names = [attack.partition(",")[0] for attack in attacks]
    shared, own = (sum(which in PRIORS.get(name, ()) for name in names) for which in ("shared", "own"))
    wanted = {"release": len(defenses) + 1,  # and the plain images', for the accuracy beside
              "victim": len(defenses) * (1 + len(TRAINS & set(names))),
              "prior": guesses + shared + own * len(defenses) + ("jigsaw" in names and not SEAMS.isdisjoint(defenses))}
    return [equal(case, f"{kind}s computed", made(output, kind), count) for kind, count in wanted.items()]


def timed(scratch: Path, name: str, defenses: list[str], attacks: list[str], scores: str) -> tuple[float, float]:
    """Run a matrix in an empty folder as a process of its own; return seconds and peak memory in GiB."""
    suite = scratch / f"{name}.toml"
    suite.write_text(f'schema = 1\nname = "matrix"\ntargets = {FULL["targets"]}\n[[dataset]]\nuse = "photos"\n'
                     '[[defense]]\nuse = "none"\n[[attack]]\nuse = "blind"\n' + scores)
    flags = [part for defense in defenses for part in ("--defense", defense)]
    flags += [part for attack in attacks for part in ("--attack", attack)]
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "ppbench", "run", str(suite), *flags, "--jobs", "2", "--output",
                                str(scratch / name)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with peak_memory(process.pid) as peak:
        _, complaint = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}: {complaint[-2000:]}")
    return time.monotonic() - start, peak[0] / 2**30


@contextmanager
def peak_memory(pid: int) -> Iterator[list[float]]:
    """Watch a process and its children; the list holds the peak of their memory in bytes, shared pages shared out."""
    peak, done = [0.0], Event()

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], proportional(pid))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def proportional(pid: int) -> float:
    """Add up the proportional set sizes of a process and its children."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            try:
                info = process.memory_full_info()
                total += getattr(info, "pss", info.rss)
            except psutil.Error:
                continue
    except psutil.Error:
        return total
    return total


if __name__ == "__main__":
    main()

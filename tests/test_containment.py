"""A plug-in that misbehaves costs its own rows and nothing else; an attack holds nothing that it was not granted."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import canary
import numpy as np
import psutil
import pytest
from conftest import plugin, tiny_plan, tiny_run
from small_data import small_npz

from ppbench.runner import Result
from ppbench.store import Store

WELL = ["as-released", "blind"]
SCORE = {"groups": ["ssim"]}
LIMITS = {"seconds": 8, "memory_mib": 600}

ATTACK = """
@dataclass(frozen=True)
class {name}(Attack):
    requires = frozenset({{"images"}})
    default_threat = "ciphertext-only"
    folder: str = ""
    def run(self, view, priors, rng):
        print("hello from {name}")
{body}
        return Reconstruction(view.images)
"""
HEAD = """
import ctypes, random, re, signal, subprocess, sys, threading, time
import numpy as np

def left_behind(folder):
    "Start processes of every kind that is hard to get rid of; they write down who they are."
    sleep = "import os, sys, time; open(os.path.join(sys.argv[1], str(os.getpid())), 'w'); time.sleep(600)"
    command = [sys.executable, "-S", "-c", sleep, folder]
    subprocess.Popen(command, close_fds=False)                          # holds the pipes open
    subprocess.Popen(command, start_new_session=True)
    subprocess.Popen(["sh", "-c", 'trap "" TERM HUP INT; "$@" & "$@"', "sh", *command])
    if os.fork() == 0:                                                  # a daemon, forked twice
        os.setsid()
        if os.fork() == 0:
            open(os.path.join(folder, str(os.getpid())), "w")
            time.sleep(600)
        os._exit(0)
    while len(os.listdir(folder)) < 5:
        time.sleep(0.01)
"""


def attacks(folder: Path, bodies: dict[str, str], head: str = HEAD) -> list[str]:
    """Write attacks whose `run` does what the bodies say, and return how they are named."""
    text = "".join(ATTACK.format(name=name, body="\n".join(f"        {line}" for line in body.splitlines()))
                   for name, body in bodies.items())
    file = plugin(folder, head + text)
    return [f"{file}:{name}" for name in bodies]


def lines(folder: Path) -> list[str]:
    return (folder / "tiny" / "results.csv").read_text().splitlines()


def rows_of(result: Result) -> dict[str, dict[str, Any]]:
    return {row["attack"].partition(":")[2].partition("(")[0] or row["attack"]: row for row in result.rows}


def log_of(result: Result, row: dict[str, Any]) -> str:
    file: Path = result.folder / "cells" / row["cell"] / "log.txt"
    assert file.stat().st_size < 2**19
    return file.read_text()


def one_sentence(reason: str) -> bool:
    return 10 < len(reason) < 1200 and reason.isprintable()


def until(condition: Callable[[], bool]) -> bool:
    """Wait for something that takes a moment."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# What test_runner.py has not: it has raising, too few images, NaN, values out of range, nothing returned, a capability
# that is not granted, os._exit, SIGKILL, a long sleep, a flood of prints, and too much memory.
FAULTS: dict[str, tuple[str, str, str]] = {
    "SysExit": ("sys.exit(3)", "failed", "SystemExit: 3"),
    "Interrupts": ("raise KeyboardInterrupt", "failed", "exited with status 1"),
    "Cancels": ("import asyncio; raise asyncio.CancelledError('mine')", "failed", "CancelledError: mine"),
    "BadError": ("class Bad(Exception):\n    def __str__(self):\n        raise ValueError\nraise Bad", "failed",
                 "Bad: no message"),
    "LongError": ("raise ValueError('a\\ud800\\x1b[31m' + 'x' * 10**7 + '\\nb')", "failed", "ValueError: a  [31mxxx"),
    "Recurses": ("def f(): return f()\nf()", "failed", "RecursionError"),
    "Segfaults": ("ctypes.string_at(0)", "killed", "signal 11"),
    "Aborts": ("os.abort()", "killed", "signal 6"),
    "Alarms": ("signal.alarm(1); time.sleep(600)", "killed", "signal 14"),
    "KillsItsGroup": ("os.kill(0, signal.SIGTERM); time.sleep(600)", "killed", "signal 15"),
    "WrongSize": ("return Reconstruction(torch.zeros(4, 3, 16, 15))", "failed", "[3, 16, 15]; it must be [3, 16, 16]"),
    "Infinite": ("return Reconstruction(torch.full((4, 3, 16, 16), float('inf')))", "failed", "not finite"),
    "Integers": ("return Reconstruction(torch.zeros(4, 3, 16, 16, dtype=torch.int64))", "failed", "not finite floats"),
    "AsksTheUser": ("input('password: ')", "failed", "EOFError"),
    "Deaf": ("for number in range(1, 32):\n    if number not in (9, 17, 19):\n        signal.signal(number, "
             "signal.SIG_IGN)\nthreading.Thread(target=time.sleep, args=(600,)).start()\ntime.sleep(600)",
             "timeout", "limit of 8 seconds"),
    "ClosesAllAndHangs": ("os.closerange(0, 256); time.sleep(600)", "timeout", "limit of 8 seconds"),
    "ClosesAll": ("os.closerange(3, 256)", "failed", "must close no file descriptor"),
    "FloodsAll": ("for _ in range(3):\n    if os.fork() == 0:\n        break\nfor _ in range(64):\n"
                  "    os.write(1, b'x' * 2**20)\nraise ValueError('wet')", "failed", "wet"),
    "GrowsInAChild": ("if os.fork() == 0:\n    held = b'x' * 3 * 2**28\ntime.sleep(600)", "killed",
                      "raise limits.memory_mib"),
    "GrowsShared": ("import mmap; held = mmap.mmap(-1, 2**30)\nfor _ in range(48): held.write(b'x' * 2**24)\n"
                    "time.sleep(600)", "killed", "raise limits.memory_mib"),
}
HARMLESS: dict[str, str] = {
    "GlobalState": "torch.manual_seed(1); random.seed(1); np.random.seed(1)\n"
                   "torch.set_num_threads(4); torch.set_default_dtype(torch.float64)",
    "ClosesOutput": "os.close(1); os.close(2)",
    "ClosesStreams": "sys.stdout.close(); sys.stderr = None",
    "WritesHere": "os.chdir(self.folder)\nopen('scribble.txt', 'w').write('x')",
    "LeavesThreads": "threading.Thread(target=time.sleep, args=(600,)).start()\n"
                     "import atexit; atexit.register(time.sleep, 600)",
    "StartsFew": "few = [b'x' * 2**24 for _ in range(8)]\n"  # forked pages are not counted once a process
                 "for _ in range(6):\n    if os.fork() == 0:\n        time.sleep(600)\ntime.sleep(2.5)",
}


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Run well-behaved attacks alone, then beside all that misbehave."""
    folder = tmp_path_factory.mktemp("wild")
    npz = small_npz(folder)
    tiny_run(tiny_plan(npz, ["none"], WELL, score=SCORE), folder / "calm", "processes")
    names = attacks(folder, {**{name: body for name, (body, _, _) in FAULTS.items()}, **HARMLESS})
    tables = [{"use": name, "folder": str(folder)} for name in names]
    # What is shared is there already: it must not meet the limits.
    (folder / "calm" / ".store").rename(folder / "calm-store")
    (folder / "wild").mkdir()
    (folder / "calm-store").rename(folder / "wild" / ".store")
    plan = tiny_plan(npz, ["none"], [WELL[0], *tables, WELL[1]], score=SCORE, limits=LIMITS)
    result, _ = tiny_run(plan, folder / "wild", "processes", jobs=4, fresh=True)
    return result, folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_row_with_its_reason_and_its_log(wild: tuple[Result, Path], name: str) -> None:
    result, _ = wild
    row = rows_of(result)[name]
    _, status, reason = FAULTS[name]
    assert row["status"] == status
    assert reason in row["reason"]
    assert one_sentence(row["reason"])
    assert f"hello from {name}" in log_of(result, row)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_harms_nobody_is_scored(wild: tuple[Result, Path], name: str) -> None:
    result, _ = wild
    row = rows_of(result)[name]
    assert (row["status"], row.get("reason")) == ("ok", None)
    assert row["ssim"] == pytest.approx(1)


def test_every_other_row_is_the_same_to_the_byte(wild: tuple[Result, Path]) -> None:
    _, folder = wild
    calm, beside = lines(folder / "calm"), lines(folder / "wild")
    assert len(calm) == 1 + len(WELL)
    assert len(beside) == len(calm) + len(FAULTS) + len(HARMLESS)
    assert set(calm) <= set(beside)


def test_a_crash_says_where_it_happened(wild: tuple[Result, Path]) -> None:
    result, _ = wild
    assert 'in run' in log_of(result, rows_of(result)["Segfaults"])


def test_nothing_is_left_in_the_store_of_what_failed(wild: tuple[Result, Path]) -> None:
    _, folder = wild
    assert list((folder / "wild" / ".store" / "tmp").iterdir()) == []
    assert (folder / "scribble.txt").exists()


def test_global_state_is_restored_where_jobs_share_a_process(tmp_path: Path, tiny_npz: Path) -> None:
    names = [{"use": name, "folder": str(tmp_path)}
             for name in attacks(tmp_path, {name: HARMLESS[name] for name in ("GlobalState", "WritesHere")})]
    score: dict[str, Any] = {"score": {"groups": ["ssim", "task"]}}
    tiny_run(tiny_plan(tiny_npz, ["none"], ["memorization", *WELL], **score), tmp_path / "calm")
    tiny_run(tiny_plan(tiny_npz, ["none"], [*names, "memorization", *WELL], **score), tmp_path / "wild")
    assert set(lines(tmp_path / "calm")) <= set(lines(tmp_path / "wild"))
    assert all(",ok," in line for line in lines(tmp_path / "wild")[1:])


def test_a_relative_output_folder_outlives_a_change_of_folder(tmp_path: Path, tiny_npz: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = attacks(tmp_path, {"Moves": "os.chdir('/')"})
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none"], [name], score=SCORE), Path("runs"))
    assert [row["status"] for row in result.rows] == ["ok"]
    assert Path.cwd() == tmp_path
    assert Store(Path("runs")).root.is_absolute()


LEAVERS = {
    "Hurries": ("if os.fork() == 0:\n    os.setsid()\n    open(os.path.join(self.folder, str(os.getpid())), 'w')\n"
                "    time.sleep(600)\nwhile not os.listdir(self.folder): pass", "ok"),
    "Returns": ("left_behind(self.folder)", "ok"),
    "Raises": ("left_behind(self.folder)\nraise ValueError('no idea')", "failed"),
    # Who dies without a word has been seen with its children before: the engine looks every second.
    "Dies": ("left_behind(self.folder)\ntime.sleep(3)\nos._exit(0)", "failed"),
    "Hangs": ("left_behind(self.folder)\ntime.sleep(600)", "timeout"),
}


def test_no_process_outlives_its_cell(tmp_path: Path, tiny_npz: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["none"], WELL[:1], score=SCORE), tmp_path, "processes")
    names = attacks(tmp_path, {name: body for name, (body, _) in LEAVERS.items()})
    tables = [{"use": name, "folder": str(tmp_path / name.rpartition(":")[2])} for name in names]
    for table in tables:
        Path(table["folder"]).mkdir()
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none"], [*WELL[:1], *tables], score=SCORE, limits=LIMITS), tmp_path,
                         "processes", jobs=4)
    rows = rows_of(result)
    assert rows["as-released"]["status"] == "ok"
    for name, (_, status) in LEAVERS.items():
        assert rows[name]["status"] == status, name
        pids = [int(file.name) for file in (tmp_path / name).iterdir()]
        assert len(pids) == (1 if name == "Hurries" else 5)
        assert until(lambda pids=pids: not any(alive(pid) for pid in pids)), name  # type: ignore[misc]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PRIORS = """
@dataclass(frozen=True)
class Lesson(Prior):
    needs = frozenset({{"public"}})
    what: str
    def train(self, view, rng):
        print("hello from", self.what)
        if self.what == "raises": raise ValueError("nothing learnt")
        if self.what == "hangs": time.sleep(600)
        if self.what == "exits": os._exit(3)
        if self.what == "images": return {{"images": [1, 2]}}
        return {{"mean": view.public.pixels.mean(0)}}

@dataclass(frozen=True)
class Learns(Attack):
    requires = frozenset({{"images", "public"}})
    default_threat = "ciphertext-only"
    what: str = "nothing"
    def priors(self, view):
        if self.what == "no prior": return {{"lesson": 3}}
        if self.what == "odd parameter": return {{"lesson": Lesson(what=1j)}}
        return {{"lesson": Lesson(self.what)}}
    def run(self, view, priors, rng):
        return Reconstruction(priors["lesson"]["mean"].expand(view.n_targets, -1, -1, -1))

class LearnsToo(Learns):
    pass
"""
TAUGHT = {
    "nothing": ("ok", ""),
    "raises": ("failed", "prior: ValueError: nothing learnt"),
    "hangs": ("timeout", "prior: ran past its limit of 8 seconds"),
    "exits": ("failed", "prior: the process exited with status 3"),
    "no prior": ("failed", "priors: priors() must give dataclasses derived from ppbench.attack.Prior"),
    "odd parameter": ("failed", "priors: the parameters of a prior must be JSON values"),
}


def test_a_prior_that_misbehaves_costs_the_cells_that_want_it(tmp_path: Path, tiny_npz: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["none"], WELL, score=SCORE), tmp_path, "processes")
    calm = lines(tmp_path)
    file = plugin(tmp_path, (HEAD + PRIORS).replace("{{", "{").replace("}}", "}"))
    tables = [{"use": f"{file}:{name}", "what": what} for what in TAUGHT for name in ("Learns", "LearnsToo")]
    result, _ = tiny_run(tiny_plan(tiny_npz, ["none"], [*WELL, *tables], score=SCORE, limits=LIMITS), tmp_path,
                         "processes", jobs=4)
    assert set(calm) <= set(lines(tmp_path))
    found = [row for row in result.rows if "Learns" in row["attack"]]
    for row, (what, (status, reason)) in zip(found, [pair for pair in TAUGHT.items() for _ in range(2)], strict=True):
        assert row["status"] == status, what
        assert (row.get("reason") or "").startswith(reason)
        if row.get("reason", "").startswith("prior: "):
            assert f"hello from {what}" in log_of(result, row)
    assert result.computed["prior"] == 1  # the one that learns, for both; the floor's is in the store


DEFENSE = """
@dataclass(frozen=True)
class Bad(Defense):
    key_scopes = ("global",)
    what: str
    def keys(self, count, shape, rng):
        print("hello from", self.what)
        if self.what == "keys": raise ValueError("no key")
        return {"key": torch.zeros(count)}
    def protect(self, private, keys, rng):
        print("hello from", self.what)
        images = private.pixels
        if self.what == "hangs": time.sleep(600)
        if self.what == "exits": os._exit(3)
        if self.what == "segfaults": ctypes.string_at(0)
        if self.what == "grows": held = b"x" * 3 * 2**28; time.sleep(600)
        if self.what == "shape": images = images[0]
        if self.what == "infinite": images = images / 0
        if self.what == "few": return Release(images[:1], private.labels[:1], torch.arange(1))
        if self.what == "other": return images
        images.mul_(0.5)  # private images are its own copy
        torch.set_default_dtype(torch.float64); torch.manual_seed(0); torch.set_num_threads(4)
        return Release(images, private.labels, torch.arange(len(private)))
    def query(self, images, keys, rng):
        if self.what == "query": sys.exit(5)
        return images
"""
BAD = {
    "keys": ("failed", "keys: ValueError: no key"),
    "hangs": ("timeout", "release: ran past its limit of 8 seconds"),
    "exits": ("failed", "release: the process exited with status 3"),
    "segfaults": ("killed", "release: the process was ended by signal 11"),
    "grows": ("killed", "release: used "),
    "shape": ("failed", "release: the defense must release images [M, c, h, w]"),
    "infinite": ("failed", "release: the defense released values outside [0, 1]"),
    "few": ("failed", "release: the defense released 1 images for 4 targets"),
    "other": ("failed", "release: the defense returned a Tensor"),
    "query": ("failed", "release: SystemExit: 5"),
    "writes on its input": ("ok", ""),
}


def test_a_defense_that_misbehaves_costs_its_own_cells(tmp_path: Path, tiny_npz: Path) -> None:
    tiny_run(tiny_plan(tiny_npz, ["none"], WELL, score=SCORE), tmp_path, "processes")
    calm = lines(tmp_path)
    file = plugin(tmp_path, HEAD + DEFENSE, "bad.py")
    plan = tiny_plan(tiny_npz, [], WELL, score=SCORE, limits=LIMITS,
                     defense=[{"use": "none"}, *({"use": f"{file}:Bad", "what": what} for what in BAD)])
    result, _ = tiny_run(plan, tmp_path, "processes", jobs=4)
    assert set(calm) <= set(lines(tmp_path))
    for row in result.rows[len(WELL):]:
        what = json.loads(row["defense_params"])["what"]
        status, reason = BAD[what]
        assert row["status"] == status, what
        assert (row.get("reason") or "").startswith(reason)
        if status != "ok":
            assert f"hello from {what}" in log_of(result, row)


def test_the_server_of_workers_imports_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "lpips.py").write_text("open('imported', 'w').close()")
    script = ("import sys; sys.path.remove('')\n"  # like the command `ppbench`, which does not look there either
              "from ppbench.engine import processes\nprocesses.PRELOAD = ['lpips']\n"
              "with processes._clean_start():\n"
              "    process = processes.Processes(1)._context.Process(target=print)\n    process.start()\n"
              "process.join()\nimport os; print(process.exitcode, os.environ.get(processes.SAFE_PATH))")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 None"
    assert not (tmp_path / "imported").exists()


# --- an attack holds nothing that it was not granted

SEALED = """
import json
from pathlib import Path
from ppbench.data import Dataset, Pool

@dataclass(frozen=True)
class Planted(Dataset):
    "Canaries in private, noise elsewhere."
    path: str
    def pools(self, size):
        archive = np.load(self.path)
        return {part: Pool(archive[part][..., None], np.arange(len(archive[part])) % 3)
                for part in ("private", "public", "test")}

@dataclass(frozen=True)
class Permutes(PerImageDefense):
    "Pixels in another order, which follows from a key that is a canary."
    key_scopes = ("global",)
    def keys(self, count, shape, rng):
        return {"secret": torch.randint(2**40, (count, 1), generator=rng) + KEY_STEP * torch.arange(256)}
    def encrypt(self, images, key, rng):
        order = torch.randperm(256, generator=torch.Generator().manual_seed(int(key["secret"][0, 0])))
        return images.flatten(1)[:, order].reshape(images.shape)

def report(folder, stage):
    (Path(folder) / f"{stage}.json").write_text(json.dumps(search()))

@dataclass(frozen=True)
class Learns(Prior):
    needs = frozenset({"public"})
    folder: str
    def train(self, view, rng):
        report(self.folder, "prior")
        return {"nothing": torch.zeros(1)}

@dataclass(frozen=True)
class Searches(Attack):
    requires = frozenset({"images", "oracle"})
    default_threat = "chosen-plaintext"
    folder: str
    opens: str = ""
    all: bool = True
    def priors(self, view):
        if not self.all: return {}
        report(self.folder, "priors")
        return {"nothing": Learns(self.folder)}
    def queries(self, view):
        if self.all: report(self.folder, "queries")
        return torch.zeros(1, *view.image_shape)
    def run(self, view, priors, rng):
        kept = open(self.opens, "rb") if self.opens else None
        report(self.folder, "attack")
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape))

@dataclass(frozen=True)
class Trains(TrainingAttack):
    requires = frozenset({"model", "training"})
    default_threat = "malicious-trainer"
    folder: str
    def finish(self, release, state, rng):
        report(self.folder, "finish")
        return state
    def run(self, view, priors, rng):
        report(self.folder, "attack")
        return Reconstruction(torch.zeros(view.n_targets, *view.image_shape))
"""


def searched(folder: Path, defense: str, tables: list[dict[str, Any]]) -> list[dict[str, list[str]]]:
    """Run attacks that search their own processes; return what each of them found in every stage."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (52, 16, 16)).astype(np.uint8)
    np.savez(folder / "planted.npz", private=canary.planted(24), public=noise[:40], test=noise[40:])
    file = plugin(folder, Path(canary.__file__).read_text() + SEALED, "sealed.py")
    for i, table in enumerate(tables):
        (folder / str(i)).mkdir()
        table |= {"use": f"{file}:{table['use']}", "folder": str(folder / str(i))}
    plan = tiny_plan(folder / "tiny.npz", [defense.format(file)], tables, score=SCORE,
                     dataset=[{"use": f"{file}:Planted", "path": str(folder / "planted.npz"), "private": 24,
                               "public": 40, "test": 12}])
    result, _ = tiny_run(plan, folder / "runs", "processes")
    assert [(row["status"], row.get("reason")) for row in result.rows] == [("ok", None)] * len(tables)
    return [{found.stem: json.loads(found.read_text()) for found in (folder / str(i)).glob("*.json")}
            for i in range(len(tables))]


def test_an_attack_holds_neither_private_images_nor_keys(tmp_path: Path) -> None:
    found, training, granted = searched(tmp_path / "sealed", "{}:Permutes", [
        {"use": "Searches"}, {"use": "Trains"}, {"use": "Searches", "threats": ["full-knowledge"], "all": False}])
    assert found == {"queries": [], "priors": [], "prior": [], "attack": []}
    assert training == {"finish": [], "attack": []}
    # Nor does the process from which the workers are forked, whose memory they inherit.
    server = next(child for child in psutil.Process().children()
                  if "multiprocessing.forkserver" in " ".join(child.cmdline()))
    assert canary.search(str(server.pid)) == []
    # The search is able to find them: here the key is granted.
    assert granted == {"attack": ["keys in memory"]}


def test_what_is_granted_or_opened_is_found(tmp_path: Path) -> None:
    (found,) = searched(tmp_path / "open", "none", [
        {"use": "Searches", "opens": str(tmp_path / "open" / "planted.npz"), "all": False}])
    assert {"images as bytes in open file", "images as floats in memory"} <= set(found["attack"])


@pytest.mark.parametrize(("kind", "content"), [
    ("images as bytes", canary.planted(2).tobytes()),
    ("images as floats", (canary.planted(2).astype(np.float32) / np.float32(255)).tobytes()),
    ("keys", (np.arange(256) * canary.KEY_STEP + 99).tobytes()),
])
def test_every_kind_of_canary_is_seen_wherever_it_lies(kind: str, content: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes()
    for offset in (0, 8, 40, 1000):
        assert canary.kinds(noise[:offset] + content + noise) == [kind]
    assert canary.kinds(noise + bytes(9999)) == []

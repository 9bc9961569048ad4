"""The artefact store: what was computed once is found again, and nothing half-written is ever believed."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ppbench.files import file_digest, write_synced

_DATA, _META, _SCRATCH, _PARTIAL = "data.safetensors", "meta.json", "tmp", "partial"


@dataclass(frozen=True)
class Artefact:
    """A stored value.

    Attributes:
        kind: `split`, `release`, `keys`, `victim`, `view`, `prior`, ...
        key: digest of all it depends on.
        path: the safetensors file.
        sha256: digest of the file: what depends on the value depends on this.
        info: small facts beside the value (JSON), say an accuracy.
        seconds: how long it took to compute.
    """

    kind: str
    key: str
    path: Path
    sha256: str
    info: dict[str, Any]
    seconds: float


class Store:
    """A folder `<root>/<kind>/<key>/{meta.json, data.safetensors}`; safe for several writers at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # a plug-in may change the working folder
        self._sweep()
        self._checked: dict[tuple[str, str], Artefact] = {}

    def find(self, kind: str, key: str) -> Artefact | None:
        """Return a stored artefact; None if it is absent or damaged (its checksum is compared once)."""
        if (kind, key) in self._checked:
            return self._checked[kind, key]
        folder = self.root / kind / key
        try:
            meta = json.loads((folder / _META).read_text())
            intact = file_digest(folder / _DATA) == meta["sha256"] and _self_digest(meta) == meta["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not intact:
            return None
        found = Artefact(kind, key, folder / _DATA, meta["sha256"], meta["info"], meta["seconds"])
        self._checked[kind, key] = found
        return found

    def publish(self, kind: str, key: str, data: Path, info: dict[str, Any], seconds: float) -> Artefact:
        """Move a finished file into the store, whole or not at all; a damaged predecessor is replaced.

        Where another writer was first, its artefact stays and is returned.
        """
        self._checked.pop((kind, key), None)
        meta = {"sha256": file_digest(data), "info": info, "seconds": seconds}
        meta["digest"] = _self_digest(meta)
        with self.scratch() as scratch:
            fresh = scratch / key
            fresh.mkdir()
            data.rename(fresh / _DATA)
            write_synced(fresh / _META, json.dumps(meta, sort_keys=True).encode())
            _sync(fresh / _DATA)
            final = self.root / kind / key
            final.parent.mkdir(parents=True, exist_ok=True)
            with _locked(final.parent):
                # Where another run published the same artefact in between, that one stays: it may be open.
                if self.find(kind, key) is None:
                    with contextlib.suppress(FileNotFoundError):
                        final.rename(scratch / "damaged")
                    fresh.rename(final)
                    _sync(final.parent)
        shutil.rmtree(self.partial(kind, key), ignore_errors=True)
        found = self.find(kind, key)
        if found is None:
            raise OSError(f"{final} cannot be read back: check the disk")
        return found

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder on the store's own file system; it is removed afterwards.

        Where the process is killed before that, the next one removes it.
        """
        parent = self.root / _SCRATCH
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            with _locked(parent):
                folder = Path(tempfile.mkdtemp(dir=parent))
                held.enter_context(_locked(folder))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def partial(self, kind: str, key: str) -> Path:
        """Name the folder where a computation keeps what it has done so far; `publish` removes it."""
        return self.root / _PARTIAL / f"{kind}-{key}"

    def _sweep(self) -> None:
        """Remove the scratch folders that nobody holds any more."""
        parent = self.root / _SCRATCH
        if not parent.is_dir():
            return
        with _locked(parent):
            for folder in parent.iterdir():
                with contextlib.suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a folder's lock between threads and processes; it falls with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _self_digest(meta: dict[str, Any]) -> str:
    return json_digest({name: value for name, value in meta.items() if name != "digest"})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

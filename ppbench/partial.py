"""What a long computation has reached so far: kept on disk, so that a killed run goes on where it was."""

import contextlib
import json
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from ppbench.codec import Tensors
from ppbench.files import write_atomic

PROGRESS = "progress.json"
_DIGEST = 64  # hex digits in front of the tensors
_EVERY = 0.5  # seconds between two notes of progress


@dataclass
class Partial:
    """A folder for what is done so far, and for saying how far that is; without a folder nothing is kept.

    A stage gets the same folder again when it is run again with the same inputs; it goes when the stage ends well.

    Attributes:
        folder: where to keep things; it need not exist.
    """

    folder: Path | None = None
    _said: float = 0.0

    def save(self, name: str, values: Tensors) -> None:
        """Keep tensors under a name (letters, digits, `-`), in place of what was there; whole or not at all."""
        if self.folder is not None:
            content = save({key: value.detach().cpu().contiguous().clone() for key, value in values.items()})
            # What cannot be kept (a full disk; another run that was first) is only work to be done again.
            with contextlib.suppress(OSError):
                write_atomic(self._file(name), sha256(content).hexdigest().encode() + content)

    def load(self, name: str) -> Tensors | None:
        """Return what was kept under a name; None where nothing was, or where it is damaged."""
        if self.folder is None:
            return None
        try:
            content = self._file(name).read_bytes()
            if sha256(content[_DIGEST:]).hexdigest().encode() != content[:_DIGEST]:
                return None
            return load(content[_DIGEST:])
        except (OSError, SafetensorError):
            return None

    def report(self, done: int, total: int, what: str) -> None:
        """Say how far the computation is, say (3, 62, "batches"); at most twice a second, the end always."""
        if self.folder is None or (done < total and time.monotonic() - self._said < _EVERY):
            return
        self._said = time.monotonic()
        with contextlib.suppress(OSError):  # to say so is not worth failing for
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{PROGRESS}"
            temporary.write_text(json.dumps({"done": done, "total": total, "what": what}))
            temporary.replace(self.folder / PROGRESS)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


_current: ContextVar[Partial | None] = ContextVar("partial", default=None)


def partial() -> Partial:
    """Return the running stage's own; outside a stage one that keeps nothing."""
    return _current.get() or Partial()


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Let `partial()` keep things in a folder."""
    token = _current.set(Partial(folder))
    try:
        yield
    finally:
        _current.reset(token)


def read_progress(folder: Path) -> str:
    """Return how far a computation said that it is, as "3/62 batches"; "" where it said nothing."""
    try:
        found = json.loads((folder / PROGRESS).read_text())
        return f"{int(found['done'])}/{int(found['total'])} {str(found['what'])[:40]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

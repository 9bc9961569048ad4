"""Files that are written whole or not at all, and their digests."""

import os
from hashlib import sha256
from pathlib import Path

from ppbench.errors import UserError


def resolved(folder: Path, path: str) -> Path:
    """Return where a path lies that is given relative to a folder.

    Raises:
        UserError: it is no path at all, say of a home that does not exist.
    """
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path!r} is no path ({error}): give one that exists") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_synced(temporary, content)
    temporary.replace(path)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

"""CIFAR-10, CIFAR-100 and STL-10 as torchvision keeps them: read from `root`, downloaded there on first use."""

import socket
import urllib.error
import urllib.request
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any, ClassVar

import numpy as np

from ppbench.data import Dataset, Pool
from ppbench.datasets._resize import squares
from ppbench.errors import UserError

PROBE_SECONDS = 3.0
STALL_SECONDS = 30.0


class _Hub(Dataset):
    """What the three data sets share: find the files, or fetch them once."""

    title: ClassVar[str]
    root: str
    download: bool

    @abstractmethod
    def _source(self) -> Any:
        """Return torchvision's class."""

    @abstractmethod
    def _read(self, test: bool, download: bool) -> Pool:
        """Read one of the pools at its own size through torchvision, which checks the files' MD5 first."""

    def pools(self, size: int | None) -> Mapping[str, Pool]:
        """Return the pools `train` and `test`.

        Raises:
            UserError: the files are absent or damaged and cannot be downloaded.
        """
        found = {name: self._find(test=name == "test") for name in ("train", "test")}
        return {name: Pool(squares(pixels, size), labels) for name, (pixels, labels) in found.items()}

    def _find(self, test: bool) -> Pool:
        try:
            return self._read(test, download=False)
        except (RuntimeError, OSError):
            return self._fetch(test)

    def _fetch(self, test: bool) -> Pool:
        url = self._source().url
        problem = f"{self.title} is not (whole) in root={self.root!r}"
        remedy = f"put the unpacked {url.rpartition('/')[2]} there or set root to the folder that has it"
        if not self.download:
            raise UserError(f"{problem} and download is off: {remedy}")
        if not _reachable(url):
            raise UserError(f"{problem} and {url} cannot be reached: {remedy}")
        try:
            with _stalls_end():
                return self._read(test, download=True)
        except Exception as error:  # torchvision lets through whatever sockets, tar and the file system raise
            raise UserError(f"{problem} and its download from {url} failed ({error}): {remedy}") from error


@dataclass(frozen=True)
class _Cifar(_Hub):
    def _read(self, test: bool, download: bool) -> Pool:
        data = self._source()(self.root, train=not test, download=download)
        return Pool(data.data, np.array(data.targets, dtype=np.int64))


@dataclass(frozen=True)
class Cifar10(_Cifar):
    """CIFAR-10: 50,000 + 10,000 colour images of 10 classes, 32 x 32 (Krizhevsky 2009).

    Attributes:
        root: the folder that holds, or shall hold, `cifar-10-batches-py`.
        download: whether the files may be downloaded (170 MB) where they are absent.
    """

    title = "CIFAR-10"
    root: str = "data"
    download: bool = True

    def _source(self) -> Any:
        from torchvision.datasets import CIFAR10

        return CIFAR10


@dataclass(frozen=True)
class Cifar100(_Cifar):
    """CIFAR-100: 50,000 + 10,000 colour images of 100 classes, 32 x 32 (Krizhevsky 2009).

    Attributes:
        root: the folder that holds, or shall hold, `cifar-100-python`.
        download: whether the files may be downloaded (170 MB) where they are absent.
    """

    title = "CIFAR-100"
    root: str = "data"
    download: bool = True

    def _source(self) -> Any:
        from torchvision.datasets import CIFAR100

        return CIFAR100


@dataclass(frozen=True)
class Stl10(_Hub):
    """STL-10: 5,000 + 8,000 labelled colour images of 10 classes, 96 x 96 (Coates et al. 2011).

    Attributes:
        root: the folder that holds, or shall hold, `stl10_binary`.
        download: whether the files may be downloaded (2.6 GB) where they are absent.
    """

    default_size = 96
    title = "STL-10"
    root: str = "data"
    download: bool = True

    def _source(self) -> Any:
        from torchvision.datasets import STL10

        return STL10

    def _read(self, test: bool, download: bool) -> Pool:
        data = self._source()(self.root, split="test" if test else "train", download=download)
        return Pool(data.data.transpose(0, 2, 3, 1), data.labels.astype(np.int64))


def _reachable(url: str) -> bool:
    """Ask a server for its headers: False when there is no answer in three seconds.

    In a thread of its own, because looking a name up ignores time-outs.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
                answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except OSError:
            answers.append(False)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return any(answers)


@contextmanager
def _stalls_end() -> Iterator[None]:
    """Let a connection that sends nothing fail: torchvision opens its own without a time-out."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

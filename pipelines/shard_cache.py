"""Files of a remote store kept on the local disk, named by their content, within a size limit.

All processes of a machine share one folder. A file is fetched by one of them, while the others that want it wait, and
written under a temporary name and renamed, so another process sees it whole or not at all; one that is deleted while it
is mapped stays readable until its reader lets go. Nothing in the folder is touched but files named as the cache names
them, so that a folder with other content is safe.

A kept file is hashed once a machine. Its time of change is then set to a fixed moment, which any later write undoes;
its time of access says when it was last asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

FOLDER_VARIABLE = "MASKRAY_CACHE"
LIMIT_VARIABLE = "MASKRAY_CACHE_GB"
_DEFAULT_GB = 50.0
_KEPT_NAME = re.compile(r"[0-9a-f]{64}")
_TEMP_PREFIX = ".tmp-"
_LOCK_PREFIX = ".lock-"
_LOCK_DIGITS = 2  # 256 locks
_STALE_AFTER_S = 24 * 3600.0
_VERIFIED_NS = 10**9  # one second into 1970: no clock that is nearly right writes that


class ShardCacheError(ValueError):
    """Settings of the cache that cannot be used; one line that says what to do."""


class Cached(NamedTuple):
    """A file's bytes.

    Attributes:
        buffer: mapped from the disk, or held in memory.
        is_mapped: which of the two.
        is_verified: whether their sha256 was found right, now or earlier on this machine.
    """

    buffer: pa.Buffer
    is_mapped: bool
    is_verified: bool


class ShardCache:
    """A folder of whole files by their sha256; the longest unused make room for new ones."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use a folder, made when the first file comes, for at most `limit_bytes` of files."""
        self._folder, self._limit = folder, limit_bytes

    @classmethod
    def from_environment(cls) -> ShardCache:
        """The cache in $MASKRAY_CACHE (default: maskray-cache in the temporary folder) of $MASKRAY_CACHE_GB (50).

        Raises:
            ShardCacheError: the limit is no number >= 0.
        """
        folder = os.environ.get(FOLDER_VARIABLE) or str(Path(tempfile.gettempdir()) / f"maskray-cache-{os.getuid()}")
        raw = os.environ.get(LIMIT_VARIABLE) or str(_DEFAULT_GB)
        try:
            limit = int(float(raw) * 1e9)
        except (ValueError, OverflowError) as error:
            raise ShardCacheError(
                f"{LIMIT_VARIABLE} is {raw!r}, wanted gigabytes such as 50; 0 keeps nothing"
            ) from error
        if limit < 0:
            raise ShardCacheError(f"{LIMIT_VARIABLE} is {raw!r}, wanted gigabytes such as 50; 0 keeps nothing")
        return cls(Path(folder), limit)

    @classmethod
    def nothing(cls) -> ShardCache:
        """One that neither keeps files nor knows any."""
        return cls(Path(), 0)

    @property
    def limit_bytes(self) -> int:
        """Most bytes of files that are kept."""
        return self._limit

    def window(self, sets: Sequence[Sequence[int]]) -> int:
        """Shards of each data set to shuffle together so that two such windows fit; 0 where all shards fit at once.

        Args:
            sets: for each data set the lengths of its shards in bytes.
        """
        if sum(map(sum, sets)) <= self._limit:
            return 0
        largest = sum(max(lengths, default=0) for lengths in sets)
        return max(1, self._limit // (2 * largest))

    def read(self, sha256: str, num_bytes: int, fetch: Callable[[], bytes]) -> Cached:
        """A file's bytes: mapped from the disk, or fetched and kept there if they are right and fit.

        A full or read-only disk is no error: the bytes are then held in memory alone. A file of the store that does
        not have this hash is returned as it is, not verified.

        Args:
            sha256: of the content.
            num_bytes: its length.
            fetch: reads the file from its store.
        """
        path = self._folder / sha256
        if not self._limit:
            return self._fetched(path, sha256, num_bytes, fetch)
        if (kept := self._kept(path, sha256, num_bytes)) is not None:
            return kept
        if num_bytes > self._limit:
            return self._fetched(path, sha256, num_bytes, fetch)
        with self._turn(sha256):  # whoever was first may have fetched it meanwhile
            kept = self._kept(path, sha256, num_bytes)
            return self._fetched(path, sha256, num_bytes, fetch) if kept is None else kept

    def _fetched(self, path: Path, sha256: str, num_bytes: int, fetch: Callable[[], bytes]) -> Cached:
        data = fetch()
        is_right = len(data) == num_bytes and hashlib.sha256(data).hexdigest() == sha256
        if is_right and num_bytes <= self._limit:
            with contextlib.suppress(OSError):
                self._make_room(num_bytes)
                self._write(path, data)
                return Cached(_mapped(path), is_mapped=True, is_verified=True)
        return Cached(pa.py_buffer(data), is_mapped=False, is_verified=is_right)

    def _kept(self, path: Path, sha256: str, num_bytes: int) -> Cached | None:
        """A kept file that is what its name says; one that is not is deleted."""
        with contextlib.suppress(OSError):
            facts = path.stat()
            if facts.st_size == num_bytes:
                buffer = _mapped(path)
                if facts.st_mtime_ns == _VERIFIED_NS or hashlib.sha256(buffer).hexdigest() == sha256:
                    _mark_verified(path)
                    return Cached(buffer, is_mapped=True, is_verified=True)
            path.unlink()
        return None

    @contextlib.contextmanager
    def _turn(self, sha256: str) -> Iterator[None]:
        """Alone on this machine with a file, or with others of its lock; a process that dies lets go of it.

        A few locks serve all files, so that none is ever deleted. Where there can be no lock, everyone goes on.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self._make_folder()
                handle = os.open(self._folder / f"{_LOCK_PREFIX}{sha256[:_LOCK_DIGITS]}", os.O_CREAT | os.O_RDWR, 0o600)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _make_folder(self) -> None:
        # Strangers on the machine must not be able to put shards here.
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _write(self, path: Path, data: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=_TEMP_PREFIX)
        temp = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            _mark_verified(temp)
            temp.replace(path)
        except OSError:
            temp.unlink(missing_ok=True)
            raise

    def _make_room(self, num_bytes: int) -> None:
        """Delete the longest unused files until so many bytes fit.

        Raises:
            OSError: they do not, since files cannot be deleted.
        """
        self._make_folder()
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total + num_bytes <= self._limit:
                return
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)  # another process may have been first
                total -= size
        if total + num_bytes > self._limit:
            raise OSError(errno.ENOSPC, "no room in the cache", str(self._folder))

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Time of the last use, length and path of the kept files; what killed writers left is deleted."""
        for file in self._folder.iterdir():
            with contextlib.suppress(OSError):
                facts = file.lstat()
                if _KEPT_NAME.fullmatch(file.name):
                    yield facts.st_atime_ns, facts.st_size, file
                elif file.name.startswith(_TEMP_PREFIX) and time.time() - facts.st_mtime > _STALE_AFTER_S:
                    file.unlink()


def _mapped(path: Path) -> pa.Buffer:
    return pa.memory_map(str(path)).read_buffer()


def _mark_verified(path: Path) -> None:
    os.utime(path, ns=(time.time_ns(), _VERIFIED_NS))

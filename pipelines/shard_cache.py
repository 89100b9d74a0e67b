"""Files of a remote store kept on the local disk, named by their content, within a size limit.

All processes of a machine share one folder. A file is written under a temporary name and renamed, so another process
sees it whole or not at all; one that is deleted while it is mapped stays readable until its reader lets go.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

FOLDER_VARIABLE = "MASKRAY_CACHE"
LIMIT_VARIABLE = "MASKRAY_CACHE_GB"
_DEFAULT_GB = 50.0


class ShardCacheError(ValueError):
    """Settings of the cache that cannot be used; one line that says what to do."""


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

    def read(self, sha256: str, num_bytes: int, fetch: Callable[[], bytes]) -> pa.Buffer:
        """A file's bytes: mapped from the disk, or fetched and kept there if it fits.

        A full or read-only disk is no error: the bytes are then held in memory alone. The caller checks the hash.

        Args:
            sha256: of the content.
            num_bytes: its length; a kept file of another length is fetched again.
            fetch: reads the file from its store.
        """
        path = self._folder / sha256
        with contextlib.suppress(OSError):
            if path.stat().st_size == num_bytes:
                os.utime(path)
                return pa.memory_map(str(path)).read_buffer()
        data = fetch()
        if len(data) != num_bytes or num_bytes > self._limit:
            return pa.py_buffer(data)
        try:
            self._make_room(num_bytes)
            self._write(path, data)
            return pa.memory_map(str(path)).read_buffer()
        except OSError:
            return pa.py_buffer(data)

    def drop(self, sha256: str) -> None:
        """Forget a file, such as one that turned out to be damaged on this disk."""
        with contextlib.suppress(OSError):
            (self._folder / sha256).unlink()

    def _write(self, path: Path, data: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    def _make_room(self, num_bytes: int) -> None:
        # Strangers on the machine must not be able to put shards here.
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = []
        for file in self._folder.iterdir():
            with contextlib.suppress(OSError):  # another process may delete at the same time
                facts = file.stat()
                kept.append((facts.st_mtime_ns, facts.st_size, file))
        total = sum(size for _, size, _ in kept)
        for _, size, file in sorted(kept):
            if total + num_bytes <= self._limit:
                return
            with contextlib.suppress(OSError):
                file.unlink()
            total -= size

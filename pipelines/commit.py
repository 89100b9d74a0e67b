"""How a file comes to be: all of it or none of it, also when the machine dies in between.

On a local or network file system: temporary name in the same folder, flush, fsync, rename, fsync of the
folder. In an object store one PUT is atomic already, but none can be made to fail where the name exists: of two runs
that write one folder there at the same time, the last one wins. So one run a folder; on a file system a second one is
told. Every file that maskray writes for others to read goes through `write_file`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

from pyarrow import fs as pafs

from pipelines import storage

FAULT_POINTS = (
    "before_temp",
    "after_temp_write",
    "before_fsync",
    "before_rename",
    "after_rename",
    "after_folder_fsync",
)
_SPOOL_BYTES = 2**26
_PIECE_BYTES = 2**23
_STALE_AFTER_S = 24 * 3600.0
_TEMP_NAME = re.compile(r"^\..+\.tmp-(?P<host>[A-Za-z0-9_.-]*?)-(?P<pid>\d+)-[0-9a-f]{12}$")


class Faults(Protocol):
    """Named points on the way of a file; tests raise or kill there, production does nothing."""

    def reach(self, point: str) -> None:
        """Called at each of `FAULT_POINTS`, in that order."""


class NoFaults:
    """The production twin of a fault injector."""

    def reach(self, point: str) -> None:
        """Do nothing."""


class CommitConflictError(ValueError):
    """Another writer committed the same file first; what it wrote was left alone."""


def sha256_of(data: bytes | memoryview) -> str:
    """The sha256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Digest:
    """The sha256 of chunks that pass."""

    def __init__(self) -> None:
        """Nothing has passed."""
        self._sha256 = hashlib.sha256()

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, counted in."""
        for chunk in chunks:
            self._sha256.update(chunk)
            yield chunk

    @property
    def hex(self) -> str:
        """64 hexadecimal digits of what has passed."""
        return self._sha256.hexdigest()


def sealed(kind: str, version: int, body: Mapping[str, Any]) -> bytes:
    """A JSON file that names its kind and version and carries a checksum over all the rest; see `unsealed`."""
    whole = {**body, "kind": kind, "format_version": version}
    return _canonical({**whole, "checksum": sha256_of(_canonical(whole))})


def unsealed(data: bytes, kind: str, version: int) -> dict[str, Any]:
    """The body that `sealed` was given.

    Raises:
        ValueError: not such a file, one of another kind or version, or one of which a single byte has changed.
    """
    try:
        body: dict[str, Any] = dict(json.loads(data))
        found = body.pop("kind"), body.pop("format_version")
        body.pop("checksum", None)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if found != (kind, version):
        raise ValueError(f"kind {found[0]!r}, version {found[1]!r}")
    if data != sealed(kind, version, body):
        raise ValueError("it does not match its own checksum")
    return body


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_file(
    filesystem: pafs.FileSystem,
    path: str,
    data: bytes | memoryview,
    *,
    exclusive: bool = False,
    faults: Faults | None = None,
) -> None:
    """Write a whole file so that a reader sees the old state or the new one, never a part.

    Args:
        filesystem: where; see `storage.open_uri`.
        path: the final path; its folder is created where missing.
        data: the whole content.
        exclusive: refuse when the file exists already (a manifest is committed once).
        faults: fault points for tests.

    Raises:
        CommitConflictError: `exclusive`, and another writer was first.
        OSError: the store failed (no space, no permission); the final path is as it was.
    """
    write_chunks(filesystem, path, [data], exclusive=exclusive, faults=faults)


def write_chunks(
    filesystem: pafs.FileSystem,
    path: str,
    chunks: Iterable[bytes | memoryview],
    *,
    exclusive: bool = False,
    faults: Faults | None = None,
) -> None:
    """As `write_file`, of a content that need not be in memory as a whole."""
    faults = faults or NoFaults()
    if storage.is_local(filesystem):
        _write_local(Path(path), chunks, exclusive, faults)
        return
    faults.reach("before_temp")
    if exclusive and storage.is_file(filesystem, path):
        raise _conflict(path)
    storage.make_folder(filesystem, str(Path(path).parent))
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        # A stream that is dropped is closed, which publishes what it has. So all chunks are made before the upload
        # begins, and it has a thread of its own, which no interrupt from the terminal reaches.
        for chunk in chunks:
            spool.write(chunk)
        spool.seek(0)
        faults.reach("before_rename")
        with ThreadPoolExecutor(1) as alone:
            alone.submit(_upload, filesystem, path, spool).result()
    faults.reach("after_rename")


def _upload(filesystem: pafs.FileSystem, path: str, spool: IO[bytes]) -> None:
    stream = filesystem.open_output_stream(path)
    while piece := spool.read(_PIECE_BYTES):
        stream.write(piece)
    stream.close()


def sweep_temps(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Delete what killed writers left in a folder.

    A temporary file goes when its writer, a process of this host, is dead, or when it is a day old: a live
    writer's file stays. Object stores have none.

    Returns:
        The names deleted.
    """
    if not storage.is_local(filesystem) or not Path(folder).is_dir():
        return []
    swept = []
    for entry in Path(folder).iterdir():
        match = _TEMP_NAME.match(entry.name)
        if match and _is_abandoned(entry, match["host"], int(match["pid"])):
            entry.unlink(missing_ok=True)
            swept.append(entry.name)
    return sorted(swept)


def _write_local(path: Path, chunks: Iterable[bytes | memoryview], exclusive: bool, faults: Faults) -> None:
    storage.make_folder(pafs.LocalFileSystem(), str(path.parent))
    faults.reach("before_temp")
    temp = path.with_name(f".{path.name}.tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        with temp.open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            faults.reach("after_temp_write")
            stream.flush()
            faults.reach("before_fsync")
            os.fsync(stream.fileno())
        faults.reach("before_rename")
        _place(temp, path, exclusive)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    faults.reach("after_rename")
    _sync_folder(path.parent)
    faults.reach("after_folder_fsync")


def _place(temp: Path, path: Path, exclusive: bool) -> None:
    if not exclusive:
        temp.replace(path)
        return
    try:
        # A hard link fails where the name exists, atomically; a rename would replace another writer's commit.
        os.link(temp, path)
    except FileExistsError as error:
        raise _conflict(str(path)) from error
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}:
            raise
        if path.exists():  # file systems without hard links: the best that is left
            raise _conflict(str(path)) from error
        temp.replace(path)
    else:
        temp.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        }:  # some network mounts cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _conflict(path: str) -> CommitConflictError:
    return CommitConflictError(
        f"{path} exists already: another run committed it first and it was left alone; choose another --out"
    )


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if age_s > _STALE_AFTER_S:
        return True
    if host != _host():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False

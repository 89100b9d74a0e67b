"""Files behind a path or a URI: local folders and object stores through one small set of functions.

Everything else in `pipelines` names files by URI and opens them here, so that no other module knows what kind
of store it is on.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs as pafs


class StorageError(ValueError):
    """A path or URI that cannot be used; the message is one line that says what to do."""


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Resolve a local path or a URI.

    Args:
        uri: a local path (relative ones are taken from the working directory, `~` is expanded), `file://...`,
            or an object-store URI that pyarrow knows (`s3://`, `gs://`, `abfs://`, `hdfs://`).

    Returns:
        The file system and the path inside it, without a trailing slash.

    Raises:
        StorageError: the text is empty, holds a NUL, is no Unicode, or is a URI of a scheme that pyarrow cannot open.
    """
    if not uri or "\0" in uri:
        raise StorageError(
            f"cannot open {uri!r}: it is not a path or URI; give a folder such as out/train or s3://bucket/train"
        )
    local = "" if "://" in uri else str(Path(uri).expanduser().absolute())
    try:
        (local or uri).encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"cannot open {uri!a}: it is not valid Unicode; give a folder of another name") from error
    if local:
        return pafs.LocalFileSystem(), local
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, NotImplementedError, ValueError) as error:
        raise StorageError(
            f"cannot open {uri!r}: {_first_line(error)}; give a local path or a URI such as s3://bucket/folder"
        ) from error
    return filesystem, path.rstrip("/") or path


def canonical_uri(uri: str) -> str:
    """The same place written one way: absolute local paths, URIs without a trailing slash."""
    if "://" in uri:
        return uri.rstrip("/")
    return open_uri(uri)[1]


def child_uri(uri: str, *names: str) -> str:
    """The path or URI of something below a folder; a URI's query, such as its region or endpoint, stays last."""
    place, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join((place.rstrip("/"), *names)) + mark + query


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Whether its paths are those of this machine's kernel, so that fsync and memory maps work."""
    return isinstance(filesystem, pafs.LocalFileSystem)


def join(folder: str, *names: str) -> str:
    """A path below `folder`, with forward slashes, as pyarrow's file systems want it."""
    return str(PurePosixPath(folder, *names))


def is_file(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a plain file is there."""
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def is_folder(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a folder is there; in an object store, whether any object lies below the prefix."""
    return bool(filesystem.get_file_info(path).type == pafs.FileType.Directory)


def make_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """Create a folder and its parents; nothing happens where it exists.

    Raises:
        StorageError: the folder cannot be created.
    """
    try:
        filesystem.create_dir(path, recursive=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {path}: {_first_line(error)}; choose one that can be written"
        ) from error


def read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the store failed.
    """
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def list_files(filesystem: pafs.FileSystem, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    """The plain files of a folder, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    found = filesystem.get_file_info(pafs.FileSelector(folder, recursive=recursive))
    return sorted((info for info in found if info.type == pafs.FileType.File), key=lambda info: str(info.path))


def list_names(filesystem: pafs.FileSystem, folder: str) -> list[tuple[str, int]]:
    """The plain files below a folder at any depth: names relative to it and bytes, sorted; links are followed.

    Bytes of a local name that are not UTF-8 come as lone surrogates, as Python has them; pyarrow cannot list these.

    Raises:
        OSError: there is no such folder, or one below it cannot be read.
    """
    if not is_local(filesystem):
        prefix = folder.rstrip("/") + "/"
        return [(i.path.removeprefix(prefix), i.size or 0) for i in list_files(filesystem, folder, recursive=True)]
    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_fail):
        here = Path(place)
        real = here.resolve()
        # A link to where we came from would be followed for ever.
        folders[:] = [f for f in folders if not ((here / f).is_symlink() and real.is_relative_to((here / f).resolve()))]
        for name in files:
            with contextlib.suppress(OSError):  # links that lead nowhere
                facts = (here / name).stat()
                if stat.S_ISREG(facts.st_mode):
                    found.append(((here / name).relative_to(folder).as_posix(), facts.st_size))
    return sorted(found)


def _fail(error: OSError) -> None:
    raise error


def delete_file(filesystem: pafs.FileSystem, path: str) -> None:
    """Delete one file; nothing happens where there is none."""
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        return


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

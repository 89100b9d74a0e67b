"""Files behind a path or a URI: local folders and object stores through one small set of functions.

Everything else in `pipelines` names files by URI and opens them here, so that no other module knows what kind
of store it is on.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from pipelines import secrets

# What may stand in the path of a URI as it is (RFC 3986), besides letters, digits and -._~
_PLAIN_IN_URI = "/:@!$&'()*+,;="
_NO_ESCAPE = re.compile("%(?![0-9a-fA-F]{2})")
# Their folders are prefixes of keys: there before anything is written, and never made.
_WITHOUT_FOLDERS = frozenset({"s3", "gcs"})
_ADVICE = {
    "NO_SUCH_BUCKET|Bucket '.*' not found": "create the bucket, or correct its name",
    "ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN": "check that "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role, belong to this store and may use the bucket",
    "NETWORK_CONNECTION": "check the network, the region, and the endpoint in AWS_ENDPOINT_URL or "
    "?endpoint_override=HOST:PORT&scheme=http",
}


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
        StorageError: the text is empty, holds a NUL or a password, is no Unicode, or is a URI that pyarrow cannot open.
    """
    if not uri or "\0" in uri:
        raise StorageError(
            f"cannot open {uri!r}: it is not a path or URI; give a folder such as out/train or s3://bucket/train"
        )
    if secrets.has_password(uri):
        raise StorageError(
            f"cannot open a URI of {uri.partition('://')[0]} with a password in it, which would be logged: leave it "
            "out, and give the nodes a role or a credentials file"
        )
    local = "" if "://" in uri else str(Path(uri).expanduser().absolute())
    try:
        (local or uri).encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"cannot open {uri!a}: it is not valid Unicode; give a folder of another name") from error
    if local:
        return pafs.LocalFileSystem(), local
    _check_escapes(uri)
    try:
        filesystem, path = pafs.FileSystem.from_uri(_quoted(uri))
    except (pa.ArrowException, OSError, NotImplementedError, ValueError) as error:
        advice = advice_on(error) or "give a local path or a URI such as s3://bucket/folder"
        raise StorageError(f"cannot open {uri!r}: {_first_line(error)}; {advice}") from error
    if filesystem.type_name in _WITHOUT_FOLDERS and {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise StorageError(
            f"cannot open {uri!r}: no bucket or folder of an object store has the name '', '.' or '..'; give a URI "
            "such as s3://bucket/folder"
        )
    return filesystem, path.rstrip("/") or path


def _check_escapes(uri: str) -> None:
    if "#" in uri or _NO_ESCAPE.search(uri.partition("?")[0]):
        raise StorageError(
            f"cannot open {uri!r}: in a URI a # begins another part and a % an escape; write %23 for the sign #, %25 "
            "for % and %3F for ?"
        )


def _quoted(uri: str) -> str:
    """A URI with escapes for what may not stand in one, such as spaces, and without a slash at the end of its path."""
    scheme, _, rest = uri.partition("://")
    place, mark, query = rest.partition("?")
    host, _, path = place.partition("/")
    path = quote(path.rstrip("/"), safe=_PLAIN_IN_URI + "%")
    return f"{scheme}://{host}" + ("/" + path if path or not host else "") + mark + query


def canonical_uri(uri: str) -> str:
    """The same place written one way: absolute local paths; URIs escaped, their path without a trailing slash."""
    return _quoted(uri) if "://" in uri else open_uri(uri)[1]


def child_uri(uri: str, *names: str) -> str:
    """The path or URI of something below a folder; a URI's query, such as its region or endpoint, stays last."""
    if "://" not in uri:
        return "/".join((uri.rstrip("/"), *names))
    place, mark, query = uri.partition("?")
    return "/".join((place.rstrip("/"), *(quote(name, safe=_PLAIN_IN_URI) for name in names))) + mark + query


def name_of(uri: str) -> str:
    """The last part of a path or URI: the name of a folder or file."""
    if "://" not in uri:
        return uri.rstrip("/").rpartition("/")[2]
    return unquote(uri.partition("://")[2].partition("?")[0].rstrip("/").rpartition("/")[2])


def parent_uri(uri: str, levels: int) -> str:
    """The URI of the folder so many levels above."""
    place, mark, query = _quoted(uri).partition("?")
    for _ in range(levels):
        place = place.rpartition("/")[0]
    return _quoted(place + "/" + mark + query)


def advice_on(error: BaseException) -> str:
    """What to do about an error of an object store; empty where that is not known."""
    text = str(error)
    return next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, text)), "")


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
    """Create a folder and its parents; nothing happens where it exists, or where the store needs none.

    Raises:
        StorageError: the folder cannot be created.
    """
    if filesystem.type_name in _WITHOUT_FOLDERS:
        return
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

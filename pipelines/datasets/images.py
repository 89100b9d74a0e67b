"""Bare pictures that nobody labelled: a folder, a glob, or a text file that lists them."""

from __future__ import annotations

import fnmatch
import hashlib
import re

from pyarrow import fs as pafs

from pipelines import storage
from pipelines.rejections import Reason, Rejection, shown
from pipelines.source_index import Index, RawRow, id_of_name

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Files of a folder that count as pictures; GIF and TIFF too, to be rejected aloud, not passed over."""


class PicturesError(ValueError):
    """No pictures where they were looked for; the message is one line that says what to do."""


def read_index(images: str) -> Index:
    """List pictures.

    Args:
        images: path or URI of a folder (searched with its subfolders), a glob such as `pool/*.jpg` (`*` also
            crosses folders), or a `.txt` file of names relative to its own folder, one a line.

    Raises:
        PicturesError: nothing there.
    """
    filesystem, path = storage.open_uri(images)
    if re.search(r"[*?\[]", path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0] or "/"  # type: ignore[union-attr]
        names = _listed(filesystem, root, images)
        names = [n for n in names if fnmatch.fnmatchcase(storage.join(root, n), path)]
    elif path.endswith(".txt") and storage.is_file(filesystem, path):
        root = path.rpartition("/")[0]
        text = storage.read_bytes(filesystem, path).decode("utf-8-sig", errors="surrogateescape")
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        root = path
        names = [n for n in _listed(filesystem, root, images) if n.lower().endswith(SUFFIXES)]
    if not names:
        raise PicturesError(f"no pictures at {images}: give a folder, a glob such as pool/*.jpg, or a .txt list")
    return _index(_uri_of(images, path, root), names, images)


def _index(root: str, names: list[str], asked: str) -> Index:
    rows: dict[int, RawRow] = {}
    rejections = []
    for name in sorted(names):
        image_id = id_of_name(name)
        if image_id in rows:
            rejections.append(
                Rejection(Reason.DUPLICATE_IMAGE_ID, "file_name", shown(name), True, shown(name), image_id)
            )
            continue
        rows[image_id] = RawRow(image_id, name, None, None, ())
    joined = "\0".join(sorted(names)).encode("utf-8", errors="surrogateescape")
    return Index(
        kind="images",
        images=root,
        classes=(),
        rows=tuple(rows.values()),
        rejections=tuple(rejections),
        labelled=False,
        identity=hashlib.sha256(joined).hexdigest(),
        source={"asked": storage.canonical_uri(asked)},
    )


def _listed(filesystem: pafs.FileSystem, root: str, asked: str) -> list[str]:
    try:
        found = storage.list_files(filesystem, root, recursive=True)
    except (FileNotFoundError, NotADirectoryError, OSError) as error:
        raise PicturesError(f"cannot list {asked}: {error}; give a folder, a glob or a .txt list") from error
    prefix = root.rstrip("/") + "/"
    return [info.path.removeprefix(prefix) for info in found]


def _uri_of(asked: str, path: str, root: str) -> str:
    return asked.replace(path, root, 1) if "://" in asked else root

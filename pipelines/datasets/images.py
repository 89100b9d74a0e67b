"""Bare pictures that nobody labelled: a folder, a glob, or a text file that lists them."""

from __future__ import annotations

import fnmatch
import re

from pyarrow import fs as pafs

from pipelines import storage
from pipelines.rejections import Reason, Rejection, shown
from pipelines.source_index import Index, RawRow, id_of_name, identity_of

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
    wildcard = re.search(r"[*?\[]", path)
    if wildcard is not None:
        root = path[: wildcard.start()].rpartition("/")[0] or "/"
        found = _listed(filesystem, root, images)
        found = [(name, size) for name, size in found if fnmatch.fnmatchcase(storage.join(root, name), path)]
    elif path.endswith(".txt") and storage.is_file(filesystem, path):
        root = path.rpartition("/")[0]
        text = storage.read_bytes(filesystem, path).decode("utf-8-sig", errors="surrogateescape")
        found = [(line.strip(), -1) for line in text.splitlines() if line.strip()]
    else:
        root = path
        found = [(name, size) for name, size in _listed(filesystem, root, images) if name.lower().endswith(SUFFIXES)]
    if not found:
        raise PicturesError(f"no pictures at {images}: give a folder, a glob such as pool/*.jpg, or a .txt list")
    return _index(_uri_of(images, path, root), sorted(found), images)


def _index(root: str, found: list[tuple[str, int]], asked: str) -> Index:
    """Of names and sizes; -1 where a list does not say."""
    rows: dict[int, RawRow] = {}
    rejections = []
    for name, _ in found:
        image_id = id_of_name(name)
        if image_id in rows:
            rejections.append(
                Rejection(Reason.DUPLICATE_IMAGE_ID, "file_name", shown(name), True, shown(name), image_id)
            )
            continue
        rows[image_id] = RawRow(image_id, name, None, None, ())
    return Index(
        kind="images",
        images=root,
        classes=(),
        rows=tuple(rows.values()),
        rejections=tuple(rejections),
        labelled=False,
        identity=identity_of(found),
        source={"asked": storage.canonical_uri(asked)},
    )


def _listed(filesystem: pafs.FileSystem, root: str, asked: str) -> list[tuple[str, int]]:
    try:
        return storage.list_names(filesystem, root)
    except OSError as error:
        raise PicturesError(f"cannot list {asked}: {error}; give a folder, a glob or a .txt list") from error


def _uri_of(asked: str, path: str, root: str) -> str:
    if "://" not in asked:
        return root
    below = path.removeprefix(root).strip("/")
    return storage.parent_uri(asked, below.count("/") + 1 if below else 0)

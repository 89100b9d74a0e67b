"""What a source says it holds, before any picture is read: raw rows, in a fixed order, cut into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.manifest import ClassInfo
from pipelines.rejections import Rejection

_MAX_ID = 2**63 - 1
_MAX_EXACT_FLOAT = 2**53
_ID_BITS = 53  # ids pass through JSON, where many readers keep numbers as float64


@dataclass(frozen=True)
class RawRow:
    """One picture as the source lists it; nothing in it is to be trusted but `image_id`.

    Attributes:
        image_id: unique within the index.
        file_name: as given; any value.
        height: pixels as given; any value, None where the source does not say.
        width: pixels as given; any value, None where the source does not say.
        annotations: the source's objects of this picture, raw.
        labels: name of the file that holds its objects, below `Index.labels`; None where `annotations` has them.
        semantic: name of its semantic map, below `Index.semantic`, or the masks to paint it from (see
            `check_semantic.paint`); None where there is none.
    """

    image_id: int
    file_name: object
    height: object
    width: object
    annotations: Sequence[Mapping[str, object]]
    labels: str | None = None
    semantic: object = None


@dataclass(frozen=True)
class Index:
    """A source's list of pictures and objects.

    Attributes:
        kind: "coco", "cityscapes", "nuimages" or "images".
        images: URI of the folder that file names are relative to.
        classes: in ascending category id, which is the order of labels.
        rows: pictures with a usable, unique id.
        rejections: pictures and objects that belong to no such row.
        labelled: whether somebody looked for objects.
        identity: sha256 of what was listed.
        source: for the manifest: where it came from.
        labels: URI of the folder of label files; empty where objects are listed in the rows.
        semantic: URI of the folder of semantic maps; empty without such files.
        semantic_classes: values of semantic maps are below this; 0 without maps.
        masks_required: objects without a mask are of no use here.
    """

    kind: str
    images: str
    classes: tuple[ClassInfo, ...]
    rows: tuple[RawRow, ...]
    rejections: tuple[Rejection, ...]
    labelled: bool
    identity: str
    source: Mapping[str, str]
    labels: str = ""
    semantic: str = ""
    semantic_classes: int = 0
    masks_required: bool = False

    @property
    def rows_in(self) -> int:
        """Pictures listed, unusable ones included."""
        return len(self.rows) + sum(r.is_row for r in self.rejections)

    @property
    def instances_in(self) -> int:
        """Objects listed, orphans included; those in label files not, since no label file was read."""
        return sum(len(row.annotations) for row in self.rows) + sum(r.instances for r in self.rejections)


def as_id(value: object) -> int | None:
    """A 64-bit integer id, also from a float that is whole; None for anything else."""
    if type(value) is int:  # nearly all are
        return value if -_MAX_ID <= value <= _MAX_ID else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT_FLOAT:
        return int(value)
    return value if isinstance(value, int) and -_MAX_ID <= value <= _MAX_ID else None


def id_of_name(name: str) -> int:
    """An image id for sources that have none: a hash of the name, so that it stays when pictures are added."""
    digest = hashlib.sha256(name.encode("utf-8", errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _ID_BITS)


def identity_of(files: Iterable[tuple[str, int]]) -> str:
    """The sha256 of files' names and lengths, for sources that are a listing: a file that changes makes another source.

    Contents are not read for it; another picture of the same length under the same name passes for the old one.
    """
    joined = "\0".join(f"{name}\0{size}" for name, size in files)
    return hashlib.sha256(joined.encode("utf-8", errors="surrogatepass")).hexdigest()


def split(rows: Sequence[RawRow], rows_per_shard: int, seed: int, shuffle: bool) -> list[list[RawRow]]:
    """Rows cut into shards, in an order that depends on their ids and the seed alone.

    Args:
        rows: in any order.
        rows_per_shard: of every shard but the last, >= 1.
        seed: of the shuffle.
        shuffle: mix the pictures, so that neighbours in a shard are strangers; else ascending image id.
    """

    def place(row: RawRow) -> tuple[bytes, int]:
        # A hash, not a generator: the order must not change with the version of a library.
        mixed = hashlib.sha256(f"{seed}:{row.image_id}".encode()).digest() if shuffle else b""
        return mixed, row.image_id

    ordered = sorted(rows, key=place)
    return [ordered[i : i + rows_per_shard] for i in range(0, len(ordered), rows_per_shard)]


def to_json(rows: Sequence[RawRow]) -> bytes:
    """Rows as JSON, for the worker that makes their shard; NaN and huge numbers pass unchanged."""
    listed = [[r.image_id, r.file_name, r.height, r.width, list(r.annotations), r.labels, r.semantic] for r in rows]
    return json.dumps(listed, separators=(",", ":")).encode()


def from_json(data: bytes) -> list[RawRow]:
    """The rows that `to_json` wrote."""
    return [RawRow(*row) for row in json.loads(data)]

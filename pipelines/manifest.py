"""The commit of a data set, `manifest.json`: what is in it, with hashes and the account of every row.

A folder without a manifest is not a data set. Nothing but what the manifest names is ever opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import fs as pafs

from pipelines import commit, records, storage

FILE_NAME = "manifest.json"
KIND = "dataset"
_FIRST_WITH_MAPS = 2


class ManifestError(ValueError):
    """A manifest that is missing, broken, or of another kind or version."""


@dataclass(frozen=True)
class ClassInfo:
    """One class; its label is its place in `Manifest.classes`.

    Attributes:
        id: the source's category id.
        name: as the source calls it.
        keypoints: names of its keypoints in order; empty where it has none.
    """

    id: int
    name: str
    keypoints: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileInfo:
    """A file beside the manifest: its name, length in bytes and sha256."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardInfo(FileInfo):
    """A shard: also how many records and how many instances it holds."""

    rows: int
    instances: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a committed data set without opening a shard.

    Attributes:
        classes: in the order of labels.
        shards: in the order of global record indices.
        rows_in: pictures in the source; always rows_written + rows_rejected.
        rows_written: pictures in the shards.
        rows_rejected: pictures set aside.
        instances_in: annotated objects in the source; always instances_kept + instances_rejected.
        instances_kept: objects in the shards, crowds included.
        instances_rejected: objects set aside, those of rejected pictures included.
        class_counts: kept objects that are neither crowds nor ignored, a class.
        crowds: all other kept objects: regions that are neither learned nor counted against a detector.
        labelled_images: written pictures that somebody looked at for objects.
        source: where the data came from, and how; free text by name.
        fingerprint: identity of source and settings; the same plan gives the same.
        index: the small Arrow file of sizes and labels of all rows.
        rejected: the Arrow file of rejections.
        semantic_classes: the semantic maps' values are below this (or 255, unknown); 0 where there are no maps.
        schema_version: of the shards.
        kind: always "dataset".
    """

    classes: tuple[ClassInfo, ...]
    shards: tuple[ShardInfo, ...]
    rows_in: int
    rows_written: int
    rows_rejected: int
    instances_in: int
    instances_kept: int
    instances_rejected: int
    class_counts: tuple[int, ...]
    crowds: int
    labelled_images: int
    source: Mapping[str, str]
    fingerprint: str
    index: FileInfo
    rejected: FileInfo
    semantic_classes: int = 0
    schema_version: int = records.SCHEMA_VERSION
    kind: str = KIND

    def __post_init__(self) -> None:
        """Check that the account adds up.

        Raises:
            ManifestError: rows or instances were lost or counted twice.
        """
        sums = (
            ("rows_in", self.rows_in, self.rows_written + self.rows_rejected),
            ("instances_in", self.instances_in, self.instances_kept + self.instances_rejected),
            ("rows_written", self.rows_written, sum(s.rows for s in self.shards)),
            ("instances_kept", self.instances_kept, sum(s.instances for s in self.shards)),
            ("instances_kept", self.instances_kept, sum(self.class_counts) + self.crowds),
            ("number of class_counts", len(self.class_counts), len(self.classes)),
        )
        for name, total, parts in sums:
            if total != parts:
                raise ManifestError(f"the account does not add up: {name} is {total}, its parts make {parts}")

    @property
    def hash(self) -> str:
        """The sha256 of the manifest's file: the identity of these very bytes of data."""
        return commit.sha256_of(self.to_bytes())

    @property
    def is_pseudo(self) -> bool:
        """Whether a detector labelled it."""
        return self.source.get("kind") == "distill"

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of labels."""
        return tuple(c.name for c in self.classes)

    def to_bytes(self) -> bytes:
        """The manifest's file: canonical JSON, with a checksum over all the rest."""
        body = asdict(self)
        if self.schema_version < _FIRST_WITH_MAPS:
            del body["semantic_classes"]  # an old file keeps its bytes, and so its hash
        body["checksum"] = commit.sha256_of(_canonical(body))
        return _canonical(body)

    @staticmethod
    def load(uri: str) -> Manifest:
        """Read the manifest of the data set at a path or URI.

        Raises:
            ManifestError: there is none, it is damaged, or it is of another kind or version.
        """
        filesystem, folder = storage.open_uri(uri)
        return load_from(filesystem, folder)


def load_from(filesystem: pafs.FileSystem, folder: str) -> Manifest:
    """As `Manifest.load`, on an opened file system.

    Raises:
        ManifestError: there is none, it is damaged, or it is of another kind or version.
    """
    path = storage.join(folder, FILE_NAME)
    try:
        raw = storage.read_bytes(filesystem, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestError(f"{folder} is no data set: it has no {FILE_NAME}; run `maskray prepare` (again)") from error
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not JSON ({error}): it is damaged; prepare the data again") from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        kind = body.get("kind") if isinstance(body, dict) else type(body).__name__
        raise ManifestError(f"{path} is of kind {kind!r}, wanted {KIND!r}: give the folder of a prepared data set")
    if body.get("schema_version") not in records.READABLE_VERSIONS:
        raise ManifestError(
            f"{path} has schema version {body.get('schema_version')!r}, wanted one of {records.READABLE_VERSIONS}: "
            "prepare the data again with this version of maskray"
        )
    return _from_body(body, raw, path)


def _from_body(body: dict[str, Any], raw: bytes, path: str) -> Manifest:
    checksum = body.pop("checksum", None)
    if checksum != commit.sha256_of(_canonical(body)) or raw != _canonical({**body, "checksum": checksum}):
        raise ManifestError(f"{path} does not match its own checksum: it was damaged or edited; prepare the data again")
    fields = dict(body)
    try:
        fields["classes"] = tuple(
            ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in _listed(body["classes"])
        )
        fields["shards"] = tuple(ShardInfo(**s) for s in _listed(body["shards"]))
        fields["class_counts"] = tuple(body["class_counts"])
        fields["index"] = FileInfo(**body["index"])
        fields["rejected"] = FileInfo(**body["rejected"])
        manifest = Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise ManifestError(f"{path} lacks a field or has one too many ({error}): prepare the data again") from error
    for info in (*manifest.shards, manifest.index, manifest.rejected):
        if "/" in info.file or "\\" in info.file or info.file.startswith("."):
            raise ManifestError(f"{path} names the file {info.file!r}, wanted a name beside it: do not use this data")
    return manifest


def _listed(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list was wanted")
    return value


def _canonical(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"

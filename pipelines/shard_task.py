"""The work of one Ray task of `prepare`: read a part of the plan, check its pictures, write its shard.

An ordinary function: a test calls it without Ray. It may run twice, also at the same time: the same part
gives the same bytes under the same name.
"""

from __future__ import annotations

import errno
import json
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs as pafs

from pipelines import careful, check, commit, dataset_writer, records, rejections, shards, source_index, storage
from pipelines.collection import no_collection
from pipelines.manifest import ShardInfo
from pipelines.rejections import Reason, Rejection
from pipelines.source_index import RawRow

PLAN_FOLDER = "_plan"
MAX_PICTURE_BYTES = 2**29
"""Larger files are rejected unread."""

_READS_AT_ONCE = 8
_MAX_KEY_BYTES = 1024  # of S3 and Google Cloud; longer ones are bad requests, not missing objects

# Faults of one name, which come back however often it is tried.
_FAULTS_OF_FILES = frozenset({errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})


@dataclass(frozen=True)
class ShardTask:
    """What all shards of a plan have in common.

    Attributes:
        out: path or URI of the data set.
        images: path or URI of the folder of pictures.
        fingerprint: of the plan.
        rules: of the check.
        labels: URI of the folder of label files; empty where the plan lists the objects.
        semantic: URI of the folder of semantic maps; empty without such files.
    """

    out: str
    images: str
    fingerprint: str
    rules: check.Rules
    labels: str = ""
    semantic: str = ""


@dataclass(frozen=True)
class ShardResult:
    """What is known of one finished shard; all that goes back to the driver.

    Attributes:
        info: for the manifest.
        rejections: of its pictures and their objects.
        instances_in: objects that the source has for its pictures; of a label file that was not read, none.
        was_there: True where an earlier run had written it.
    """

    info: ShardInfo
    rejections: tuple[Rejection, ...]
    instances_in: int
    was_there: bool

    def to_facts(self) -> dict[str, object]:
        """As JSON-able facts, for the way through Ray."""
        return {
            "info": asdict(self.info),
            "rejections": [rejections.to_dict(r) for r in self.rejections],
            "instances_in": self.instances_in,
            "was_there": self.was_there,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> ShardResult:
        """The inverse of `to_facts`."""
        lost = tuple(rejections.from_dict(r) for r in facts["rejections"])
        return cls(ShardInfo(**facts["info"]), lost, facts["instances_in"], facts["was_there"])


class PlanConflictError(ValueError):
    """The output folder holds another data set, finished or not; nothing was touched."""


class MissingPlanError(ValueError):
    """The output folder is another one here than where the plan was written."""


def part_name(number: int) -> str:
    """The file of a shard's raw rows, relative to the data set."""
    return f"{PLAN_FOLDER}/part-{number:05d}.json"


def attempt_name(number: int) -> str:
    """The note that a shard is being made, relative to the data set."""
    return f"{PLAN_FOLDER}/attempt-{number:05d}"


def make_shard(
    task: ShardTask, number: int, faults: commit.Faults | None = None, judge: careful.Judge = check.check
) -> ShardResult:
    """Make one shard, or find it made.

    A note stands beside the plan while pictures are judged. Where one is found, an earlier attempt died on the way,
    perhaps of a picture: then each is judged in a process of its own.

    Args:
        task: the plan.
        number: of the shard.
        faults: fault points for tests.
        judge: `check.check`, but in tests.

    Raises:
        PlanConflictError: a shard of another plan has this name.
        MissingPlanError: the plan is not to be seen from here.
        OSError: the store failed.
    """
    filesystem, folder = storage.open_uri(task.out)
    found = find_shard(filesystem, folder, number, task.fingerprint)
    if found is not None:
        return found
    rows = _planned(task, filesystem, storage.join(folder, part_name(number)))
    note = storage.join(folder, attempt_name(number))
    died_before = storage.is_file(filesystem, note)
    if not died_before:
        commit.write_file(filesystem, note, b"", faults=faults)
    with no_collection(), careful.CarefulJudge(judge) as in_own_process:
        outcomes = list(_outcomes(task, rows, in_own_process if died_before else judge))
    storage.delete_file(filesystem, note)
    kept: list[records.Record] = []
    lost: list[Rejection] = []
    instances_in = 0
    for outcome in outcomes:
        if isinstance(outcome, Rejection):
            lost.append(outcome)
            instances_in += outcome.instances
        else:
            kept.append(outcome.record)
            lost.extend(outcome.rejections)
            instances_in += len(outcome.record.instances) + sum(r.instances for r in outcome.rejections)
    meta = {
        "schema_version": records.SCHEMA_VERSION,
        "fingerprint": task.fingerprint,
        "shard": number,
        "instances_in": instances_in,
        "rejections": [rejections.to_dict(r) for r in lost],
    }
    info = dataset_writer.write_shard(filesystem, folder, number, kept, meta, faults)
    return ShardResult(info, tuple(lost), instances_in, was_there=False)


def _planned(task: ShardTask, filesystem: pafs.FileSystem, part: str) -> list[RawRow]:
    try:
        return source_index.from_json(storage.read_bytes(filesystem, part))
    except FileNotFoundError as error:
        raise MissingPlanError(
            f"{socket.gethostname()} sees no {part}, which the driver wrote: on several machines --out must be a "
            "folder that all of them share, or a URI such as s3://bucket/folder"
        ) from error


def find_shard(filesystem: pafs.FileSystem, folder: str, number: int, fingerprint: str) -> ShardResult | None:
    """The finished shard of that number and plan; None where it must be written, a damaged one included.

    Raises:
        PlanConflictError: it belongs to another plan.
    """
    name = dataset_writer.shard_name(number)
    path = storage.join(folder, name)
    if not storage.is_file(filesystem, path):
        return None
    data = storage.read_bytes(filesystem, path)
    try:
        shard = shards.open_ipc(shards.reader_of(data), path)
    except records.SchemaError:
        return None
    if shard.meta.get("fingerprint") != fingerprint:
        raise PlanConflictError(f"{path} belongs to another data set or other settings: choose another --out")
    if shard.meta.get("shard") != number or not shards.is_intact(shard):
        return None
    info = ShardInfo(
        file=name,
        bytes=len(data),
        sha256=commit.sha256_of(data),
        rows=shard.batch.num_rows,
        instances=len(shard.batch.column("instance_id").flatten()),
    )
    noted = json.loads(json.dumps(shard.meta.get("rejections", [])))
    lost = tuple(rejections.from_dict(r) for r in noted)
    return ShardResult(info, lost, int(str(shard.meta["instances_in"])), was_there=True)


class _Folder:
    """A source's folder: its files by names that strangers wrote."""

    def __init__(self, uri: str, missing: Reason) -> None:
        self._filesystem, self._root = storage.open_uri(uri)
        self._missing = missing
        self.is_local = storage.is_local(self._filesystem)
        # Resolved once: the folder itself may be a link, a file may not lead out of it.
        self._real_root = Path(self._root).resolve() if self.is_local else None

    def read(self, row: RawRow, name: str, field: str) -> bytes | Rejection:
        """A whole file, or why the picture it belongs to is rejected.

        Raises:
            OSError: the store failed. That may pass: the task fails, and Ray or the same command runs it again.
        """
        try:
            return self._read(row, name, field)
        except (FileNotFoundError, PermissionError) as error:  # object stores raise them without a number
            fault = type(error).__name__
        except OSError as error:
            if error.errno not in _FAULTS_OF_FILES:
                raise
            fault = errno.errorcode[error.errno]
        except RuntimeError:  # how Python tells of a link that leads to itself
            fault = "ELOOP"
        return check.reject_row(row, self._missing, field, f"{rejections.shown(name)}: {fault}")

    def _read(self, row: RawRow, name: str, field: str) -> bytes | Rejection:
        path, named = storage.join(self._root, name), rejections.shown(name)
        if self._real_root is not None and not Path(path).resolve().is_relative_to(self._real_root):
            return check.reject_row(row, Reason.UNSAFE_FILE_NAME, field, f"{named} links out of the folder")
        if not self.is_local and len(path.encode(errors="replace")) > _MAX_KEY_BYTES:
            return check.reject_row(row, self._missing, field, f"{named}: {errno.errorcode[errno.ENAMETOOLONG]}")
        # Asked before opening: a pipe would wait for ever, a device never end. `File` is a regular file only.
        info = self._filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            found = "no such file" if info.type == pafs.FileType.NotFound else "not a plain file"
            return check.reject_row(row, self._missing, field, f"{named}: {found}")
        if (info.size or 0) > MAX_PICTURE_BYTES:
            return check.reject_row(row, Reason.PICTURE_TOO_LARGE, field, f"{info.size} bytes")
        return storage.read_bytes(self._filesystem, path)


class _Files(NamedTuple):
    """All that was read of a picture: its own bytes, those of its map and of its labels, where it has such."""

    picture: bytes
    semantic: bytes | None
    labels: bytes | None


class _Source:
    """The folders of a plan's source."""

    def __init__(self, task: ShardTask) -> None:
        self._pictures = _Folder(task.images, Reason.MISSING_PICTURE)
        self._labels = _Folder(task.labels, Reason.MISSING_LABELS) if task.labels else None
        self._maps = _Folder(task.semantic, Reason.MISSING_MAP) if task.semantic else None

    def read(self, row: RawRow) -> _Files | Rejection:
        """The files of a picture, or why it is rejected; see `_Folder.read` for what it raises."""
        unsafe = check.check_file_name(row)
        if unsafe is not None:
            return unsafe
        found = self._labels.read(row, str(row.labels), "labels") if self._labels is not None else None
        data = self._pictures.read(row, str(row.file_name), "file_name")
        semantic = self._maps.read(row, str(row.semantic), "semantic") if self._maps is not None else None
        if isinstance(found, Rejection):
            return found
        if isinstance(data, Rejection):
            return data
        return semantic if isinstance(semantic, Rejection) else _Files(data, semantic, found)

    def read_all(self, rows: Sequence[RawRow]) -> Iterator[_Files | Rejection]:
        """Those of each row, in order; from a store far away, which answers slowly, several at the same time."""
        if self._pictures.is_local:
            yield from map(self.read, rows)
            return
        waiting: deque[Future[_Files | Rejection]] = deque()
        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            for row in rows:
                waiting.append(threads.submit(self.read, row))
                if len(waiting) == _READS_AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _outcomes(task: ShardTask, rows: list[RawRow], judge: careful.Judge) -> Iterator[check.Checked | Rejection]:
    for row, files in zip(rows, _Source(task).read_all(rows), strict=True):
        if isinstance(files, Rejection):
            yield files
        else:
            yield judge(row, files.picture, task.rules, files.semantic, files.labels)

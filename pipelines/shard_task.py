"""The work of one Ray task of `prepare`: read a part of the plan, check its pictures, write its shard.

An ordinary function: a test calls it without Ray. It may run twice, also at the same time: the same part
gives the same bytes under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from pipelines import check, commit, dataset_writer, records, rejections, shards, source_index, storage
from pipelines.manifest import ShardInfo
from pipelines.rejections import Reason, Rejection
from pipelines.source_index import RawRow

PLAN_FOLDER = "_plan"
MAX_PICTURE_BYTES = 2**29
"""Larger files are rejected unread."""


@dataclass(frozen=True)
class ShardTask:
    """What all shards of a plan have in common.

    Attributes:
        out: path or URI of the data set.
        images: path or URI of the folder of pictures.
        fingerprint: of the plan.
        rules: of the check.
    """

    out: str
    images: str
    fingerprint: str
    rules: check.Rules


@dataclass(frozen=True)
class ShardResult:
    """What is known of one finished shard; all that goes back to the driver.

    Attributes:
        info: for the manifest.
        rejections: of its pictures and their objects.
        was_there: True where an earlier run had written it.
    """

    info: ShardInfo
    rejections: tuple[Rejection, ...]
    was_there: bool

    def to_facts(self) -> dict[str, object]:
        """As JSON-able facts, for the way through Ray."""
        return {
            "info": asdict(self.info),
            "rejections": [rejections.to_dict(r) for r in self.rejections],
            "was_there": self.was_there,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> ShardResult:
        """The inverse of `to_facts`."""
        lost = tuple(rejections.from_dict(r) for r in facts["rejections"])
        return cls(ShardInfo(**facts["info"]), lost, facts["was_there"])


class PlanConflictError(ValueError):
    """The output folder holds another data set, finished or not; nothing was touched."""


def part_name(number: int) -> str:
    """The file of a shard's raw rows, relative to the data set."""
    return f"{PLAN_FOLDER}/part-{number:05d}.json"


def make_shard(task: ShardTask, number: int, faults: commit.Faults | None = None) -> ShardResult:
    """Make one shard, or find it made.

    Args:
        task: the plan.
        number: of the shard.
        faults: fault points for tests.

    Raises:
        PlanConflictError: a shard of another plan has this name.
        OSError: the store failed.
    """
    filesystem, folder = storage.open_uri(task.out)
    found = find_shard(filesystem, folder, number, task.fingerprint)
    if found is not None:
        return found
    part = storage.join(folder, part_name(number))
    kept: list[records.Record] = []
    lost: list[Rejection] = []
    for outcome in _outcomes(task, source_index.from_json(storage.read_bytes(filesystem, part))):
        if isinstance(outcome, Rejection):
            lost.append(outcome)
        else:
            kept.append(outcome.record)
            lost.extend(outcome.rejections)
    meta = {
        "schema_version": records.SCHEMA_VERSION,
        "fingerprint": task.fingerprint,
        "shard": number,
        "rejections": [rejections.to_dict(r) for r in lost],
    }
    info = dataset_writer.write_shard(filesystem, folder, number, kept, meta, faults)
    return ShardResult(info, tuple(lost), was_there=False)


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
    return ShardResult(info, tuple(rejections.from_dict(r) for r in noted), was_there=True)


def _outcomes(task: ShardTask, rows: list[RawRow]) -> Iterator[check.Checked | Rejection]:
    filesystem, root = storage.open_uri(task.images)
    # Resolved once: the folder itself may be a link, a picture may not lead out of it.
    real_root = Path(root).resolve() if storage.is_local(filesystem) else None
    for row in rows:
        unsafe = check.check_file_name(row)
        if unsafe is not None:
            yield unsafe
            continue
        data = _read_picture(filesystem, root, real_root, row)
        yield data if isinstance(data, Rejection) else check.check(row, data, task.rules)


def _read_picture(filesystem: pafs.FileSystem, root: str, real_root: Path | None, row: RawRow) -> bytes | Rejection:
    name = str(row.file_name)
    path = storage.join(root, name)
    if real_root is not None and not Path(path).resolve().is_relative_to(real_root):
        return check.reject_row(
            row, Reason.UNSAFE_FILE_NAME, "file_name", f"{rejections.shown(name)} links out of the folder"
        )
    # Asked before opening: a pipe would wait for ever, a device never end. `File` is a regular file only.
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        found = "no such file" if info.type == pafs.FileType.NotFound else "not a plain file"
        return check.reject_row(row, Reason.MISSING_PICTURE, "file_name", f"{rejections.shown(name)}: {found}")
    if (info.size or 0) > MAX_PICTURE_BYTES:
        return check.reject_row(row, Reason.PICTURE_TOO_LARGE, "file_name", f"{info.size} bytes")
    try:
        return storage.read_bytes(filesystem, path)
    except (FileNotFoundError, PermissionError) as error:
        # Other failures of a store may pass: they fail the task, which Ray or the same command runs again.
        return check.reject_row(
            row, Reason.MISSING_PICTURE, "file_name", f"{rejections.shown(name)}: {type(error).__name__}"
        )

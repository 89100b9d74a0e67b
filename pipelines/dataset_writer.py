"""Writing a data set: shards in any order by anyone, then index, rejections and, last, the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs
from pyarrow import ipc

from pipelines import commit, records, shards, storage
from pipelines import manifest as manifests
from pipelines import rejections as rejected
from pipelines.dataset import INDEX_NAME, INDEX_SCHEMA

_SHARDS_AT_ONCE = 16
_INDEX_COLUMNS = ("image_id", "height", "width", "labelled", "label", "crowd", "ignore")


class Draft(NamedTuple):
    """What only the maker of a data set knows; the rest is read back from its shards.

    Attributes:
        classes: in the order of labels.
        shards: as `write_shard` returned them, in the order wanted.
        rejections: everything set aside.
        rows_in: pictures in the source.
        instances_in: annotated objects in the source.
        source: where the data came from, and how.
        fingerprint: identity of source and settings.
        semantic_classes: of the semantic maps; 0 without maps.
        left_out: pictures and objects set aside beside the rejections, which the maker lists in files of its own.
    """

    classes: tuple[manifests.ClassInfo, ...]
    shards: tuple[manifests.ShardInfo, ...]
    rejections: tuple[rejected.Rejection, ...]
    rows_in: int
    instances_in: int
    source: Mapping[str, str]
    fingerprint: str
    semantic_classes: int = 0
    left_out: tuple[int, int] = (0, 0)


def shard_name(number: int) -> str:
    """The file name of a shard, a function of its number alone: a repeated attempt replaces its own file."""
    return f"shard-{number:05d}.arrow"


def write_shard(
    filesystem: pafs.FileSystem,
    folder: str,
    number: int,
    rows: Sequence[records.Record],
    meta: Mapping[str, object],
    faults: commit.Faults | None = None,
) -> manifests.ShardInfo:
    """Write one shard whole or not at all.

    Args:
        filesystem: see `storage.open_uri`.
        folder: of the data set.
        number: of the shard, from 0.
        rows: its records, in order; there may be none.
        meta: JSON-able notes kept in the shard; the same input gives the same bytes.
        faults: fault points for tests.

    Raises:
        OSError: the store failed; no shard of that name is half there.
    """
    buffer = shards.to_ipc(rows, meta)
    name = shard_name(number)
    commit.write_file(filesystem, storage.join(folder, name), memoryview(buffer), faults=faults)
    return manifests.ShardInfo(
        file=name,
        bytes=buffer.size,
        sha256=commit.sha256_of(memoryview(buffer)),
        rows=len(rows),
        instances=sum(len(r.instances) for r in rows),
    )


def commit_dataset(
    filesystem: pafs.FileSystem, folder: str, draft: Draft, faults: commit.Faults | None = None
) -> manifests.Manifest:
    """Write index, rejections and manifest; with the manifest the folder becomes a data set.

    Raises:
        CommitConflictError: the folder has a manifest already.
        ManifestError: the account does not add up, or two records have one image id.
        SchemaError: a shard is not readable.
        OSError: the store failed; the folder is no data set yet.
    """
    index = _index(filesystem, folder, draft.shards)
    _check_unique(index.column("image_id").to_numpy())
    labels = index.column("labels").values.to_numpy()
    num_classes = len(draft.classes)
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise manifests.ManifestError(f"labels reach {labels.max()}, wanted 0 to {num_classes - 1}")
    lost_rows = sum(r.is_row for r in draft.rejections) + draft.left_out[0]
    lost = sum(r.instances for r in draft.rejections) + draft.left_out[1]
    kept = sum(s.instances for s in draft.shards)
    made = manifests.Manifest(
        classes=draft.classes,
        shards=draft.shards,
        rows_in=draft.rows_in,
        rows_written=index.num_rows,
        rows_rejected=lost_rows,
        instances_in=draft.instances_in,
        instances_kept=kept,
        instances_rejected=lost,
        class_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
        crowds=kept - int(labels.size),
        labelled_images=int(np.count_nonzero(index.column("labelled").to_numpy(zero_copy_only=False))),
        source=dict(draft.source),
        fingerprint=draft.fingerprint,
        semantic_classes=draft.semantic_classes,
        index=_write(filesystem, folder, INDEX_NAME, _to_ipc(index), faults),
        rejected=_write(filesystem, folder, rejected.FILE_NAME, rejected.to_ipc(draft.rejections), faults),
    )
    path = storage.join(folder, manifests.FILE_NAME)
    commit.write_file(filesystem, path, made.to_bytes(), exclusive=True, faults=faults)
    return made


def _write(
    filesystem: pafs.FileSystem, folder: str, name: str, data: pa.Buffer, faults: commit.Faults | None
) -> manifests.FileInfo:
    commit.write_file(filesystem, storage.join(folder, name), memoryview(data), faults=faults)
    return manifests.FileInfo(name, data.size, commit.sha256_of(memoryview(data)))


def _index(filesystem: pafs.FileSystem, folder: str, infos: Sequence[manifests.ShardInfo]) -> pa.RecordBatch:
    def of_shard(info: manifests.ShardInfo) -> pa.RecordBatch:
        path = storage.join(folder, info.file)
        with filesystem.open_input_file(path) as source:
            return _index_of(shards.open_ipc(source, path, _INDEX_COLUMNS).batch)

    # Columns are projected, so that of each shard only a few kilobytes are read, also from an object store; there by
    # many small requests, each of which takes its time.
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as threads:
        return pa.concat_batches([pa.RecordBatch.from_pylist([], schema=INDEX_SCHEMA), *threads.map(of_shard, infos)])


def _index_of(batch: pa.RecordBatch) -> pa.RecordBatch:
    crowd, ignore = (batch.column(name).values.to_numpy(zero_copy_only=False) for name in ("crowd", "ignore"))
    offsets, objects = batch.column("crowd").offsets.to_numpy(), ~(crowd | ignore)
    before = np.concatenate([[0], np.cumsum(objects)]).astype(np.int32)
    labels = pa.ListArray.from_arrays(before[offsets], pa.array(batch.column("label").values.to_numpy()[objects]))
    columns = [batch.column(name) for name in ("image_id", "height", "width", "labelled")]
    return pa.RecordBatch.from_arrays([*columns, labels], schema=INDEX_SCHEMA)


def _to_ipc(index: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_batch(index)
    return sink.getvalue()


def _check_unique(image_ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    ids, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise manifests.ManifestError(
            f"image id {int(ids[counts > 1][0])} belongs to more than one record: give each its own id"
        )

"""Reading a committed data set: any record by its global index, and all sizes without opening a picture."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs as pafs
from pyarrow import ipc

from pipelines import manifest as manifests
from pipelines import records, rejections, shards, storage
from pipelines.shard_cache import ShardCache

INDEX_NAME = "index.ipc"
"""Not `*.arrow`, so that a glob of that finds shards (and `rejected.arrow`)."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("labelled", pa.bool_(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),  # of what is neither crowd nor ignored
    ]
)
_SHARDS_IN_MEMORY = 2


class DatasetError(ValueError):
    """A file of a data set that is missing or does not match its manifest."""


class Dataset:
    """A committed data set, for random access.

    Shards are memory-mapped and stay so; remote ones are mapped from their copies on the local disk (see
    `shard_cache`), as many as that may hold. Where the disk takes none, the last two are held in memory. Each shard's
    length, schema and inner consistency are checked when it is first opened; its hash too, of a copy once a machine.

    Attributes:
        uri: as given.
        manifest: what the data set says of itself.
        rows_per_shard: int64 [number of shards].
        image_ids: int64 [N].
        sizes_hw: int32 [N, 2], (height, width) in pixels after EXIF orientation.
        labelled: bool [N].
        label_offsets: int64 [N + 1]; record i has the labels `labels[label_offsets[i] : label_offsets[i +
            1]]`.
        labels: int32 [all objects that are neither crowds nor ignored; older data sets count ignored ones as objects].
    """

    def __init__(self, uri: str, verify: bool = True, cached: bool = True) -> None:
        """Read the manifest and the index.

        Args:
            uri: path or URI of the folder.
            verify: check the sha256 of every file when it is first opened.
            cached: take remote files from their copies on this machine; else from the store itself.

        Raises:
            ManifestError: no manifest, or one that cannot be used.
            DatasetError: the index is missing or damaged.
        """
        self.uri = uri
        self._verify, self._cached = verify, cached
        self._filesystem, self._folder = storage.open_uri(uri)
        self._cache = None
        if not storage.is_local(self._filesystem):
            self._cache = ShardCache.from_environment() if cached else ShardCache.nothing()
        self.manifest = manifests.load_from(self._filesystem, self._folder)
        self.rows_per_shard = np.array([s.rows for s in self.manifest.shards], np.int64)
        self._first_row = np.concatenate([[0], np.cumsum(self.rows_per_shard)]).astype(np.int64)
        self._opened: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._rows: dict[int, records.Rows] = {}  # of opened shards
        self._in_memory: set[int] = set()
        index = _open_index(self._read(self.manifest.index)[0], self._path(self.manifest.index), len(self))
        self.image_ids: npt.NDArray[np.int64] = index.column("image_id").to_numpy()
        sides = [index.column(name).to_numpy() for name in ("height", "width")]
        self.sizes_hw: npt.NDArray[np.int32] = np.stack(sides, axis=1)
        self.labelled: npt.NDArray[np.bool_] = index.column("labelled").to_numpy(zero_copy_only=False)
        labels = index.column("labels")
        self.label_offsets: npt.NDArray[np.int64] = labels.offsets.to_numpy().astype(np.int64)
        self.labels: npt.NDArray[np.int32] = labels.values.to_numpy()

    def __len__(self) -> int:
        """Number of records."""
        return int(self._first_row[-1])

    def __reduce__(self) -> tuple[type[Dataset], tuple[str, bool, bool]]:
        """Pickle as its address: another process opens its own files."""
        return Dataset, (self.uri, self._verify, self._cached)

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and row in it of a global record index.

        Raises:
            IndexError: not 0 <= index < len(self).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._first_row, index, side="right")) - 1
        return shard, index - int(self._first_row[shard])

    def record(self, index: int) -> records.Record:
        """One record.

        Raises:
            IndexError: not 0 <= index < len(self).
            DatasetError: its shard is missing or does not match the manifest.
            SchemaError: its shard does not hold records.
        """
        number, row = self.locate(index)
        shard = self.shard(number)
        if number not in self._rows:
            self._rows[number] = records.Rows(shard)
        return self._rows[number][row]

    def shard(self, number: int) -> pa.RecordBatch:
        """All rows of one shard; see `record` for what it raises."""
        if number in self._opened:
            self._opened.move_to_end(number)
            return self._opened[number]
        info = self.manifest.shards[number]
        buffer, is_mapped = self._read(info)
        batch = self._opened[number] = _to_batch(buffer, info, self._path(info))
        if not is_mapped:
            self._in_memory.add(number)
        self._close_what_is_too_much()
        return batch

    def _close_what_is_too_much(self) -> None:
        """Let go of the longest unused shards in memory, and of copies that the disk may have deleted meanwhile."""
        in_memory = [number for number in self._opened if number in self._in_memory]
        closed = in_memory[: max(0, len(in_memory) - _SHARDS_IN_MEMORY)]
        if self._cache is not None:
            lengths = {n: self.manifest.shards[n].bytes for n in self._opened if n not in self._in_memory}
            excess = sum(lengths.values()) - self._cache.limit_bytes
            for number, length in lengths.items():
                if excess <= 0:
                    break
                closed.append(number)
                excess -= length
        for number in closed:
            del self._opened[number]
            self._rows.pop(number, None)
            self._in_memory.discard(number)

    def labelled_keypoints(self) -> npt.NDArray[np.int64]:
        """Labelled keypoints of each record, int64 [N]; reads that column of every shard, and no picture.

        Raises:
            DatasetError: a shard is missing.
            SchemaError: a shard does not hold records.
        """
        counts = [np.zeros(0, np.int64)]
        for info in self.manifest.shards:
            path = self._path(info)
            try:
                with self._filesystem.open_input_file(path) as source:
                    column = shards.open_ipc(source, path, ("keypoints",)).batch.column("keypoints")
            except FileNotFoundError as error:
                raise DatasetError(f"{path} is missing: restore it or prepare again") from error
            points = column.values
            visible = np.concatenate([[0], np.cumsum(points.values.to_numpy()[2::3] > 0)])
            counts.append(np.diff(visible[points.offsets.to_numpy()[column.offsets.to_numpy()] // 3]))
        return np.concatenate(counts).astype(np.int64)

    def rejections(self) -> tuple[rejections.Rejection, ...]:
        """What was set aside when the data set was made.

        Raises:
            DatasetError: the file is missing or does not match the manifest.
        """
        return rejections.from_ipc(self._read(self.manifest.rejected)[0].to_pybytes())

    def _path(self, info: manifests.FileInfo) -> str:
        return storage.join(self._folder, info.file)

    def _read(self, info: manifests.FileInfo) -> tuple[pa.Buffer, bool]:
        return _read_file(self._filesystem, self._path(info), info, self._cache, self._verify)


def open_shard(uri: str, info: manifests.ShardInfo) -> pa.RecordBatch:
    """All rows of one shard of the data set at `uri`, without its manifest and index; checked as `Dataset` does.

    Raises:
        DatasetError: it is missing or does not match what the manifest says.
        SchemaError: it does not hold records.
    """
    filesystem, folder = storage.open_uri(uri)
    cache = None if storage.is_local(filesystem) else ShardCache.from_environment()
    path = storage.join(folder, info.file)
    return _to_batch(_read_file(filesystem, path, info, cache, verify=True)[0], info, path)


def _to_batch(buffer: pa.Buffer, info: manifests.ShardInfo, path: str) -> pa.RecordBatch:
    batch = shards.open_ipc(pa.BufferReader(buffer), path).batch
    if batch.num_rows != info.rows:
        raise DatasetError(f"{path} has {batch.num_rows} rows, the manifest says {info.rows}")
    return batch


def _read_file(
    filesystem: pafs.FileSystem, path: str, info: manifests.FileInfo, cache: ShardCache | None, verify: bool
) -> tuple[pa.Buffer, bool]:
    """A file's bytes, and whether they are mapped."""
    try:
        if cache is None:
            buffer, is_mapped, is_verified = pa.memory_map(path).read_buffer(), True, False
        else:
            fetch = functools.partial(storage.read_bytes, filesystem, path)
            buffer, is_mapped, is_verified = cache.read(info.sha256, info.bytes, fetch)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DatasetError(f"{path} is missing, and the manifest names it: restore it or prepare again") from error
    if buffer.size != info.bytes:
        raise DatasetError(f"{path} has {buffer.size} bytes, the manifest says {info.bytes}: it was cut; prepare again")
    if verify and not is_verified and hashlib.sha256(buffer).hexdigest() != info.sha256:
        raise DatasetError(f"{path} does not match its sha256 in the manifest: it was damaged; prepare again")
    return buffer, is_mapped


def _open_index(data: pa.Buffer, where: str, rows: int) -> pa.RecordBatch:
    try:
        reader = ipc.open_file(pa.BufferReader(data))
        batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{where} is not a readable index: prepare the data again") from error
    if not batch.schema.equals(INDEX_SCHEMA) or batch.num_rows != rows or any(c.null_count for c in batch.columns):
        raise DatasetError(f"{where} does not fit its manifest: {batch.num_rows} rows of {batch.schema.names}")
    return batch

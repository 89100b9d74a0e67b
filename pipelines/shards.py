"""One shard: an Arrow IPC file of records, made in memory, and opened only after its footer was judged.

A shard is one record batch, uncompressed, so that a memory map gives any row without reading the others'
pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyarrow import ipc

from pipelines import records

_META_KEY = b"maskray"
_CONTENT = "content_sha256"
_MAGIC = b"ARROW1"
_TAIL_BYTES = 4 + len(_MAGIC)
# Registered extension types are built, code of the data's choice included, as soon as pyarrow parses a
# schema. Their mark is stored as plain text in the footer, so it can be looked for before that.
_EXTENSION_MARK = b"ARROW:extension"


class Shard(NamedTuple):
    """An opened shard.

    Attributes:
        batch: all rows, of `records.SCHEMA`.
        meta: what the writer noted beside them.
    """

    batch: pa.RecordBatch
    meta: dict[str, object]


def to_ipc(rows: Sequence[records.Record], meta: Mapping[str, object]) -> pa.Buffer:
    """Records as the bytes of one Arrow IPC file.

    Args:
        rows: the shard's records, in order.
        meta: JSON-able notes stored in the file's schema; the same input gives the same bytes.
    """
    batches = records.to_table(rows).to_batches()
    batch = batches[0] if batches else _no_rows(records.SCHEMA)
    noted = json.dumps({**meta, _CONTENT: content_digest(batch)}, sort_keys=True, separators=(",", ":"))
    schema = records.SCHEMA.with_metadata({_META_KEY: noted.encode()})
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return sink.getvalue()


def reader_of(data: bytes | pa.Buffer) -> pa.BufferReader:
    """Bytes in memory as a source for `open_ipc`."""
    return pa.BufferReader(data)


def content_digest(batch: pa.RecordBatch) -> str:
    """The sha256 of a shard's rows as they lie in its file, without the notes beside them."""
    return hashlib.sha256(batch.replace_schema_metadata(None).serialize()).hexdigest()


def is_intact(shard: Shard) -> bool:
    """Whether the rows are those that the writer noted; for shards that no manifest vouches for yet."""
    return shard.meta.get(_CONTENT) == content_digest(shard.batch)


def open_ipc(source: pa.NativeFile, where: str, columns: Sequence[str] | None = None) -> Shard:
    """Open a shard's bytes: footer, schema, then the buffers' own consistency; pictures are not read.

    Args:
        source: a memory map, a buffer reader or a random-access file.
        where: the file's name, for messages.
        columns: read these columns alone, those that an older version has; None reads all.

    Raises:
        records.SchemaError: not an Arrow IPC file, truncated, inconsistent, extension types, or another
        schema.
    """
    try:
        _check_footer(source, where)
        reader = ipc.open_file(source)
        records.check_schema(reader.schema, where)
        if columns is not None:
            fields = [reader.schema.get_field_index(name) for name in columns if name in reader.schema.names]
            reader = ipc.open_file(source, options=ipc.IpcReadOptions(included_fields=fields))
        if reader.num_record_batches > 1:
            raise records.SchemaError(f"{where} has {reader.num_record_batches} record batches, wanted one")
        meta = json.loads((reader.schema.metadata or {}).get(_META_KEY, b"{}"))
        batch = reader.get_batch(0) if reader.num_record_batches else _no_rows(reader.schema)
        batch.validate(full=True)
        _refuse_nulls(batch, where)
    except (pa.ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise records.SchemaError(
            f"{where} is not a readable shard ({str(error).splitlines()[0][:120]}): prepare the data again"
        ) from error
    return Shard(batch, meta)


def _check_footer(source: pa.NativeFile, where: str) -> None:
    size = source.size()
    if size < 2 * _TAIL_BYTES:
        raise records.SchemaError(f"{where} is {size} bytes long, which no shard is: prepare the data again")
    tail = source.read_at(_TAIL_BYTES, size - _TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little", signed=True)
    if tail[4:] != _MAGIC or not 0 < length <= size - 2 * _TAIL_BYTES:
        raise records.SchemaError(f"{where} ends without an Arrow footer: it was cut short; prepare the data again")
    if _EXTENSION_MARK in source.read_at(length, size - _TAIL_BYTES - length):
        raise records.SchemaError(
            f"{where} holds Arrow extension types, wanted plain ones only: it could run code; do not use it"
        )


def _refuse_nulls(batch: pa.RecordBatch, where: str) -> None:
    for field in batch.schema:
        if not field.nullable and batch.column(field.name).null_count:
            raise records.SchemaError(f"{where}: column {field.name} has empty cells: prepare the data again")


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)

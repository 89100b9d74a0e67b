import random

import pyarrow as pa
import pytest
from pyarrow import ipc

from pipelines import records, shards
from pipelines.records import Record

ROWS = [Record(i, f"{i}.jpg", bytes([i]) * 50, "0" * 64, 3, 4, (), False) for i in range(5)]


def opened(data, **options):
    return shards.open_ipc(shards.reader_of(data), "x.arrow", **options)


def test_the_same_rows_give_the_same_bytes_and_come_back():
    data = shards.to_ipc(ROWS, {"b": 1, "a": [2]})
    assert data.equals(shards.to_ipc(ROWS, {"a": [2], "b": 1}))
    shard = opened(data)
    assert (shard.meta["a"], shard.meta["b"]) == ([2], 1)
    assert [records.from_table(shard.batch, i) for i in range(5)] == ROWS
    assert shards.is_intact(shard)


def test_a_shard_without_rows():
    shard = opened(shards.to_ipc([], {}))
    assert shard.batch.num_rows == 0
    assert shards.is_intact(shard)


def test_columns_alone():
    shard = opened(shards.to_ipc(ROWS, {}), columns=["image_id", "height"])
    assert shard.batch.schema.names == ["image_id", "height"]
    assert shard.batch.column("image_id").to_pylist() == list(range(5))


def test_every_truncation_is_refused():
    data = shards.to_ipc(ROWS, {}).to_pybytes()
    for cut in range(len(data)):
        with pytest.raises(records.SchemaError, match=r"x\.arrow"):
            opened(data[:cut])


def test_a_flipped_bit_is_refused_or_noticed():
    data = shards.to_ipc(ROWS, {}).to_pybytes()
    rng = random.Random(3)
    noticed = 0
    for _ in range(300):
        at = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        try:
            noticed += not shards.is_intact(opened(bytes(flipped)))
        except records.SchemaError:
            noticed += 1
    # Padding and unused flatbuffer bytes carry no data; the manifest's hash covers those too.
    assert noticed > 150


class Payload(pa.ExtensionType):
    built = 0

    def __init__(self):
        super().__init__(pa.binary(), "test.payload")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.built += 1
        return cls()


def test_an_extension_type_is_refused_before_it_is_built():
    pa.register_extension_type(Payload())
    try:
        schema = pa.schema([pa.field("image_id", Payload())])
        sink = pa.BufferOutputStream()
        with ipc.new_file(sink, schema):
            pass
        Payload.built = 0
        with pytest.raises(records.SchemaError, match="extension types"):
            opened(sink.getvalue())
        assert Payload.built == 0
    finally:
        pa.unregister_extension_type("test.payload")


def test_empty_cells_are_refused():
    table = records.to_table(ROWS)
    holed = table.set_column(1, records.SCHEMA.field(1), pa.array([None] * 5, pa.string()))
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, records.SCHEMA) as writer:
        writer.write_table(holed)
    with pytest.raises(records.SchemaError, match="column file_name has empty cells"):
        opened(sink.getvalue())


def test_two_batches_are_refused():
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, records.SCHEMA) as writer:
        for _ in range(2):
            writer.write_table(records.to_table(ROWS))
    with pytest.raises(records.SchemaError, match="2 record batches"):
        opened(sink.getvalue())

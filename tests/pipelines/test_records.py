import numpy as np
import pyarrow as pa
import pytest

from pipelines import records
from pipelines.records import Instance, Record


def instance(number, **changes):
    made = {
        "id": number,
        "label": number % 3,
        "box_xyxy": (0.1, 0.2, 10.3, 20.7),
        "area": 33.3,
        "crowd": False,
        "ignore": number % 2 == 0,
        "polygons": (np.array([0.1, 0.2, 3.3, 4.4, 5.5, 1 / 3]), np.arange(8.0)),
        "rle": None,
        "keypoints": None,
    }
    return Instance(**{**made, **changes})


def record(number, instances=()):
    return Record(number, f"a/{number}.jpg", b"bytes" * number, "0" * 64, 30 + number, 40, tuple(instances), True)


ROWS = [
    record(0),
    record(1, [instance(1), instance(2, polygons=None, rle=b"abc", crowd=True, score=0.5, loss_weight=0.25)]),
    record(2),
    record(3, [instance(3, polygons=None, keypoints=np.arange(6, dtype=np.float32).reshape(2, 3)), instance(4)]),
    record(4, [
        instance(5, view_agreement=0.5, box_spread=0.25, mask_score=0.75),
        instance(6, view_agreement=1.0, box_spread=0.0, keypoint_scores=np.array([0.5, -2.0], np.float32)),
    ]),
]  # fmt: skip


def assert_same(one, other):
    assert vars(one).keys() == vars(other).keys()
    for name, value in vars(one).items():
        if name != "instances":
            assert getattr(other, name) == value
    for a, b in zip(one.instances, other.instances, strict=True):
        for name, value in a._asdict().items():
            np.testing.assert_equal(getattr(b, name), value)


@pytest.mark.parametrize("row", range(5))
def test_a_row_comes_back_as_it_was_also_from_a_slice(row):
    table = records.to_table(ROWS)
    records.check_schema(table.schema, "x")
    assert_same(ROWS[row], records.from_table(table, row))
    assert_same(ROWS[row], records.from_table(table.to_batches()[0], row))
    assert_same(ROWS[row], records.from_table(table.slice(row), 0))
    assert_same(ROWS[row], records.from_table(pa.concat_tables([table, table]), 5 + row))


def test_no_records_make_an_empty_table():
    assert records.to_table([]).num_rows == 0


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_that_are_not_there(row):
    with pytest.raises(IndexError, match=f"row {row} of 5"):
        records.from_table(records.to_table(ROWS), row)


def with_field(name, field):
    return records.SCHEMA.set(records.SCHEMA.get_field_index(name), field)


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        pytest.param(records.SCHEMA.remove(0), "has the columns", id="missing"),
        pytest.param(pa.schema(list(records.SCHEMA)[::-1]), "has the columns", id="order"),
        pytest.param(with_field("height", pa.field("height", pa.int64(), False)), "column height is int64", id="type"),
        pytest.param(with_field("height", pa.field("height", pa.int32())), "column height is int32, wanted", id="null"),
        pytest.param(
            with_field(
                "rle",
                pa.field(
                    "rle",
                    pa.list_(pa.field("item", pa.binary(), metadata={b"ARROW:extension:name": b"x"})),
                    False,
                ),
            ),
            "with field metadata",
            id="extension-inside",
        ),
    ],
)
def test_another_schema_is_refused(schema, match):
    with pytest.raises(records.SchemaError, match=match):
        records.check_schema(schema, "x.arrow")

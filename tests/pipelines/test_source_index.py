import math

import pytest

from pipelines import source_index
from pipelines.source_index import RawRow

ROWS = [RawRow(i, f"{i}.jpg", 3, 4, ({"id": i},)) for i in range(20)]


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (3, 3),
        (3.0, 3),
        (-3, -3),
        (3.5, None),
        (True, None),
        ("3", None),
        (None, None),
        (2**64, None),
        (math.nan, None),
        ([3], None),
    ],
)
def test_ids(value, want):
    assert source_index.as_id(value) == want


def test_the_order_depends_on_ids_and_seed_alone():
    first = source_index.split(ROWS, 6, seed=1, shuffle=True)
    assert first == source_index.split(ROWS[::-1], 6, seed=1, shuffle=True)
    assert first != source_index.split(ROWS, 6, seed=2, shuffle=True)
    assert [len(part) for part in first] == [6, 6, 6, 2]
    assert sorted(r.image_id for part in first for r in part) == list(range(20))
    plain = source_index.split(ROWS[::-1], 6, seed=1, shuffle=False)
    assert [r.image_id for part in plain for r in part] == list(range(20))


def test_raw_values_pass_through_json_unchanged():
    row = RawRow(1, None, math.inf, "x", [{"bbox": [10**400, -math.inf], "a": None}])
    assert source_index.from_json(source_index.to_json([row])) == [row]

"""Objects a class, without crowds, ignored regions and held-out pictures."""

import dataclasses

from pipelines.labelled_rates import count_labels
from tests.pipelines.tiny_shards import record, thing, write_dataset

BOX = (0, 0, 9, 9)


def test_only_objects_of_labelled_pictures_count(tmp_path):
    rows = [
        record(1, [thing(1, BOX), thing(2, BOX, 1), thing(3, BOX, 1, crowd=True)]),
        record(2, [thing(4, BOX), thing(5, BOX, ignore=True)]),
        dataclasses.replace(record(3), labelled=False),
        record(4),
    ]
    data = write_dataset(tmp_path, [rows[:1], [], rows[1:]])
    assert count_labels(data, ()) == ((2, 1), 3, 0)
    assert count_labels(data, {1, 3}) == ((1, 0), 2, 1)

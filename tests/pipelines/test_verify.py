"""Each thing that a data set says and that is not so has a line of its own."""

import dataclasses

import numpy as np
import pytest

from pipelines import dataset_writer, inspect
from pipelines.dataset import Dataset
from pipelines.manifest import ClassInfo
from pipelines.rejections import Reason, Rejection
from pipelines.verify import verify
from tests.pipelines.tiny_checked import record, write


def test_verifying_good_data_finds_nothing(tmp_path):
    result = inspect.run(inspect.InspectConfig(write(tmp_path, [record(2)]), verify=True))
    assert result.problems == ()
    assert result.text.endswith("verified      everything is as committed")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image": b"junk"}, "does not match its sha256"),
        ({"image": b"junk"}, "cannot be decoded"),
        ({"height": 25}, "the picture is 24x32, noted 25x32"),
    ],
)
def test_verifying_names_bad_records(tmp_path, changes, match):
    result = inspect.run(inspect.InspectConfig(write(tmp_path, [record(2, **changes)]), verify=True))
    assert any(match in problem and "record 0 (2.jpg)" in problem for problem in result.problems)
    assert match in result.text


def test_verifying_names_bad_objects(tmp_path):
    good = record(2)
    bad = [i._replace(rle=b"junk", box_xyxy=(1.0, 1.0, 1.0, 2.0)) for i in good.instances]
    problems = list(verify(Dataset(write(tmp_path, [dataclasses.replace(good, instances=tuple(bad))]))))
    assert sum("box (1.0" in p for p in problems) == 2
    assert sum("object 20:" in p for p in problems) == 2


POINTS = np.array([[3, 4, 2], [5, 6, 1]], np.float32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"area": -1.0}, "area -1.0"),
        ({"area": float("nan")}, "area nan"),
        ({"score": 1.5}, "score 1.5"),
        ({"loss_weight": float("inf")}, "loss weight inf"),
        ({"keypoints": POINTS[:1]}, "1 keypoints, its class has 2"),
        ({"keypoints": POINTS + np.float32([0, 0, 1])}, "keypoints that are not finite, or whose visibility"),
        ({"keypoints": POINTS * np.float32([np.nan, 1, 1])}, "keypoints that are not finite"),
        ({"keypoints": POINTS}, None),
    ],
)
def test_verifying_names_bad_fields_of_objects(tmp_path, changes, match):
    first, second = record(2).instances
    made = record(2, instances=(first, second._replace(**changes)))
    classes = (ClassInfo(3, "dog", ("nose", "tail")), ClassInfo(7, "cat"))
    problems = list(verify(Dataset(write(tmp_path, [made], classes=classes))))
    assert len(problems) == (match is not None)
    assert all(f"record 0 (2.jpg): object 21: {match}" in problem for problem in problems)


def test_verifying_names_ids_that_stand_twice(tmp_path, monkeypatch):
    made = record(2)
    twice = dataclasses.replace(made, instances=made.instances[:1] * 2)
    monkeypatch.setattr(dataset_writer, "_check_unique", lambda ids: None)
    problems = list(verify(Dataset(write(tmp_path, [twice, record(2)]))))
    assert problems == [
        "record 0 (2.jpg): the object id 20 stands twice",
        "image id 2 belongs to more than one record",
    ]


@pytest.mark.parametrize(
    ("column", "match"),
    [
        ("image_ids", "image id differs"),
        ("sizes_hw", "size differs"),
        ("labelled", "being labelled differs"),
        ("labels", "labels differs"),
    ],
)
def test_verifying_compares_the_index(tmp_path, column, match):
    data = Dataset(write(tmp_path, [record(2)]))
    setattr(data, column, 1 - getattr(data, column).astype(int))
    assert [problem for problem in verify(data) if match in problem]


def test_verifying_compares_the_account(tmp_path):
    data = Dataset(write(tmp_path, [record(2)]))
    shards = (dataclasses.replace(data.manifest.shards[0], instances=3),)
    changes = dict(
        rows_in=2, rows_rejected=1, instances_in=6, instances_kept=3, instances_rejected=3, class_counts=(2, 1),
        labelled_images=0, shards=shards,
    )  # fmt: skip
    data.manifest = dataclasses.replace(data.manifest, **changes)
    assert list(verify(data)) == [
        "shard-00000.arrow holds 2 objects, the manifest says 3",
        "objects a class differ from the manifest",
        "1 pictures are labelled, the manifest says 0",
        "rejected.arrow lists 0 pictures and 0 objects, the manifest says 1 and 3",
    ]


def test_verifying_opens_the_rejections(tmp_path):
    lost = (Rejection(Reason.BAD_BOX, "bbox", "[0]", False, "1.jpg", 1, 5, 1),)
    uri = write(tmp_path, [record(2)], lost)
    (tmp_path / "rejected.arrow").write_bytes(b"junk")
    assert ["rejected.arrow has 4 bytes" in problem for problem in verify(Dataset(uri))] == [True]


def test_ignored_objects_are_no_objects_and_data_that_counted_them_are_sound(tmp_path, monkeypatch):
    first, second = record(2).instances
    rows = [record(2, instances=(first, second._replace(ignore=True))), record(1)]
    data = Dataset(write(tmp_path / "new", rows))
    assert (data.labels.tolist(), data.label_offsets.tolist()) == ([0, 0], [0, 1, 2])
    assert (data.manifest.class_counts, data.manifest.crowds) == ((2, 0), 1)
    assert list(verify(data)) == []
    plain = dataset_writer._index_of
    seen = [dataclasses.replace(row, instances=tuple(i._replace(ignore=False) for i in row.instances))
            for row in rows]  # fmt: skip
    table = dataset_writer.records.to_table(seen).to_batches()[0]
    monkeypatch.setattr(dataset_writer, "_index_of", lambda batch: plain(table))  # as it once was written
    old = Dataset(write(tmp_path / "old", rows))
    assert (old.labels.tolist(), old.manifest.class_counts) == ([0, 0, 0], (3, 0))
    assert list(verify(old)) == []


def test_verifying_names_a_damaged_shard(tmp_path):
    uri = write(tmp_path, [record(2)])
    path = tmp_path / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    problems = list(verify(Dataset(uri)))
    assert "does not match its sha256 in the manifest" in problems[0]

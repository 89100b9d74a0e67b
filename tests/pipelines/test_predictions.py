"""Committed detections: what was written is read, damage is found, and COCO's result rows are right."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines import commit, predictions, storage
from pipelines.manifest import FileInfo
from pipelines.predictions import PredictionsError, PredictionsManifest
from tests.pipelines.tiny_shards import CLASSES, detected, record, write_dataset, write_predictions

OLD = Path(__file__).parent / "old_predictions" / "v1"


def findings(one):
    count = one.image_id % 3
    boxes = [(k, 2 * k, 10 + k, 20 + one.image_id) for k in range(count)]
    return detected(one, boxes, [k % 2 for k in range(count)], [0.9 - 0.1 * k for k in range(count)])


@pytest.fixture
def written(tmp_path):
    data = write_dataset(tmp_path / "data", [[record(n) for n in range(4)], [], [record(n) for n in range(4, 7)]])
    return data, write_predictions(tmp_path / "labels", data, findings)


def assert_same(one, other):
    assert (one.image_id, one.height, one.width, one.rles) == (other.image_id, other.height, other.width, other.rles)
    for name, kind in (("boxes_xyxy", np.float32), ("scores", np.float32), ("labels", np.int64), ("areas", np.int64)):
        assert getattr(one, name).dtype == kind
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_what_was_written_is_read(written):
    data, uri = written
    manifest = PredictionsManifest.load(uri)
    assert (manifest.pictures, manifest.detections, manifest.classes) == (7, 6, CLASSES)
    assert manifest.dataset == data.manifest.hash
    found = list(predictions.all_pictures(uri, manifest))
    assert [picture.image_id for picture in found] == data.image_ids.tolist()
    for index, picture in enumerate(found):
        assert_same(picture, findings(data.record(index)))
    assert found[0].boxes_xyxy.shape == (0, 4)
    assert [len(predictions.read_pictures(uri, shard)) for shard in manifest.shards] == [4, 0, 3]


def test_predictions_of_format_1_are_read_as_they_were_written():
    """Written by this file's fixture before there were views and keypoints."""
    manifest = PredictionsManifest.load(str(OLD))
    assert manifest.hash == "a52efa3b9d93d89756e292eb5dd35e5eb9365fd1aee0abc2b16e32af3e9071be"
    assert (manifest.pictures, manifest.detections, manifest.classes) == (7, 6, CLASSES)
    assert (manifest.making, manifest.account, manifest.machines) == (None, None, ())
    for number, picture in enumerate(predictions.all_pictures(str(OLD), manifest)):
        wanted = findings(record(number))
        assert_same(picture, wanted)
        for name in ("view_agreement", "box_spread", "mask_agreement"):
            np.testing.assert_array_equal(getattr(picture, name), getattr(wanted, name))
        assert (picture.keypoints, picture.rejected) == (None, "")


def test_keypoints_agreement_and_rejections_are_kept(tmp_path):
    points = np.random.default_rng(0).random((2, 5, 3)).astype(np.float32)
    made = dataclasses.replace(
        findings(record(2)), rles=None, mask_agreement=None, keypoints=points,
        view_agreement=np.array([0.5, 1.0], np.float32), box_spread=np.array([0.25, 0.0], np.float32),
    )  # fmt: skip
    lost = dataclasses.replace(findings(record(0)), rles=None, mask_agreement=None, rejected="truncated")
    empty = dataclasses.replace(findings(record(0)), keypoints=np.zeros((0, 5, 3), np.float32))
    filesystem, path = storage.open_uri(str(tmp_path / "p.arrow"))
    data = predictions.to_ipc([made, lost, empty], {})
    commit.write_file(filesystem, path, memoryview(data))
    info = FileInfo("p.arrow", data.size, commit.sha256_of(memoryview(data)))
    found, other, nothing = predictions.read_pictures(str(tmp_path), info)
    assert nothing.keypoints.size == 0
    assert_same(found, made)
    for name in ("keypoints", "view_agreement", "box_spread"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert (found.mask_agreement, other.keypoints, other.rejected, found.rejected) == (None, None, "truncated", "")
    persons = [dataclasses.replace(info, keypoints=("nose",) * 5) for info in CLASSES]
    row = predictions.to_results(found, persons)[0]
    assert "segmentation" not in row
    np.testing.assert_allclose(np.reshape(row["keypoints"], (5, 3)), points[0] - [0.5, 0.5, 0], atol=1e-6)


def test_the_hash_is_that_of_the_file(written, tmp_path):
    _, uri = written
    manifest = PredictionsManifest.load(uri)
    assert manifest.hash == commit.sha256_of((tmp_path / "labels" / "manifest.json").read_bytes())


def test_a_shard_without_a_manifest_is_whole_or_nothing(tmp_path):
    """A flipped bit anywhere, in its notes too, or a cut: it must be made again."""
    filesystem, path = storage.open_uri(str(tmp_path / "p.arrow"))
    assert predictions.read_intact(filesystem, path) is None
    data = predictions.to_ipc([findings(record(2))], {"shard": 3, "batch": 4})
    commit.write_file(filesystem, path, memoryview(data))
    info = FileInfo("p.arrow", data.size, commit.sha256_of(memoryview(data)))
    assert predictions.read_intact(filesystem, path) == ({"shard": 3, "batch": 4}, info)
    assert predictions.to_ipc([findings(record(2))], {"batch": 4, "shard": 3}).equals(data)
    bad = [b"", b"ARROW1", bytes(data)[:-20], b"x" * 500, bytes(data) + b"x"]
    for place in [*np.random.default_rng(0).integers(0, data.size, 200).tolist(), bytes(data).index(b'"shard"') + 9]:
        flipped = bytearray(bytes(data))
        flipped[place] ^= 1 << place % 8
        bad.append(bytes(flipped))
    for content in bad:
        (tmp_path / "p.arrow").write_bytes(content)
        assert predictions.read_intact(filesystem, path) is None


def test_damage_is_found(written, tmp_path):
    _, uri = written
    manifest = PredictionsManifest.load(uri)
    shard = tmp_path / "labels" / manifest.shards[0].file
    good = shard.read_bytes()
    for place in {0, len(good) - 1, *np.random.default_rng(0).integers(0, len(good), 20).tolist()}:
        bad = bytearray(good)
        bad[place] ^= 16
        shard.write_bytes(bad)
        with pytest.raises(PredictionsError, match="does not match its sha256 in the manifest: predict again"):
            predictions.read_pictures(uri, manifest.shards[0])
    shard.unlink()
    with pytest.raises(PredictionsError, match="is missing: predict again"):
        predictions.read_pictures(uri, manifest.shards[0])


def test_columns_of_something_else_are_refused(written, tmp_path):
    data, uri = written
    name = data.manifest.shards[0].file
    content = (tmp_path / "data" / name).read_bytes()
    (tmp_path / "labels" / "other.arrow").write_bytes(content)
    with pytest.raises(PredictionsError, match=r"has the columns .*'keypoints'.*, wanted"):
        predictions.read_pictures(uri, FileInfo("other.arrow", len(content), commit.sha256_of(content)))


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "{}", '{"kind": "dataset", "format_version": 1}', '{"kind": "predictions"}', "[" * 9999]
)
def test_another_manifest_is_refused(written, tmp_path, body):
    _, uri = written
    (tmp_path / "labels" / "manifest.json").write_text(body)
    with pytest.raises(PredictionsError, match=r"is no predictions manifest of version 1 or 2 .*: predict again"):
        PredictionsManifest.load(uri)


def test_a_flipped_bit_of_the_manifest_is_found(written, tmp_path):
    _, uri = written
    path = tmp_path / "labels" / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(PredictionsError, match="predict again"):
            PredictionsManifest.load(uri)


def test_no_predictions(tmp_path):
    with pytest.raises(PredictionsError, match="holds no finished predictions: run `maskray predict` with --out"):
        PredictionsManifest.load(str(tmp_path))


def test_result_rows_are_cocos():
    found = findings(record(5))
    rows = predictions.to_results(found, CLASSES)
    assert [row["category_id"] for row in rows] == [3, 7]
    assert [row["bbox"] for row in rows] == [[0, 0, 10, 25], [1, 2, 10, 23]]
    assert {row["image_id"] for row in rows} == {5}
    assert json.loads(json.dumps(rows)) == rows
    for row, area in zip(rows, found.areas, strict=True):
        mask = coco_mask.decode(row["segmentation"])
        x, y, width, height = map(int, row["bbox"])
        assert mask.shape == (48, 64)
        assert mask[y : y + height, x : x + width].all()
        assert mask.sum() == area == width * height

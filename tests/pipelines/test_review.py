"""Exports for review, against what each importer documents that it reads."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools.coco import COCO

from pipelines import masks, review
from pipelines.masks import rasterise
from pipelines.pool_shards import ShardTable
from tests.pipelines.tiny_shards import CLASSES, record, thing, write_dataset

THRESHOLDS = [0.5, 0.7]


def found(number, box, label, score, **changes):
    """A label with a mask that has a hole, as run lengths."""
    bitmap = np.zeros((48, 64), np.uint8)
    x1, y1, x2, y2 = box
    bitmap[y1:y2, x1:x2] = 1
    bitmap[y1 + 2 : y1 + 4, x1 + 2 : x1 + 4] = 0
    area = float(bitmap.sum())
    return thing(number, box, label, polygons=None, rle=masks.encode(bitmap), score=score, area=area, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pseudo")
    rows = [
        record(1, [found(11, (0, 0, 20, 20), 0, 0.99)]),
        record(2, [found(21, (4, 4, 30, 24), 1, 0.72), found(22, (30, 30, 60, 40), 0, 0.3, ignore=True, crowd=True)]),
        record(3),
        record(4, [found(41, (5, 5, 25, 25), 0, 0.51)], file_name="deep/er/four.JPG"),
    ]
    data = write_dataset(out, [rows[:2], rows[2:]])
    table = ShardTable.of(data.manifest.shards)
    chosen = [review.doubtful(shard, str(out), table, THRESHOLDS, 2)["rows"] for shard in (0, 1)]
    assert [[row for _, row in rows] for rows in chosen] == [[1, 0], [1]]
    assert [value for rows in chosen for value, _ in rows] == pytest.approx([0.02, 0.49, 0.01], abs=1e-6)
    review.export(str(out), [3, 1], "/data/local-files/?d=review/", "teacher-1")
    return Path(out) / "review"


def test_the_most_doubtful_pictures_are_chosen(folder):
    tasks = json.loads((folder / "label_studio.json").read_text())
    assert [task["data"]["image_id"] for task in tasks] == [4, 2]  # 0.01 and 0.02 from their thresholds
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["2.jpg", "4.jpg"]


@pytest.mark.parametrize("name", ["labels.json", "cvat.json"])
def test_coco_readers_find_pictures_masks_and_boxes(folder, name, capsys):
    """FiftyOne's COCODetectionDataset (data/ and labels.json) and CVAT's COCO 1.0 (pictures by file name)."""
    truth = COCO(str(folder / name))
    assert {row["file_name"] for row in truth.imgs.values()} == {"2.jpg", "4.jpg"}
    assert {row["id"]: row["name"] for row in truth.cats.values()} == {info.id: info.name for info in CLASSES}
    assert {21, 22, 41} == set(truth.anns)
    for row in truth.anns.values():
        assert truth.annToMask(row).sum() == row["area"]
        assert isinstance(row["segmentation"], list) is not bool(row["iscrowd"])
        assert len(row["bbox"]) == 4
        extra = row["attributes"] if name == "cvat.json" else row
        assert (extra["ignored"], 0 <= extra["score"] <= 1) == (bool(row["iscrowd"]), True)


def test_label_studio_tasks_are_those_its_import_documents(folder):
    """Percent coordinates, a score a prediction, and names that the labelling config knows."""
    config = ElementTree.fromstring((folder / "label_studio.xml").read_text())
    image, labels = config.find("Image"), config.find("PolygonLabels")
    names = {label.get("value") for label in labels}
    for task in json.loads((folder / "label_studio.json").read_text()):
        (prediction,) = task["predictions"]
        assert task["data"][image.get("value").removeprefix("$")].startswith("/data/local-files/?d=review/")
        assert prediction["model_version"] == "teacher-1"
        assert prediction["score"] == pytest.approx(min(region["score"] for region in prediction["result"]))
        ids = [region["id"] for region in prediction["result"]]
        assert len(set(ids)) == len(ids)
        for region in prediction["result"]:
            assert (region["from_name"], region["to_name"]) == (labels.get("name"), image.get("name"))
            assert (region["type"], region["original_width"], region["original_height"]) == ("polygonlabels", 64, 48)
            assert set(region["value"]["polygonlabels"]) <= names
            assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in region["value"]["points"])


def test_polygons_in_percent_are_the_mask(folder):
    task = next(t for t in json.loads((folder / "label_studio.json").read_text()) if t["data"]["image_id"] == 4)
    rings = [
        (np.array(region["value"]["points"]) * (0.64, 0.48)).ravel() for region in task["predictions"][0]["result"]
    ]
    drawn = rasterise(rings, 48, 64)
    assert drawn.sum() == 20 * 20 - 4
    assert drawn[5:25, 5:25].sum() == drawn.sum()

"""A prepared data set says what its source said."""

import dataclasses
import json

import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipelines import masks
from pipelines.coco_export import to_coco
from pipelines.coco_metrics import evaluate
from tests.pipelines import real_data, tiny_coco
from tests.pipelines.tiny_shards import record, thing, write_dataset


def fed_back(exported):
    """The objects that are not crowds as results."""
    names = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {**{name: row[name] for name in names}, "score": 1.0} for row in exported["annotations"] if not row["iscrowd"]
    ]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_come_back_and_score_one(tmp_path, split):
    root = real_data.test_data() / "coco"
    source = root / "annotations" / f"instances_{split}.json"
    exported = to_coco(real_data.prepared(root / split, source, tmp_path / "d"))
    truth = COCO(str(source))
    assert {row["id"] for row in exported["annotations"]} == set(truth.anns)
    assert {row["id"] for row in exported["images"]} == set(truth.imgs)
    for row in exported["annotations"]:
        original = truth.anns[row["id"]]
        for name in ("image_id", "category_id", "iscrowd", "area"):
            assert row[name] == original[name]
        assert row["bbox"] == pytest.approx(original["bbox"], abs=1e-9)
        assert coco_mask.area(row["segmentation"]) == truth.annToMask(original).sum()
        assert (coco_mask.decode(row["segmentation"]) == truth.annToMask(original)).all()
    assert json.loads(json.dumps(exported)) == exported
    for kind in ("bbox", "segm"):
        metrics = evaluate(exported, fed_back(exported), kind)
        assert pytest.approx(1.0, abs=1e-9) == metrics.AP
        assert min(ap for ap in metrics.per_class.values() if ap >= 0) == pytest.approx(1.0, abs=1e-9)
        # Crowds and small boxes are as in the source: its own judgement of the same results is the same.
        assert evaluate(json.loads(source.read_text()), fed_back(exported), kind) == metrics


def test_a_small_data_set_word_for_word(tmp_path):
    images, file = tiny_coco.write(tmp_path)
    source = json.loads((tmp_path / "annotations.json").read_text())
    exported = to_coco(real_data.prepared(images, file, tmp_path / "out", 3))
    strip = {"segmentation"}
    assert sorted(exported["annotations"], key=lambda row: row["id"]) == [
        {**row, "segmentation": made["segmentation"]}
        for row, made in zip(source["annotations"], sorted(exported["annotations"], key=lambda r: r["id"]), strict=True)
    ], strip
    assert sorted(exported["images"], key=lambda row: row["id"]) == source["images"]
    assert exported["categories"] == [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]


def test_regions_scores_and_objects_without_a_mask(tmp_path):
    rle = masks.encode(masks.rasterise(thing(0, (2, 3, 20, 30)).polygons, 48, 64))
    things = [
        thing(1, (2, 3, 20, 30)),
        thing(2, (2, 3, 20, 30), polygons=None, rle=rle, score=0.5),
        thing(3, (2, 3, 20, 30), 1, polygons=None),
        thing(4, (2, 3, 20, 30), crowd=True),
        thing(5, (2, 3, 20, 30), ignore=True),
    ]
    data = write_dataset(tmp_path, [[record(9, things), record(8)], [dataclasses.replace(record(10), labelled=False)]])
    exported = to_coco(data)
    rows = exported["annotations"]
    assert [row["iscrowd"] for row in rows] == [0, 0, 0, 1, 1]
    assert [row["category_id"] for row in rows] == [3, 3, 7, 3, 3]
    assert ["score" in row for row in rows] == [False, True, False, False, False]
    assert ["segmentation" in row for row in rows] == [True, True, False, True, True]
    assert rows[0]["segmentation"] == rows[1]["segmentation"] == {"size": [48, 64], "counts": rle.decode()}
    assert [row["id"] for row in exported["images"]] == [9, 8, 10]
    assert rows[0]["bbox"] == [2, 3, 18, 27]

"""COCO's metrics: those of pycocotools on the official results, and a clear line for anything malformed."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines.coco_metrics import STAT_NAMES, GroundTruth, evaluate
from pipelines.outlines import to_run_lengths
from pipelines.shapes import ShapesConfig, generate

# COCOeval adds a float spacing to the divisor, so its best precision is a hair under 1.
PERFECT = pytest.approx(1.0, abs=1e-9)


def square(y, x, side, size_hw=(40, 50)):
    mask = np.zeros(size_hw, np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def compressed(mask):
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


def truth():
    return {
        "images": [{"id": 10, "height": 40, "width": 50}, {"id": 70, "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {
                "id": 0,
                "image_id": 10,
                "category_id": 3,
                "iscrowd": 0,
                "area": 100,
                "bbox": [5, 4, 10, 10],
                "segmentation": [[5, 4, 15, 4, 15, 14, 5, 14]],
            },
            {
                "id": 1,
                "image_id": 70,
                "category_id": 3,
                "iscrowd": 1,
                "area": 144,
                "bbox": [20, 20, 12, 12],
                "segmentation": {"size": [40, 50], "counts": to_run_lengths(square(20, 20, 12))},
            },
        ],
    }


def hit(**changes):
    row = {
        "image_id": 10,
        "category_id": 3,
        "score": 0.9,
        "bbox": [5, 4, 10, 10],
        "segmentation": compressed(square(4, 5, 10)),
    }
    return row | changes


@pytest.fixture(scope="module")
def data():
    root = os.environ.get("MASKRAY_TEST_DATA")
    if not root:
        pytest.skip("MASKRAY_TEST_DATA is not set: it names the folder with coco and coco_eval")
    return Path(root)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_official_results_score_as_pycocotools_has_them(data, kind):
    folder = data / "coco_eval"
    expected = json.loads((folder / "EXPECTED_pycocotools.json").read_text())
    ground_truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    metrics = evaluate(ground_truth, results, kind)
    assert expected["stat_names"] == list(STAT_NAMES)
    np.testing.assert_allclose(list(metrics.numbers().values()), expected[kind], rtol=0, atol=1e-6)
    known = [ap for ap in metrics.per_class.values() if ap >= 0]
    assert np.mean(known) == pytest.approx(metrics.AP, abs=1e-9)


def fed_back(source):
    """The non-crowd annotations as results."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in source["images"]}
    rows = []
    for row in source["annotations"]:
        if row["iscrowd"]:
            continue
        packed = coco_mask.merge(coco_mask.frPyObjects(row["segmentation"], *sizes[row["image_id"]]))
        rows.append(
            {
                "image_id": row["image_id"],
                "category_id": row["category_id"],
                "score": 1.0,
                "bbox": row["bbox"],
                "segmentation": packed,
            }
        )
    return rows


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_truth_fed_back_is_perfect_on_real_pictures(data, split, kind):
    source = json.loads((data / f"coco/annotations/instances_{split}.json").read_text())
    metrics = evaluate(source, fed_back(source), kind)
    assert metrics.AP == PERFECT
    assert metrics.AP75 == PERFECT
    known = [ap for ap in metrics.per_class.values() if ap >= 0]
    assert known
    assert min(known) == PERFECT


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_fed_back_is_perfect_on_shapes(tmp_path, kind):
    generate(ShapesConfig(train=0, val=20, unlabelled=0, crowds=0.5), tmp_path / "shapes")
    source = json.loads((tmp_path / "shapes/annotations/instances_val2017.json").read_text())
    assert evaluate(source, fed_back(source), kind).AP == PERFECT


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_one_hit_with_a_numpy_id(kind):
    metrics = evaluate(truth(), [hit(image_id=np.int64(10), score=np.float32(0.5))], kind)
    # The object's annotation id is 0, which bare COCOeval would count as never found.
    assert metrics.AP == PERFECT
    assert metrics.per_class == {"cat": PERFECT, "dog": -1.0}
    assert metrics.APm == metrics.APl == -1.0


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_detection_on_a_crowd_costs_nothing(kind):
    on_crowd = hit(image_id=70, score=0.99, bbox=[21, 21, 8, 8], segmentation=compressed(square(21, 21, 8)))
    assert evaluate(truth(), [on_crowd, hit()], kind).AP == PERFECT
    beside = hit(image_id=70, score=0.99, bbox=[0, 0, 8, 8], segmentation=compressed(square(0, 0, 8)))
    assert 0.49 < evaluate(truth(), [beside, hit()], kind).AP < 0.51


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_no_results_score_zero_and_no_objects_are_undefined(kind):
    assert evaluate(truth(), [], kind).AP == 0.0
    assert evaluate(truth(), [], kind).AR100 == 0.0
    empty = truth() | {"annotations": []}
    assert set(evaluate(empty, [], kind).numbers().values()) == {-1.0}
    assert evaluate(empty, [hit()], kind).AP == -1.0


def test_masks_are_measured_by_their_own_area():
    # A long thin mask in a large box: COCO's size ranges must go by the mask here, by the box for kind bbox.
    source = truth()
    source["images"][0] |= {"height": 200, "width": 200}
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 0], mask[0, :] = 1, 1
    large = hit(bbox=[0, 0, 200, 200], segmentation=compressed(mask))
    source["annotations"][0] |= {
        "area": int(mask.sum()),
        "bbox": [0, 0, 200, 200],
        "segmentation": compressed(mask),
    }
    assert evaluate(source, [large], "segm").APs == PERFECT


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_is_printed_and_nothing_changed(capsys, kind):
    source, results = truth(), [hit()]
    before = copy.deepcopy((source, results))
    evaluate(source, results, kind)
    assert (source, results) == before
    assert capsys.readouterr() == ("", "")


def test_a_ground_truth_serves_many_calls():
    ground_truth = GroundTruth.from_coco(truth())
    for kind in ("bbox", "segm", "bbox"):
        assert evaluate(ground_truth, [hit()], kind).AP == PERFECT


BAD_RESULTS = [
    pytest.param("bbox", {"image_id": 11}, r"results\[0\]: image_id 11 is none of .* 2 pic", id="picture"),
    pytest.param("bbox", {"image_id": True}, "image_id True is none", id="true-is-no-id"),
    pytest.param("bbox", {"image_id": [10]}, r"image_id \[10\] is none", id="unhashable-id"),
    pytest.param("segm", {"category_id": 4}, "category_id 4 is none of .* 2 categories", id="category"),
    pytest.param("bbox", {"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\], wanted finite \[x, y,", id="short"),
    pytest.param("bbox", {"bbox": [1, 2, -3, 4]}, "sizes >= 0", id="negative-width"),
    pytest.param("bbox", {"bbox": [1, 2, float("nan"), 4]}, r"nan, 4\], wanted finite", id="nan-box"),
    pytest.param("bbox", {"bbox": None}, "bbox is None", id="no-box"),
    pytest.param("bbox", {"score": float("inf")}, "score is inf, wanted a finite", id="infinite-score"),
    pytest.param("bbox", {"score": "high"}, "score is 'high'", id="text-score"),
    pytest.param("segm", {"segmentation": None}, "segmentation is a NoneType", id="no-mask"),
    pytest.param("segm", {"segmentation": [[1, 1, 5, 1, 5, 5]]}, "give a compressed RLE", id="polygon"),
    pytest.param(
        "segm", {"segmentation": compressed(square(0, 0, 5, (50, 40)))}, r"size is \[50, 40\]", id="mask-size"
    ),
    pytest.param("segm", {"segmentation": {"size": [40, 50], "counts": "0~~~"}}, r"results\[0\]: counts", id="bytes"),
    pytest.param("segm", {"segmentation": {"size": [40, 50], "counts": [5, 9999]}}, r"run 1 is 9999", id="runs"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), BAD_RESULTS)
def test_a_bad_result_is_one_clear_line(kind, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(truth(), [hit(**changes)], kind)
    assert "\n" not in str(caught.value)


BAD_TRUTHS = [
    pytest.param({"image_id": 11}, r"annotations\[0\]: image_id 11", id="picture"),
    pytest.param({"category_id": 99}, "category_id 99", id="category"),
    pytest.param({"bbox": []}, r"annotations\[0\]: bbox is \[\]", id="box"),
    pytest.param({"area": None}, "area is None", id="area"),
    pytest.param({"segmentation": [[1, 2, 3]]}, r"annotations\[0\]: a ring has 3 values", id="odd-ring"),
    pytest.param({"segmentation": None}, r"annotations\[0\]: polygons are None", id="no-mask"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_TRUTHS)
def test_a_bad_annotation_is_one_clear_line(changes, message):
    source = truth()
    source["annotations"][0] |= changes
    with pytest.raises(ValueError, match=message):
        evaluate(source, [], "segm")


def test_a_file_of_another_sort_is_named():
    with pytest.raises(ValueError, match=r"no list 'annotations', its keys are \['categories', 'images'\]"):
        evaluate({"images": [], "categories": []}, [], "bbox")


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="no COCO metric of kind 'keypoints': choose bbox or segm"):
        evaluate(truth(), [], "keypoints")


@pytest.mark.parametrize("part", ["images", "categories"])
def test_an_image_or_category_without_id_is_named(part):
    truth = {"images": [{"id": 1, "height": 4, "width": 4}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    del truth[part][0]["id"]
    with pytest.raises(ValueError, match="wanted id, height and width of images"):
        GroundTruth.from_coco(truth)

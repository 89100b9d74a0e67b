"""COCO's metrics: those of pycocotools on the official results, and a clear line for anything malformed."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.coco_metrics import STAT_NAMES, evaluate, evaluate_keypoints
from pipelines.coco_rows import GroundTruth
from pipelines.outlines import to_run_lengths
from pipelines.shapes import ShapesConfig, generate
from tests.pipelines import real_data

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
    pytest.param({"iscrowd": None}, r"annotations\[0\]: iscrowd is None, wanted 0 or 1", id="no-flag"),
    pytest.param({"iscrowd": 2}, "iscrowd is 2, wanted 0 or 1", id="flag"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_TRUTHS)
def test_a_bad_annotation_is_one_clear_line(changes, message):
    source = truth()
    source["annotations"][0] |= changes
    with pytest.raises(ValueError, match=message):
        evaluate(source, [], "segm")


@pytest.mark.parametrize("row", [1, None, "text", [1, 2]])
def test_an_annotation_that_is_no_object_is_named(row):
    with pytest.raises(ValueError, match=r"annotations\[2\] is .*, wanted an object"):
        evaluate(truth() | {"annotations": [*truth()["annotations"], row]}, [], "bbox")
    with pytest.raises(ValueError, match="the ground truth is a list, wanted an object"):
        GroundTruth.from_coco([row])


@pytest.mark.parametrize("segmentation", [None, []])
def test_objects_without_a_mask_are_ignored_by_the_metric_of_masks_and_what_lies_on_them_too(segmentation):
    source = truth()
    source["annotations"].append(source["annotations"][0] | {"id": 2, "image_id": 70, "segmentation": segmentation})
    ground_truth = GroundTruth.from_coco(source)
    assert ground_truth.without_mask == 1
    there = hit(image_id=70, score=1.0)
    assert evaluate(ground_truth, [hit(), there], "segm").AP == PERFECT
    assert evaluate(ground_truth, [hit()], "segm").AP == PERFECT
    assert pytest.approx(0.5) == evaluate(ground_truth, [hit()], "bbox").AR100  # its box is an object's


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


def perturbed_persons(content, seed):
    """Truth as results: shifted points, some persons missing, some twice, some where there is nobody."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in content["annotations"]:
        points = np.array(row["keypoints"], float).reshape(-1, 3)
        if row["iscrowd"] or not points[:, 2].any():
            x, y, w, h = row["bbox"]
            points[:, 0], points[:, 1] = rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17)
        for _ in range(rng.integers(0, 3)):
            moved = points + rng.normal(0, rng.choice([1, 5, 20]), points.shape) * [1, 1, 0]
            row_id = {"image_id": row["image_id"], "category_id": 1}
            rows.append({**row_id, "score": float(rng.random()), "keypoints": moved.ravel().tolist()})
    return rows


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("seed", [0, 1])
def test_keypoints_score_as_pycocotools_has_them(split, seed):
    content = json.loads((real_data.test_data() / f"coco/annotations/person_keypoints_{split}.json").read_text())
    assert any(row["iscrowd"] for row in content["annotations"]) or split == "val2017"
    assert any(not any(row["keypoints"][2::3]) for row in content["annotations"])
    results = perturbed_persons(content, seed)
    before = copy.deepcopy((content, results))
    found = evaluate_keypoints(content, results)
    assert (content, results) == before
    theirs = COCO()
    theirs.dataset = copy.deepcopy(content)
    theirs.createIndex()
    run = COCOeval(theirs, theirs.loadRes(copy.deepcopy(results)), "keypoints")
    run.evaluate()
    run.accumulate()
    run.summarize()
    np.testing.assert_allclose(list(found.numbers().values()), run.stats, rtol=0, atol=1e-6)
    assert 0.1 < found.AP < 0.9
    assert found.per_class == {"person": pytest.approx(found.AP)}


@pytest.mark.parametrize("points", [None, [1.0] * 50, ["x"] * 51, [float("nan")] * 51, "text", [1.0] * 54])
def test_keypoints_that_are_none_are_told(points):
    content = {**truth(), "annotations": []}
    row = {"image_id": 10, "category_id": 3, "score": 0.5, "keypoints": points}
    with pytest.raises(ValueError, match=r"results\[0\]: keypoints are .*, wanted 51 finite numbers x, y, v"):
        evaluate_keypoints(content, [row])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_generated_pictures_score_as_pycocotools_has_them(kind, tmp_path):
    """Many classes, ties of scores and crowds: where the fast form might go another way."""
    rng = np.random.default_rng(0)
    content = truth()
    content["categories"] = [{"id": k, "name": f"c{k}"} for k in range(1, 9)]
    content["images"] = [{"id": k, "height": 40, "width": 50} for k in range(60)]
    content["annotations"], results = [], []
    for image in range(60):
        for _ in range(rng.integers(0, 6)):
            y, x, side, label = *rng.integers(0, 25, 2), rng.integers(3, 15), int(rng.integers(1, 9))
            box = [int(x), int(y), int(side), int(side)]
            row = {"image_id": image, "category_id": label, "bbox": box, "segmentation": compressed(square(y, x, side))}
            content["annotations"].append({**row, "id": len(content["annotations"]), "area": int(side * side),
                                           "iscrowd": int(rng.random() < 0.1)})  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                dy, dx = np.clip(np.array([y, x]) + rng.integers(-2, 3, 2), 0, 25)
                moved = {
                    "bbox": [int(dx), int(dy), int(side), int(side)],
                    "segmentation": compressed(square(dy, dx, side)),
                }
                results.append({**row, **moved, "score": float(rng.integers(1, 5)) / 4})
    theirs = COCO()
    theirs.dataset = copy.deepcopy(content)
    theirs.createIndex()
    # COCOeval takes a match with the annotation of id 0 for no match; ours is free of that.
    for row in theirs.dataset["annotations"]:
        row["id"] += 1
    theirs.createIndex()
    listed = [{k: v for k, v in row.items() if kind == "bbox" or k != "bbox"} for row in copy.deepcopy(results)]
    run = COCOeval(theirs, theirs.loadRes(listed), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    np.testing.assert_allclose(list(evaluate(content, results, kind).numbers().values()), run.stats, rtol=0, atol=1e-6)

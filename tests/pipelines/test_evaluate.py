"""Measuring: files as pycocotools has them, predictions on the data they were made on, and what does not fit."""

import dataclasses
import json

import numpy as np
import pytest

from pipelines import evaluate, masks
from pipelines.checkpoints import Checkpoint
from pipelines.coco_metrics import STAT_NAMES
from pipelines.dataset import Dataset
from pipelines.evaluate import EvaluateConfig, EvaluationError
from pipelines.manifest import ClassInfo
from pipelines.predictions import PicturePrediction
from tests.pipelines import real_data, tiny_run
from tests.pipelines.tiny_shards import CLASSES, detected, record, thing, write_dataset, write_predictions

PERFECT = pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_files_score_as_pycocotools_has_them(kind):
    folder = real_data.test_data() / "coco_eval"
    results = folder / f"instances_val2014_fake{kind}100_results.json"
    found = evaluate.measure_files(str(folder / "instances_val2014_100.json"), str(results))
    expected = json.loads((folder / "EXPECTED_pycocotools.json").read_text())
    part = found.box if kind == "bbox" else found.mask
    assert expected["stat_names"] == list(STAT_NAMES)
    np.testing.assert_allclose(list(part.numbers().values()), expected[kind], rtol=0, atol=1e-6)
    assert found.predictions == ""
    rows = json.loads(results.read_text())
    assert (found.box is None) == (not all("bbox" in row for row in rows))
    assert (found.mask is None) == (not all("segmentation" in row for row in rows))


def test_real_truth_as_predictions_is_perfect(tmp_path):
    root = real_data.test_data() / "coco"
    data = real_data.prepared(root / "val2017", root / "annotations/instances_val2017.json", tmp_path / "d")
    truth = write_predictions(tmp_path / "p", data, of_the_truth, classes=data.manifest.classes)
    found = evaluate.measure(data, truth)
    # Boxes are float32 here, of annotations in hundredths of a pixel.
    assert pytest.approx(1.0, abs=1e-6) == found.box.AP
    assert found.mask.AP == PERFECT
    assert found.predictions == truth


def of_the_truth(one):
    things = [i for i in one.instances if not i.crowd]
    rles = [i.rle or masks.polygons_to_rle(i.polygons, one.height, one.width) for i in things]
    return PicturePrediction(
        one.image_id,
        one.height,
        one.width,
        np.array([i.box_xyxy for i in things], np.float32).reshape(-1, 4),
        np.ones(len(things), np.float32),
        np.array([i.label for i in things], np.int64),
        tuple(rles),
        np.array([masks.area(rle) for rle in rles], np.int64),
        np.ones(len(things), np.float32),
        np.zeros(len(things), np.float32),
    )


@pytest.fixture
def data(tmp_path):
    rows = [[record(1, [thing(1, (2, 3, 20, 30))]), record(2, [thing(2, (5, 6, 40, 40), 1)])], [record(3)]]
    return write_dataset(tmp_path / "data", rows)


def half_right(one):
    """The first picture's object, and a wrong class on the second's."""
    if not one.instances:
        return detected(one, [])
    return detected(one, [tuple(map(int, one.instances[0].box_xyxy))], [0], [0.9])


def test_classes_are_told_apart(data, tmp_path):
    found = evaluate.measure(data, write_predictions(tmp_path / "p", data, half_right))
    assert found.box.per_class == {"dog": PERFECT, "cat & <mouse>": 0.0}
    assert pytest.approx(0.5, abs=1e-9) == found.mask.AP


def test_objects_without_a_mask_are_counted(tmp_path):
    bare = thing(2, (5, 6, 40, 40), 1, polygons=None)
    data = write_dataset(tmp_path / "data", [[record(1, [thing(1, (2, 3, 20, 30))]), record(2, [bare])]])
    found = evaluate.measure(data, write_predictions(tmp_path / "p", data, half_right))
    assert found.without_mask == 1
    assert found.mask.per_class == {"dog": PERFECT, "cat & <mouse>": -1.0}
    assert found.box.per_class == {"dog": PERFECT, "cat & <mouse>": 0.0}


def test_predictions_of_other_data_or_classes_are_refused(data, tmp_path):
    other = write_predictions(tmp_path / "a", data, half_right, dataset="0" * 64)
    with pytest.raises(EvaluationError, match=r"were made on other data than .*: predict again"):
        evaluate.measure(data, other)
    other = write_predictions(tmp_path / "b", data, half_right, classes=CLASSES[::-1])
    with pytest.raises(EvaluationError, match=r"knows \['cat & <mouse>', 'dog'\], .* has \['dog', 'cat"):
        evaluate.measure(data, other)


def checkpoint(classes=CLASSES):
    return Checkpoint("run/checkpoints/step-1", 1, tiny_run.detector_config(), classes, "h", {})


def test_a_detector_that_fits_its_data(data):
    evaluate.check_fits(checkpoint(), data)


@pytest.mark.parametrize(
    "classes", [CLASSES[:1], CLASSES[::-1], (CLASSES[0], ClassInfo(8, *dataclasses.astuple(CLASSES[1])[1:])), ()]
)
def test_a_detector_of_other_classes_is_refused(data, classes):
    with pytest.raises(EvaluationError, match=r"step-1 has the classes .*: use a checkpoint trained on these classes"):
        evaluate.check_fits(checkpoint(classes), data)


def test_pictures_that_nobody_labelled_cannot_be_measured_on(tmp_path):
    rows = [[record(1), dataclasses.replace(record(2), labelled=False)]]
    with pytest.raises(EvaluationError, match="has 1 pictures without labels: AP is defined on labelled data alone"):
        evaluate.check_fits(checkpoint(), write_dataset(tmp_path, rows))


def test_the_command_refuses_before_it_predicts(data, tmp_path):
    with pytest.raises(ValueError, match="no finished checkpoint"):
        evaluate.run(EvaluateConfig(checkpoint=str(tmp_path / "run"), data=data.uri, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    assert len(Dataset(data.uri)) == 3


TRUTH = {
    "images": [{"id": 1, "height": 10, "width": 10}],
    "annotations": [],
    "categories": [{"id": 1, "name": "a"}],
}


@pytest.mark.parametrize(
    ("truth", "results", "match"),
    [
        (None, "[]", r"there is no file .*truth\.json: give a COCO json file"),
        ("{", "[]", r"truth\.json is not JSON .*: give a COCO json file"),
        ("\xff", "[]", "truth.json is not JSON"),
        ("[" * 100_000, "[]", "truth.json is not JSON"),
        (json.dumps(TRUTH), None, r"there is no file .*results\.json"),
        (json.dumps(TRUTH), "{}", r"results\.json is not a list of COCO results"),
        (json.dumps(TRUTH), "[3]", r"results\.json is not a list of COCO results"),
        (json.dumps(TRUTH), '[{"image_id": 1}]', "has rows without bbox, segmentation and keypoints"),
        (
            json.dumps(TRUTH),
            '[{"image_id": 1, "bbox": [0, 0, 1, 1]}, {"image_id": 1, "segmentation": {}}]',
            "has rows without bbox, segmentation and keypoints",
        ),
        ("{}", "[]", "the ground truth has no list 'images'"),
    ],
)
def test_files_that_cannot_be_measured(tmp_path, truth, results, match):
    for name, text in (("truth.json", truth), ("results.json", results)):
        if text is not None:
            (tmp_path / name).write_text(text, "latin-1")
    with pytest.raises(ValueError, match=match):
        evaluate.measure_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(EvaluationError, match=r"cannot read .*: give a COCO json file"):
        evaluate.measure_files(str(tmp_path), str(tmp_path))


DETECTOR = {"checkpoint": "c", "data": "d", "out": "o"}
FILES = {"annotations": "a", "results": "r"}


@pytest.mark.parametrize("given", [DETECTOR, FILES])
def test_the_two_forms(given):
    EvaluateConfig(**given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        DETECTOR | FILES,
        *({k: v for k, v in form.items() if k != gone} for form in (DETECTOR, FILES) for gone in form),
        DETECTOR | {"results": "r"},
        FILES | {"out": "o"},
    ],
)
def test_any_other_form_is_refused(given):
    listed = ", ".join(f"--{name}" for name in ("checkpoint", "data", "out", "annotations", "results") if name in given)
    with pytest.raises(ValueError, match=f"needs either --checkpoint.*, got {listed or 'none of them'}$"):
        EvaluateConfig(**given)


def test_boxes_alone_and_keypoints_are_measured(tmp_path):
    """Truth as predictions: perfect keypoints where they are exact, none where all are elsewhere; no masks at all."""
    rng = np.random.default_rng(0)
    person = (ClassInfo(1, "person", tuple(f"point{k}" for k in range(17))), ClassInfo(2, "ball"))
    points = [np.concatenate([rng.uniform(5, 40, (17, 2)), np.full((17, 1), 2)], axis=1) for _ in range(2)]
    rows = [
        [record(k, [thing(k, (2, 3, 45, 46), keypoints=found.astype(np.float32))])]
        for k, found in enumerate(points, start=1)
    ]
    data = write_dataset(tmp_path / "data", rows, classes=person)

    def found_at(shift):
        def found(one):
            (instance,) = one.instances
            seen = (instance.keypoints + np.array([shift, 0, 0], np.float32))[None]
            made = detected(one, [(2, 3, 45, 46)])
            return dataclasses.replace(made, rles=None, mask_agreement=None, keypoints=seen)

        return evaluate.measure(data, write_predictions(tmp_path / f"p{shift}", data, found, classes=person))

    for shift, wanted in ((0, 1.0), (30, 0.0)):
        measured = found_at(shift)
        assert measured.mask is None
        assert measured.box.per_class["person"] == PERFECT
        assert measured.keypoints.per_class["person"] == pytest.approx(wanted)

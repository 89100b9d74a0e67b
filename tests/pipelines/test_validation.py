"""Measuring checkpoints beside a run: the same numbers as the evaluate command, kept over restarts."""

import dataclasses
import io

import pytest
from PIL import Image

from model.config import KeypointHeadConfig
from pipelines import checkpoints
from pipelines.coco_metrics import STAT_NAMES, Metrics, evaluate, evaluate_with_curves
from pipelines.manifest import ClassInfo
from pipelines.optim import OptimConfig, build_optimiser
from pipelines.validation import Measurements, check_metric, kinds_of, measure
from tests.pipelines import tiny_run, tiny_shards


def metrics(ap):
    return Metrics(**{name: -1.0 for name in STAT_NAMES} | {"AP": ap}, per_class={"dog": ap})


def test_a_checkpoint_is_measured_on_boxes_and_masks(tmp_path):
    data = tiny_run.dataset(tmp_path / "data")
    detector = tiny_run.build()
    made = checkpoints.save(str(tmp_path), 3, detector, build_optimiser(detector, OptimConfig()), tiny_shards.CLASSES)
    found, figures = measure(made.uri, data.uri, batch=2, pictures=3)
    assert set(found) == {"box", "mask"}
    assert sorted(figures) == ["picture-0.jpg", "picture-4.jpg", "picture-8.jpg", "precision-recall.html"]
    page = figures["precision-recall.html"].decode()
    assert all(text in page for text in ("after step 3", "mask: precision at recall", "IoU 0.50 to 0.95"))
    width, height = Image.open(io.BytesIO(figures["picture-0.jpg"])).size
    assert width == 2 * height + 8  # a square picture, its truth and what was found
    assert measure(made.uri, data.uri, batch=5, pictures=3).figures == figures
    assert set(found["mask"].per_class) == {info.name for info in tiny_shards.CLASSES}
    assert all(-1 <= value <= 1 for part in found.values() for value in part.numbers().values())
    # Batches of other sizes are padded otherwise, and give the same detections.
    assert pytest.approx(found["box"].AP, abs=1e-6) == measure(made.uri, data.uri, batch=5).metrics["box"].AP


def test_the_best_is_remembered_over_restarts(tmp_path):
    first = Measurements(str(tmp_path), "mask/AP")
    assert (first.best, first.since_best) == (None, 0)
    for step, (box, mask) in {20: (0.9, 0.1), 10: (0.1, 0.3), 30: (0.5, 0.3), 40: (0.5, 0.2)}.items():
        first.add(step, {"box": metrics(box), "mask": metrics(mask)})
    for found in (first, Measurements(str(tmp_path) + "/", "mask/AP")):
        assert (found.best, found.since_best) == (10, 3)  # the earliest of equals
        assert found.values[30]["mask/AP of dog"] == 0.3
    assert Measurements(str(tmp_path), "box/AP").best == 20
    assert dataclasses.asdict(metrics(0.1))["AP"] == 0.1


def test_another_metric_and_damaged_files_do_not_stop_a_run(tmp_path, caplog):
    """A run may go on with another metric, and with measurements that a full disk cut short."""
    first = Measurements(str(tmp_path), "box/AP")
    for step in (10, 20, 30):
        first.add(step, {"box": metrics(step / 100)})
    assert (Measurements(str(tmp_path), "mask/AP").best, Measurements(str(tmp_path), "mask/AP").since_best) == (None, 0)
    for step, text in ((20, '{"step": 20'), (30, '{"step": 30, "values": 3}')):
        (tmp_path / "measurements" / f"step-{step:08d}.json").write_text(text)
    found = Measurements(str(tmp_path), "box/AP")
    assert (found.best, list(found.values)) == (10, [10])
    assert caplog.text.count("is damaged") == 2
    found.add(20, {"box": metrics(0.5)})
    assert Measurements(str(tmp_path), "box/AP").best == 20


@pytest.mark.parametrize(("points", "measured"), [(17, True), (2, False)])
def test_keypoints_are_measured_where_their_metric_is_defined(points, measured):
    detector = tiny_run.detector_config(keypoint=KeypointHeadConfig(enabled=True, num_keypoints=points, flip_pairs=()))
    classes = (ClassInfo(1, "person", tuple(f"p{number}" for number in range(points))),)
    assert ("keypoints" in kinds_of(detector, classes)) is measured
    if measured:
        check_metric("keypoints/APm", detector, classes)
        with pytest.raises(ValueError, match="of keypoints AP, AP50, AP75, APm, APl, AR"):
            check_metric("keypoints/APs", detector, classes)


def test_curves_belong_to_the_metrics():
    """Two of three objects found without a mistake: precision 1 up to two thirds, then none."""
    images = [{"id": 1, "width": 100, "height": 100}]
    boxes = [[0, 0, 20, 20], [40, 40, 20, 20], [70, 70, 20, 20]]
    rows = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
        for n, box in enumerate(boxes, 1)
    ]
    truth = {"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": rows}
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes[:2]]
    metrics_, curves = evaluate_with_curves(truth, found, "bbox")
    assert metrics_ == evaluate(truth, found, "bbox")
    line = curves["IoU 0.50"]
    assert [y for x, y in line if x < 0.66] == [pytest.approx(1.0)] * 66
    assert {y for x, y in line if x > 0.67} == {0.0}
    assert sum(y for _, y in curves["IoU 0.50 to 0.95"]) / 101 == pytest.approx(metrics_.AP)

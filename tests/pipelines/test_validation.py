"""Measuring checkpoints beside a run: the same numbers as the evaluate command, kept over restarts."""

import dataclasses

import pytest

from pipelines import checkpoints
from pipelines.coco_metrics import STAT_NAMES, Metrics
from pipelines.optim import OptimConfig, build_optimiser
from pipelines.validation import Measurements, measure
from tests.pipelines import tiny_run, tiny_shards


def metrics(ap):
    return Metrics(**{name: -1.0 for name in STAT_NAMES} | {"AP": ap}, per_class={"dog": ap})


def test_a_checkpoint_is_measured_on_boxes_and_masks(tmp_path):
    data = tiny_run.dataset(tmp_path / "data")
    detector = tiny_run.build()
    made = checkpoints.save(str(tmp_path), 3, detector, build_optimiser(detector, OptimConfig()), tiny_shards.CLASSES)
    found = measure(made.uri, data.uri, batch=2)
    assert set(found) == {"box", "mask"}
    assert set(found["mask"].per_class) == {info.name for info in tiny_shards.CLASSES}
    assert all(-1 <= value <= 1 for part in found.values() for value in part.numbers().values())
    # Batches of other sizes are padded otherwise, and give the same detections.
    assert pytest.approx(found["box"].AP, abs=1e-6) == measure(made.uri, data.uri, batch=5)["box"].AP


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

"""Which checkpoints are measured, in what order, and which are kept; Ray's tasks are played by plain values."""

import dataclasses

import pytest

from pipelines import checkpoints, evaluator
from pipelines.coco_metrics import STAT_NAMES, Metrics
from pipelines.config import EvaluationConfig
from pipelines.evaluator import Evaluator
from pipelines.validation import Measurements
from tests.pipelines import tiny_run, tiny_shards


class Rows:
    def __init__(self):
        self.rows = []

    def metrics(self, values, step):
        self.rows.append((step, values))


def metrics(ap):
    return Metrics(**{name: -1.0 for name in STAT_NAMES} | {"AP": ap}, per_class={})


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """A run whose checkpoints can be made by step, and an evaluator whose tasks end when they are told to."""
    data = tiny_run.dataset(tmp_path / "data", (2,))
    config = tiny_run.config(data, tmp_path / "run", execution={"keep_checkpoints": 2}, val=data.uri)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(every=4, patience=2))
    detector = tiny_run.build()
    small = checkpoints.Snapshot(0, detector.config, tiny_shards.CLASSES, {"model.safetensors": {}})
    done = {}

    def get(task):
        if isinstance(done[task], Exception):
            raise done[task]
        return {"box": metrics(done[task]), "mask": metrics(done[task])}

    monkeypatch.setattr(evaluator.ray, "wait", lambda tasks, timeout: ([t for t in tasks if t in done], []))
    monkeypatch.setattr(evaluator.ray, "get", get)
    monkeypatch.setattr(Evaluator, "_start", lambda self, step: step)

    def make(step, told=None):
        checkpoints.write(config.out, small._replace(step=step))
        if told:
            told.committed(step)

    return config, make, done


def test_checkpoints_are_measured_in_turn_and_the_best_and_the_newest_are_kept(rig):
    config, make, done = rig
    rows = Rows()
    found = Evaluator(config, rows)
    for step in (2, 4, 6, 8):
        make(step, found)
        found.poll()
    assert checkpoints.steps(config.out) == [4, 6, 8]  # 4 is being measured, 8 waits for its turn
    done[4] = 0.5
    found.poll()
    done[8] = 0.25
    found.poll()
    assert [(step, values["val/mask/AP"]) for step, values in rows.rows] == [(4, 0.5), (8, 0.25)]
    for step in (10, 12):
        make(step, found)
    assert checkpoints.steps(config.out) == [4, 10, 12]  # 4 is the best
    assert not found.ended_early
    done[12] = 0.3
    found.finish()
    assert found.ended_early
    assert Measurements(config.out, "mask/AP").since_best == 2


def test_what_an_earlier_attempt_left_unmeasured_is_measured(rig):
    config, make, done = rig
    for step in (4, 6, 8):
        make(step)
    Measurements(config.out, "mask/AP").add(4, {"box": metrics(0.1), "mask": metrics(0.1)})
    rows = Rows()
    done[8] = 0.2
    Evaluator(config, rows).finish()
    assert [step for step, _ in rows.rows] == [8]


def test_a_measurement_that_fails_stops_nothing(rig, caplog):
    config, make, done = rig
    found = Evaluator(config, Rows())
    done[4], done[8] = ValueError("no such class"), 0.2
    for step in (4, 8):
        make(step, found)
    found.finish()
    assert "the checkpoint of step 4 could not be measured: no such class" in caplog.text
    assert list(Measurements(config.out, "mask/AP").values) == [8]


def test_without_measuring_only_the_newest_are_kept(rig):
    config, make, _ = rig
    config = dataclasses.replace(config, evaluation=EvaluationConfig())
    found = Evaluator(config, Rows())
    for step in (4, 8, 12):
        make(step, found)
    found.finish()
    assert checkpoints.steps(config.out) == [8, 12]
    assert not found.ended_early

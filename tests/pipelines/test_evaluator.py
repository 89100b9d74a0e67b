"""Which checkpoints are measured, in what order, and which are kept; Ray's tasks are played by plain values."""

import dataclasses

import pytest

from pipelines import checkpoints, evaluator
from pipelines.coco_metrics import STAT_NAMES, Metrics
from pipelines.config import EvaluationConfig
from pipelines.evaluator import Evaluator
from pipelines.validation import Measured, Measurements
from tests.pipelines import tiny_run, tiny_shards


class Rows:
    def __init__(self):
        self.rows, self.files = [], []

    def file(self, folder, name, content):
        self.files.append((folder, name, content))

    def metrics(self, values, step):
        self.rows.append((step, values))


def metrics(ap):
    return Metrics(**{name: -1.0 for name in STAT_NAMES} | {"AP": ap}, per_class={})


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """A run whose checkpoints can be made by step, and an evaluator whose tasks end when they are told to."""
    data = tiny_run.dataset(tmp_path / "data", (2,))
    settings = {"optim": {"steps": 99}, "execution": {"keep_checkpoints": 2}}
    config = tiny_run.config(data, tmp_path / "run", **settings, val=data.uri)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(every=4, patience=2))
    detector = tiny_run.build()
    small = checkpoints.Snapshot(0, detector.config, tiny_shards.CLASSES, {"model.safetensors": {}})
    done = {}

    def get(task):
        if isinstance(done[task], Exception):
            raise done[task]
        return Measured({"box": metrics(done[task]), "mask": metrics(done[task])}, {"a.jpg": b"picture"})

    monkeypatch.setattr(evaluator.ray, "wait", lambda tasks, timeout: ([t for t in tasks if t in done], []))
    monkeypatch.setattr(evaluator.ray, "get", get)
    monkeypatch.setattr(evaluator, "room_for", lambda each: 1)
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
    assert rows.files == [(f"figures/step-0000000{step}", "a.jpg", b"picture") for step in (4, 8)]
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


def test_measuring_that_cannot_keep_pace_leaves_out_the_oldest(rig, caplog):
    """What waits is not deleted, and must not fill the disk."""
    config, make, done = rig
    found = Evaluator(config, Rows())
    make(4, found)
    found.poll()
    for step in range(8, 41, 4):
        make(step, found)
    assert checkpoints.steps(config.out) == [4, 36, 40]
    done.update({4: 0.1, 36: 0.2, 40: 0.3})
    found.finish()
    assert sorted(Measurements(config.out, "mask/AP").values) == [4, 36, 40]
    assert "the checkpoint of step 8 is not measured: measuring is slower than evaluation.every (4)" in caplog.text


def test_the_last_step_is_measured_whatever_its_number(rig):
    config, make, done = rig
    found = Evaluator(config, Rows())
    make(5, found)
    make(99, found)
    done[99] = 0.5
    found.finish()
    assert list(Measurements(config.out, "mask/AP").values) == [99]


def test_a_checkpoint_that_is_gone_before_its_turn_stops_nothing(rig, caplog, monkeypatch):
    config, make, done = rig

    def start(self, step):
        return checkpoints.at_step(config.out, step).step

    monkeypatch.setattr(Evaluator, "_start", start)
    found = Evaluator(config, Rows())
    found.committed(4)
    make(8, found)
    done[8] = 0.5
    found.finish()
    assert "the checkpoint of step 4 could not be measured" in caplog.text
    assert list(Measurements(config.out, "mask/AP").values) == [8]


def test_a_cluster_that_lost_its_measuring_machine_ends_the_run_all_the_same(rig, caplog, monkeypatch):
    config, make, _ = rig
    cancelled = []
    monkeypatch.setattr(evaluator, "room_for", lambda each: 0)
    monkeypatch.setattr(evaluator.ray, "cancel", lambda task, force: cancelled.append(task))
    found = Evaluator(config, Rows())
    make(4, found)
    make(8, found)
    found.finish()
    assert cancelled == [4]
    assert "the checkpoints of steps [4, 8] are not measured" in caplog.text


def test_what_an_aborted_attempt_was_measuring_is_ended(rig, monkeypatch):
    config, make, _ = rig
    cancelled = []
    monkeypatch.setattr(evaluator.ray, "cancel", lambda task, force: cancelled.append((task, force)))
    found = Evaluator(config, Rows())
    make(4, found)
    found.poll()
    found.abort()
    found.abort()
    assert cancelled == [(4, True)]

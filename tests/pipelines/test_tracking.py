"""One MLflow run for a training and all its restarts, and no harm from a tracker that fails."""

import logging
import sqlite3

import pytest
from mlflow.tracking import MlflowClient

from model.settings import to_dict
from pipelines.presets import preset
from pipelines.tracking import Tracker, flatten


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


def test_names_are_those_of_the_command_line():
    flat = flatten({"seed": 3, "optim": {"steps": 4, "deep": {"er": (1, 2)}}, "empty": {}})
    assert flat == {"seed": "3", "optim.steps": "4", "optim.deep.er": "(1, 2)"}
    assert len(flatten({"long": "x" * 10_000})["long"]) == 6000
    flat = flatten(to_dict(preset("small_mask_rcnn_r18_fpn")))
    assert flat["optim.algorithm"] == "adamw"
    assert flat["detector.rpn.nms_iou"] == "0.7"


def test_a_run_and_its_restart_are_one(uri, tmp_path_factory):
    first = Tracker(uri, None, "teacher")
    assert first.run_id
    # More parameters than MLflow takes at once.
    first.parameters({"many": {f"p{n}": n for n in range(230)}})
    for step in (10, 20, 30):
        first.metrics({"loss/total": 1.0 / step, "learning_rate": 0.1}, step)
    first.finish("FAILED")
    again = Tracker(uri, first.run_id, "ignored")
    again.metrics({"loss/total": 9.0}, 30)  # the steps since the last checkpoint come again
    again.metrics({"loss/total": 8.0}, 40)
    assert again.run_id == first.run_id
    assert again.history("loss/total") == [(10, 0.1), (20, 0.05), (30, 9.0), (40, 8.0)]
    assert again.history("no such metric") == []
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again.finish("FINISHED")
    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "teacher")
    assert len(run.data.params) == 230
    assert run.data.params["many.p229"] == "229"
    assert client.get_experiment(run.info.experiment_id).name == "maskray"


def test_two_trainings_are_two_runs_of_one_experiment(uri):
    made = [Tracker(uri, None, name) for name in ("a", "b")]
    assert made[0].run_id != made[1].run_id
    client = MlflowClient(tracking_uri=uri)
    assert len({client.get_run(tracker.run_id).info.experiment_id for tracker in made}) == 1
    for tracker in made:
        tracker.finish("FINISHED")


def used(tracker):
    tracker.parameters({"a": 1})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("FINISHED")
    return tracker.history("loss")


def test_a_tracker_that_cannot_start_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("no database")
    with caplog.at_level(logging.WARNING, "pipelines.tracking"):
        tracker = Tracker("nonsense://nowhere", None, "x")
        assert used(tracker) == []
    assert tracker.run_id == ""
    warnings = [record.getMessage() for record in caplog.records if record.name == "pipelines.tracking"]
    assert len(warnings) == 1
    assert warnings[0].startswith("tracking: could not start (")
    assert "goes on untracked" in warnings[0]


def test_a_database_that_goes_away_stops_nothing(uri, caplog):
    tracker = Tracker(uri, None, "lost")
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("ALTER TABLE metrics RENAME TO metrics_away")
    try:
        with caplog.at_level(logging.WARNING, "pipelines.tracking"):
            assert used(tracker) == []
        assert any("could not log metrics" in record.getMessage() for record in caplog.records)
    finally:
        with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
            database.execute("ALTER TABLE metrics_away RENAME TO metrics")


def test_a_run_that_the_server_does_not_know(uri, caplog):
    with caplog.at_level(logging.WARNING, "pipelines.tracking"):
        assert used(Tracker(uri, "0" * 32, "x")) == []
    assert "could not start" in caplog.text

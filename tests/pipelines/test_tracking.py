"""One MLflow run for a training and all its restarts, and no harm from a tracker that fails."""

import json
import logging
import os
import re
import socket
import sqlite3
import time

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from model.settings import to_dict
from pipelines import checkpoints, tracking, train
from pipelines.optim import OptimConfig, build_optimiser
from pipelines.presets import preset
from pipelines.tracking import TrackedDataset, Tracker, flatten
from tests.pipelines import tiny_run, tiny_shards


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
    again.begin()
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


def test_a_finished_run_stays_finished_whatever_is_added_to_it(uri):
    """As a report does, or an evaluation after the end."""
    first = Tracker(uri, None, "done")
    first.finish("FINISHED")
    client = MlflowClient(tracking_uri=uri)
    ended = client.get_run(first.run_id).info.end_time
    later = Tracker(uri, first.run_id, "")
    assert later.metric_names() == []
    later.metrics({"val/mask/AP": 0.5}, 9)
    later.finish("FINISHED")
    info = client.get_run(first.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended)
    assert later.history("val/mask/AP") == [(9, 0.5)]


@pytest.fixture
def dead_server(monkeypatch):
    """Takes connections and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_costs_no_time(uri, dead_server, monkeypatch, caplog):
    """Neither a step nor the end of the run waits for it."""
    tracker = Tracker(uri, None, "cut off")
    tracker._client = MlflowClient(tracking_uri=dead_server)
    monkeypatch.setattr("pipelines.tracking._FLUSH_S", 2.0)
    started = time.monotonic()
    for step in range(2000):
        tracker.metrics({"loss": 1.0}, step)
    assert time.monotonic() - started < 1.0
    with caplog.at_level(logging.WARNING, "pipelines.tracking"):
        tracker.finish("FINISHED")
    assert time.monotonic() - started < 10
    assert re.search(r"tracking: 200\d messages to the server are lost", caplog.text)


def test_a_server_that_never_answers_stops_no_start(dead_server, caplog):
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "pipelines.tracking"):
        tracker = Tracker(dead_server, None, "x")
        assert used(tracker) == []
    assert tracker.run_id == ""
    assert time.monotonic() - started < 20
    assert "could not start" in caplog.text


def test_requests_are_given_up_soon_unless_told_otherwise(uri, monkeypatch):
    for name in tracking._PATIENCE:
        monkeypatch.delenv(name, raising=False)
    Tracker(uri, "0" * 32, "x")
    assert {name: os.environ[name] for name in tracking._PATIENCE} == tracking._PATIENCE
    for name in tracking._PATIENCE:
        monkeypatch.setenv(name, "77")
    Tracker(uri, "0" * 32, "x")
    assert {os.environ[name] for name in tracking._PATIENCE} == {"77"}


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


def test_names_that_mlflow_refuses_are_written_otherwise(uri):
    tracker = Tracker(uri, None, "names")
    tracker.metrics({"val/box/AP of cat & <mouse>": 0.5}, 3)
    assert tracker.history("val/box/AP of cat _ _mouse_") == [(3, 0.5)]
    tracker.finish("FINISHED")


def test_inputs_files_and_a_model_that_comes_back(uri, tmp_path):
    """A registered version is plain files, and loads by models:/NAME/VERSION."""
    detector = tiny_run.build()
    made = checkpoints.save(str(tmp_path), 7, detector, build_optimiser(detector, OptimConfig()), tiny_shards.CLASSES)
    versions = []
    for name in ("first", "second"):
        tracker = Tracker(uri, None, name)
        tracker.inputs(
            [TrackedDataset("training", "/d/train", "ab" * 32, 9), TrackedDataset("validation", "/v", "c", 3)]
        )
        tracker.file("", "config.json", b"{}")
        versions.append(train._register(tracker, "tiny", made))
        assert train._register(tracker, "tiny", made) == versions[-1]
        tracker.finish("FINISHED")
    assert versions == ["models:/tiny/1", "models:/tiny/2"]
    client = MlflowClient(tracking_uri=uri)
    inputs = client.get_run(tracker.run_id).inputs.dataset_inputs
    found = {(row.tags[0].value, row.dataset.name, row.dataset.digest) for row in inputs}
    assert found == {("training", "train", ("ab" * 32)[:36]), ("validation", "v", "c")}
    assert json.loads(inputs[0].dataset.profile)["manifest_sha256"] in ("ab" * 32, "c")
    assert {info.path for info in client.list_artifacts(tracker.run_id)} == {"config.json", "model"}
    mlflow.set_tracking_uri(uri)
    folder = mlflow.artifacts.download_artifacts("models:/tiny/2", dst_path=str(tmp_path / "back"))
    back = checkpoints.load_detector(checkpoints.load(folder)).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in detector.state_dict().items())
    assert not any(path.suffix in (".pkl", ".pth", ".pickle") for path in (tmp_path / "back").rglob("*"))


def test_a_registry_that_refuses_stops_nothing(uri, caplog):
    tracker = Tracker(uri, None, "x")
    with caplog.at_level(logging.WARNING, "pipelines.tracking"):
        assert tracker.register("", "model", "c") == ""
    assert "could not register" in caplog.text
    tracker.finish("FINISHED")

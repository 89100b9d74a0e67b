"""A sweep's MLflow run on a real database: one for all starts, with its trials below it."""

from mlflow.tracking import MlflowClient

from pipelines import sweep_tracking
from pipelines.sweep_history import Point
from pipelines.sweep_results import SweepResult, Trial
from pipelines.tracking import Tracker


def test_trials_are_nested_below_one_run_that_is_there_first(tmp_path):
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path)
    parent = sweep_tracking.open_run(uri, out, "sweep length", {"trials": 2})
    assert sweep_tracking.open_run(uri, out, "sweep length", {"trials": 2}).run_id == parent.run_id != ""
    assert sweep_tracking.speed(uri, parent.run_id) == 0.0
    ended, stopped = (Tracker(uri, None, name, parent.run_id) for name in ("a", "b"))
    ended.metrics({"pictures_per_s": 2.0}, 1)
    stopped.metrics({"pictures_per_s": 4.0}, 1)
    ended.finish("FINISHED")
    assert stopped.history("pictures_per_s") == [(1, 4.0)]
    assert sweep_tracking.speed(uri, parent.run_id) == 3.0
    (tmp_path / "report.html").write_text("<p>")
    trials = (Trial("a", "runs/a", {}, (Point(1, 4, 0.5, "c", True),), ""),)
    sweep_tracking.record(parent, "mask/AP", SweepResult(trials, "", str(tmp_path / "report.html")))
    parent.finish("FINISHED")
    client = MlflowClient(tracking_uri=uri)
    assert [client.get_run(one.run_id).info.status for one in (ended, stopped)] == ["FINISHED", "KILLED"]
    assert client.get_run(stopped.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(parent.run_id).data.metrics["sweep/mask/AP"] == 0.5


def test_a_tracker_that_fails_costs_nothing(tmp_path):
    assert sweep_tracking.speed("sqlite:////nowhere/x.db", "r") == 0.0
    assert sweep_tracking.speed("sqlite:////nowhere/x.db", "") == 0.0

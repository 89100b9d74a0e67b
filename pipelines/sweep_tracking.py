"""A sweep in MLflow: one run for the sweep, the runs of its trials nested below it. Failures never stop a sweep."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import run_file, storage
from pipelines.sweep_results import SweepResult, Trial
from pipelines.tracking import Tracker

_LOG = logging.getLogger(__name__)
_PARENT = "mlflow.parentRunId"  # MLflow's own tag of nested runs


def record(uri: str, name: str, settings: Mapping[str, Any], metric: str, result: SweepResult) -> str:
    """Write a finished sweep to MLflow and nest its trials' runs.

    Args:
        uri: tracking server or database of the trials.
        name: of the sweep's run.
        settings: of the sweep.
        metric: that decided.
        result: what came of it.

    Returns:
        The id of the sweep's run; empty where tracking failed.
    """
    tracker = Tracker(uri, None, name)
    tracker.parameters(settings)
    values = [trial.value for trial in result.trials if trial.value is not None]
    for number, value in enumerate(values):
        tracker.metrics({f"sweep/{metric}": value}, number)
    try:
        _nest(uri, tracker.run_id, result.trials)
        _attach(uri, tracker.run_id, [result.page, result.best])
    except Exception as error:
        # As with trainings: whatever a tracking server does must not cost what it is told about.
        _LOG.warning("tracking: could not nest the trials (%s)", error)
    tracker.finish("FINISHED")
    return tracker.run_id


def _nest(uri: str, parent: str, trials: Sequence[Trial]) -> None:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- takes seconds

    client: Any = MlflowClient(tracking_uri=uri or None)
    for trial in trials:
        try:
            _, run_id = run_file.tracking_of(trial.run)
        except ValueError:
            continue  # it failed before its run began
        client.set_tag(run_id, _PARENT, parent)
        if client.get_run(run_id).info.status == "RUNNING":  # stopped early: nobody was left to say so
            client.set_terminated(run_id, status="KILLED")


def _attach(uri: str, run_id: str, files: Sequence[str]) -> None:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client: Any = MlflowClient(tracking_uri=uri or None)
    for file in filter(None, files):
        filesystem, path = storage.open_uri(file)
        client.log_text(run_id, storage.read_bytes(filesystem, path).decode(), file.rsplit("/", 1)[-1])

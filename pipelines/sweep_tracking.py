"""A sweep in MLflow: one run for the sweep, the runs of its trials nested below it. Failures never stop a sweep."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import commit, storage
from pipelines.sweep_results import SweepResult
from pipelines.tracking import PARENT, Tracker

_LOG = logging.getLogger(__name__)
_FILE = "tracking.json"
_SPEED = "pictures_per_s"


def open_run(uri: str, out: str, name: str, settings: Mapping[str, Any]) -> Tracker:
    """The sweep's run, the same at every start.

    It is there before any trial begins: trials are nested below it, and those that begin at the same time could not all
    make a new database.

    Args:
        uri: tracking server or database of the trials.
        out: folder or URI of the sweep, which keeps the run's id.
        name: of a new run.
        settings: of the sweep.
    """
    filesystem, folder = storage.open_uri(out)
    path = storage.join(folder, _FILE)
    known = ""
    if storage.is_file(filesystem, path):
        known = str(json.loads(storage.read_bytes(filesystem, path))["run_id"])
    tracker = Tracker(uri, known or None, name)
    if known:
        tracker.begin()
    elif tracker.run_id:
        tracker.parameters(settings)
        commit.write_file(filesystem, path, json.dumps({"uri": uri, "run_id": tracker.run_id}).encode())
    return tracker


def record(tracker: Tracker, metric: str, result: SweepResult) -> None:
    """Write what came of a finished sweep, and end the runs of trials that nobody was left to end."""
    values = [trial.value for trial in result.trials if trial.value is not None]
    for number, value in enumerate(values):
        tracker.metrics({f"sweep/{metric}": value}, number)
    try:
        client = _client(tracker.uri)
        for run in _nested(client, tracker.run_id):
            if run.info.status == "RUNNING":  # stopped early
                client.set_terminated(run.info.run_id, status="KILLED")
        _attach(client, tracker.run_id, [result.page, result.best])
    except Exception as error:
        # As with trainings: whatever a tracking server does must not cost what it is told about.
        _LOG.warning("tracking: could not close the trials (%s)", error)


def speed(uri: str, run_id: str) -> float:
    """Pictures a second of a trial, the median over those that reported it; 0 where none has yet."""
    try:
        runs = _nested(_client(uri), run_id) if run_id else []
    except Exception:
        return 0.0  # it is an estimate for people, and is asked for again
    found = [run.data.metrics[_SPEED] for run in runs if run.data.metrics.get(_SPEED)]
    return float(statistics.median(found)) if found else 0.0


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- takes seconds

    return MlflowClient(tracking_uri=uri or None)


def _nested(client: Any, run_id: str) -> list[Any]:
    """The runs of all trials, of every generation of them."""
    experiment, found, token = client.get_run(run_id).info.experiment_id, [], None
    while True:
        page = client.search_runs([experiment], f"tags.`{PARENT}` = '{run_id}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _attach(client: Any, run_id: str, files: Sequence[str]) -> None:
    for file in filter(None, files):
        filesystem, path = storage.open_uri(file)
        client.log_text(run_id, storage.read_bytes(filesystem, path).decode(), file.rsplit("/", 1)[-1])

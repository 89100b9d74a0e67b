"""Tracking with MLflow: one run for a training and all its restarts. Failures of the tracker never stop a run."""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipelines import storage
from pipelines.courier import Courier

T = TypeVar("T")
_EXPERIMENT = "maskray"
_SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"  # MLflow's own tag of nested runs
_FORBIDDEN = re.compile(r"[^\w\-. :/]")  # in names of metrics, such as those of classes
# A request that is not answered is given up after ten seconds and made twice at most; MLflow would try for ten minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_START_S, _ASK_S, _FLUSH_S = 60.0, 120.0, 30.0
_PARAM_LIMIT = 6000  # characters of a value that every MLflow store accepts


def _experiment(client: Any, uri: str) -> str:
    """The id of maskray's experiment, made where there is none; others may make it at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(_EXPERIMENT)
    if not found:
        # Beside a local database rather than in the working directory.
        place = str(Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts") if uri.startswith(_SQLITE) else None
        try:
            return str(client.create_experiment(_EXPERIMENT, place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(_EXPERIMENT)
    return str(found.experiment_id)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, the same that the command line uses."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(value)[:_PARAM_LIMIT]
    return flat


class TrackedDataset(NamedTuple):
    """A data set as an input of a run.

    Attributes:
        context: what it is for: training or validation.
        uri: where it is.
        manifest_hash: sha256 of its manifest.
        pictures: how many it has.
    """

    context: str
    uri: str
    manifest_hash: str
    pictures: int


class Tracker:
    """One MLflow run. What it is told is passed on by a thread: a server that is slow or gone costs no training a step.

    Attributes:
        uri: the tracking server or database.
        run_id: the run's id, empty where tracking failed to start.
    """

    def __init__(self, uri: str, run_id: str | None, name: str, parent: str = "") -> None:
        """Start a run, or take the one with `run_id` as it is.

        Args:
            uri: tracking server, ``sqlite:///...`` database, or empty for MLflow's own default.
            run_id: a run to go on with.
            name: of a new run.
            parent: run to nest a new one below.
        """
        self.uri, self.run_id, self._client = uri, run_id or "", None
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        self._courier = Courier()

        def start() -> tuple[Any, str]:
            # Imported here: it takes seconds, and only a driver that tracks needs it.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            from mlflow.tracking import MlflowClient

            client: Any = MlflowClient(tracking_uri=uri or None)
            if run_id:
                client.get_run(run_id)
                return client, run_id
            tags = {PARENT: parent} if parent else None
            return client, client.create_run(_experiment(client, uri), run_name=name, tags=tags).info.run_id

        started = self._courier.ask("start", start, _START_S)
        if started is not None:
            self._client, self.run_id = started

    def begin(self) -> None:
        """Mark the run as going on, where it had ended."""
        self._tell("resume", lambda client: client.update_run(self.run_id, status="RUNNING"))

    def parameters(self, config: Mapping[str, Any]) -> None:
        """Log nested settings once."""

        def log(client: Any) -> None:
            from mlflow.entities import Param

            rows = [Param(name, value) for name, value in flatten(config).items()]
            for first in range(0, len(rows), 100):
                client.log_batch(self.run_id, params=rows[first : first + 100])

        self._tell("log parameters", log)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step."""
        now = int(time.time() * 1000)

        def log(client: Any) -> None:
            from mlflow.entities import Metric

            rows = [Metric(_FORBIDDEN.sub("_", name), value, now, step) for name, value in values.items()]
            client.log_batch(self.run_id, metrics=rows)

        self._tell("log metrics", log)

    def metric_names(self) -> list[str]:
        """Every metric that was logged, sorted."""
        return sorted(self._ask("read metrics", lambda client: list(client.get_run(self.run_id).data.metrics)) or ())

    def inputs(self, datasets: Sequence[TrackedDataset]) -> None:
        """Log the data sets a run reads, once."""

        def log(client: Any) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            rows = []
            for data in datasets:
                profile = json.dumps({"manifest_sha256": data.manifest_hash, "pictures": data.pictures})
                # MLflow keeps 36 characters of a digest; the whole of it is in the profile.
                made = Dataset(storage.name_of(data.uri), data.manifest_hash[:36], "local", data.uri, profile=profile)
                rows.append(DatasetInput(made, [InputTag("mlflow.data.context", data.context)]))
            client.log_inputs(self.run_id, rows)

        self._tell("log inputs", log)

    def file(self, folder: str, name: str, content: bytes) -> None:
        """Keep a file with the run, in a folder of its artifacts (empty: at their top)."""

        def log(client: Any) -> None:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place, name)
                path.write_bytes(content)
                client.log_artifact(self.run_id, str(path), folder or None)

        self._tell(f"keep {name}", log)

    def register(self, name: str, folder: str, checkpoint: str) -> str:
        """Make a folder of the run's artifacts the next version of a registered model; its number, or empty.

        A checkpoint (its hash) of a run is registered once: later calls give the same version.

        The version is its plain files: nothing is pickled, and `models:/NAME/VERSION` downloads them as they are.
        """

        def register(client: Any) -> str:
            from mlflow.exceptions import MlflowException

            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in client.search_model_versions(f"name='{name}'"):
                if version.run_id == self.run_id and version.tags.get("checkpoint") == checkpoint:
                    return str(version.version)
            source = f"{client.get_run(self.run_id).info.artifact_uri}/{folder}"
            tags = {"checkpoint": checkpoint}
            return str(client.create_model_version(name, source, self.run_id, tags=tags).version)

        return self._ask(f"register {name}", register) or ""

    def history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric over all restarts, in order."""

        def read(client: Any) -> list[tuple[int, float]]:
            return [(row.step, row.value) for row in client.get_metric_history(self.run_id, name)]

        return sorted(dict(self._ask("read metrics", read) or ()).items())

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED, once what it was told has arrived or seconds have passed."""

        def end(client: Any) -> None:
            # A run that ended before keeps the time at which it did.
            if client.get_run(self.run_id).info.status != status:
                client.set_terminated(self.run_id, status=status)

        self._tell("finish", end)
        self._courier.close(_FLUSH_S)

    def _tell(self, what: str, action: Callable[[Any], object]) -> None:
        client = self._client
        if client is not None:
            self._courier.tell(what, lambda: action(client))

    def _ask(self, what: str, action: Callable[[Any], T]) -> T | None:
        client = self._client
        return None if client is None else self._courier.ask(what, lambda: action(client), _ASK_S)

"""Tracking with MLflow: one run for a training and all its restarts. Failures of the tracker never stop a run."""

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LOG = logging.getLogger(__name__)
_EXPERIMENT = "maskray"
_SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"  # MLflow's own tag of nested runs
_FORBIDDEN = re.compile(r"[^\w\-. :/]")  # in names of metrics, such as those of classes
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
    """One MLflow run.

    Attributes:
        uri: the tracking server or database.
        run_id: the run's id, empty where tracking failed to start.
    """

    def __init__(self, uri: str, run_id: str | None, name: str, parent: str = "") -> None:
        """Start a run, or go on with `run_id`.

        Args:
            uri: tracking server, ``sqlite:///...`` database, or empty for MLflow's own default.
            run_id: a run to go on with.
            name: of a new run.
            parent: run to nest a new one below.
        """
        self.uri, self.run_id, self._client = uri, run_id or "", None

        def start() -> None:
            # Imported here: it takes seconds, and only a driver that tracks needs it.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            from mlflow.tracking import MlflowClient

            client: Any = MlflowClient(tracking_uri=uri or None)
            if not self.run_id:
                tags = {PARENT: parent} if parent else None
                self.run_id = client.create_run(_experiment(client, uri), run_name=name, tags=tags).info.run_id
            else:
                client.update_run(self.run_id, status="RUNNING")
            self._client = client

        self._guard("start", start)

    def _guard(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            # Whatever a tracking server does must not cost the training that reports to it.
            _LOG.warning("tracking: could not %s (%s); the run goes on untracked there", what, error)

    def parameters(self, config: Mapping[str, Any]) -> None:
        """Log nested settings once."""

        def log(client: Any) -> None:
            from mlflow.entities import Param

            rows = [Param(name, value) for name, value in flatten(config).items()]
            for first in range(0, len(rows), 100):
                client.log_batch(self.run_id, params=rows[first : first + 100])

        self._with_client("log parameters", log)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step."""

        def log(client: Any) -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            rows = [Metric(_FORBIDDEN.sub("_", name), value, now, step) for name, value in values.items()]
            client.log_batch(self.run_id, metrics=rows)

        self._with_client("log metrics", log)

    def metric_names(self) -> list[str]:
        """Every metric that was logged, sorted."""
        names: list[str] = []
        self._with_client("read metrics", lambda client: names.extend(client.get_run(self.run_id).data.metrics))
        return sorted(names)

    def inputs(self, datasets: Sequence[TrackedDataset]) -> None:
        """Log the data sets a run reads, once."""

        def log(client: Any) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            rows = []
            for data in datasets:
                profile = json.dumps({"manifest_sha256": data.manifest_hash, "pictures": data.pictures})
                # MLflow keeps 36 characters of a digest; the whole of it is in the profile.
                made = Dataset(data.uri.rsplit("/", 1)[-1], data.manifest_hash[:36], "local", data.uri, profile=profile)
                rows.append(DatasetInput(made, [InputTag("mlflow.data.context", data.context)]))
            client.log_inputs(self.run_id, rows)

        self._with_client("log inputs", log)

    def file(self, folder: str, name: str, content: bytes) -> None:
        """Keep a file with the run, in a folder of its artifacts (empty: at their top)."""

        def log(client: Any) -> None:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place, name)
                path.write_bytes(content)
                client.log_artifact(self.run_id, str(path), folder or None)

        self._with_client(f"keep {name}", log)

    def register(self, name: str, folder: str, checkpoint: str) -> str:
        """Make a folder of the run's artifacts the next version of a registered model; its number, or empty.

        A checkpoint (its hash) of a run is registered once: later calls give the same version.

        The version is its plain files: nothing is pickled, and `models:/NAME/VERSION` downloads them as they are.
        """
        made: list[str] = []

        def register(client: Any) -> None:
            from mlflow.exceptions import MlflowException

            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in client.search_model_versions(f"name='{name}'"):
                if version.run_id == self.run_id and version.tags.get("checkpoint") == checkpoint:
                    made.append(str(version.version))
                    return
            source = f"{client.get_run(self.run_id).info.artifact_uri}/{folder}"
            tags = {"checkpoint": checkpoint}
            made.append(str(client.create_model_version(name, source, self.run_id, tags=tags).version))

        self._with_client(f"register {name}", register)
        return made[0] if made else ""

    def history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric over all restarts, in order."""
        rows: list[tuple[int, float]] = []

        def read(client: Any) -> None:
            rows.extend((row.step, row.value) for row in client.get_metric_history(self.run_id, name))

        self._with_client("read metrics", read)
        return sorted(dict(rows).items())

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._with_client("finish", lambda client: client.set_terminated(self.run_id, status=status))

    def _with_client(self, what: str, action: Callable[[Any], None]) -> None:
        client = self._client
        if client is not None:
            self._guard(what, lambda: action(client))

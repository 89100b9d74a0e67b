"""The train command: checks a run against its data, starts the workers with Ray Train, and tracks them."""

import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
import torch

from model.settings import override, to_dict
from pipelines import checkpoints, commit, storage
from pipelines.config import TrainConfig
from pipelines.evaluate import Evaluation
from pipelines.loop import Job, Place, TrainingError, fit
from pipelines.manifest import ClassInfo, Manifest
from pipelines.progress import Progress
from pipelines.ray_session import ray_session, require_cpus
from pipelines.tracking import Tracker

_RUN_FILE = "run.json"
_KIND = "run"
_FORMAT_VERSION = 1
_POLL_S = 0.5


class RunConflictError(ValueError):
    """The output folder holds another run, or the data do not fit together."""


class TrainResult(NamedTuple):
    """What a training made.

    Attributes:
        checkpoint: URI of the final checkpoint.
        tracking_uri: where its metrics are.
        tracking_run: id of the MLflow run.
    """

    checkpoint: str
    tracking_uri: str
    tracking_run: str


def _classes_of(config: TrainConfig, manifests: Mapping[str, Manifest]) -> tuple[ClassInfo, ...]:
    """The classes all training sets share."""
    first = manifests[config.train[0]].classes
    for uri in config.train[1:]:
        if manifests[uri].classes != first:
            raise RunConflictError(
                f"{uri} has the classes {list(manifests[uri].names)}, {config.train[0]} has "
                f"{[info.name for info in first]}: training sets must share ids and names of their classes"
            )
    if config.val and Manifest.load(config.val).classes != first:
        raise RunConflictError(f"{config.val} has other classes than {config.train[0]}: evaluate on matching data")
    return first


def _require_labels(manifests: Mapping[str, Manifest]) -> None:
    for uri, manifest in manifests.items():
        bare = manifest.rows_written - manifest.labelled_images
        if bare or not manifest.rows_written:
            raise RunConflictError(
                f"{uri} has {bare} pictures without labels of {manifest.rows_written}: to a training they would be "
                "pictures without objects; train on labelled pictures, or label them with `maskray distill`"
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} was {before!r}, is {after!r}")
    return found


def _claim(config: TrainConfig, manifests: Mapping[str, Manifest]) -> tuple[str, dict[str, Any]]:
    """Make the folder this run's, or find that it is already; returns the run's identity and what is on file."""
    identity = {"config": config.identity(), "data": [manifests[uri].hash for uri in config.train]}
    filesystem, folder = storage.open_uri(config.out)
    path = storage.join(folder, _RUN_FILE)
    body = {"identity": identity, "train": list(config.train), "tracking": {}}
    if not storage.is_file(filesystem, path):
        if storage.is_folder(filesystem, folder) and storage.list_files(filesystem, folder):
            raise RunConflictError(f"{config.out} holds other files and no training run: choose another --out")
        commit.write_file(filesystem, path, commit.sealed(_KIND, _FORMAT_VERSION, body), exclusive=True)
        return path, body
    try:
        found = commit.unsealed(storage.read_bytes(filesystem, path), _KIND, _FORMAT_VERSION)
        differences = _differences(found["identity"], identity)
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(f"{path} is damaged ({error}): choose another --out") from error
    if differences:
        raise RunConflictError(
            f"{config.out} holds a run with other settings ({'; '.join(differences[:5])}"
            f"{' ...' if len(differences) > 5 else ''}): repeat its command to go on with it, or choose another --out"
        )
    return path, found


def resolve(config: TrainConfig) -> tuple[TrainConfig, dict[str, Manifest], tuple[ClassInfo, ...]]:
    """Check the run against its data and fit the number of classes to them.

    Raises:
        RunConflictError: data sets without labels or that do not share their classes, or an `init` checkpoint of
            other classes.
        ValueError: no training set, or no output folder.
        ManifestError: a data set that is not one.
    """
    for name in ("train", "out"):
        if not getattr(config, name):
            raise ValueError(f"training needs --{name}: give {'prepared data sets' if name == 'train' else 'a folder'}")
    manifests = {uri: Manifest.load(uri) for uri in config.train}
    _require_labels(manifests)
    classes = _classes_of(config, manifests)
    if config.init:
        known = checkpoints.load(config.init).classes
        if known != classes:
            raise RunConflictError(
                f"the checkpoint {config.init} has the classes {[info.name for info in known]}, the data "
                f"{[info.name for info in classes]}: train on data with the checkpoint's classes, or leave out --init"
            )
    return override(config, "detector.num_classes", len(classes)), manifests, classes


class _Inbox:
    """Collects the workers' metrics until the driver fetches them."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def put(self, row: dict[str, float]) -> None:
        """Take one row."""
        self._rows.append(row)

    def drain(self) -> list[dict[str, float]]:
        """Give all rows and forget them."""
        rows, self._rows = self._rows, []
        return rows


def train_worker(raw: dict[str, Any]) -> str:
    """One training worker of Ray Train.

    Returns:
        Why the training cannot go on, or an empty text. Such an end is the same on every worker and on every attempt,
        so it must not look to Ray like a worker that died, which Ray would start again.
    """
    import ray.train.torch

    job = Job.from_dict(raw["job"])
    context = ray.train.get_context()
    torch.set_num_threads(job.config.execution.cpus_per_worker)
    device = ray.train.torch.get_device()
    place = Place(context.get_world_rank(), context.get_world_size(), device)
    try:
        fit(job, place, raw["inbox"].put.remote)
    except TrainingError as error:
        return str(error)
    return ""


class _Follower(threading.Thread):
    """Passes the workers' metrics on to the tracker and to the progress line while Ray Train runs."""

    def __init__(self, inbox: Any, tracker: Tracker, progress: Progress) -> None:
        super().__init__(daemon=True, name="metrics")
        self._inbox, self._tracker, self._progress = inbox, tracker, progress
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(_POLL_S):
            self._pass_on()
        self._pass_on()
        self._progress.close()

    def _pass_on(self) -> None:
        try:
            rows = ray.get(self._inbox.drain.remote(), timeout=30)
        except ray.exceptions.RayError:
            return  # the cluster is going down; what ended the training is raised elsewhere
        for row in rows:
            step = int(row.pop("step"))
            self._tracker.metrics(row, step)
            self._progress.update(step, f"loss {row['loss/total']:.3f}  {row['pictures_per_s']:.1f} pictures/s")

    def finish(self) -> None:
        """Pass on what is left and stop."""
        self._stop_asked.set()
        self.join()


def _with_full_places(config: TrainConfig) -> TrainConfig:
    """Every path written out: workers run in other folders, and on other machines."""

    def full(uri: str) -> str:
        return storage.canonical_uri(uri) if uri else ""

    return dataclasses.replace(
        config,
        train=tuple(map(full, config.train)),
        val=full(config.val),
        out=full(config.out),
        init=full(config.init),
    )


def run(config: TrainConfig) -> TrainResult:
    """Train until the last step and commit its checkpoint; the same call goes on where an earlier one stopped.

    Raises:
        ValueError: the configuration, the data or the cluster do not fit; the message says what to do.
        TrainingError: the workers failed.
    """
    config = _with_full_places(config)
    config, manifests, classes = resolve(config)
    path, on_file = _claim(config, manifests)
    last = checkpoints.latest(config.out)
    done = last.step if last else 0
    tracker = Tracker(config.tracking_uri, on_file["tracking"].get("run_id"), config.out.rsplit("/", 1)[-1])
    if not on_file["tracking"]:
        tracker.parameters({**to_dict(config), "data": {str(i): m.hash for i, m in enumerate(manifests.values())}})
        on_file["tracking"] = {"uri": config.tracking_uri, "run_id": tracker.run_id}
        data = commit.sealed(_KIND, _FORMAT_VERSION, on_file)
        commit.write_file(storage.open_uri(config.out)[0], path, data)
    status = "FAILED"
    try:
        if done < config.optim.steps:
            _train(config, classes, tracker, done)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    return TrainResult(checkpoints.load(config.out).uri, tracker.uri, tracker.run_id)


def log_evaluation(result: TrainResult, found: Evaluation, step: int) -> None:
    """Add the final checkpoint's AP to the run's tracking."""
    tracker = Tracker(result.tracking_uri, result.tracking_run, "")
    parts = {"box": found.box, "mask": found.mask}
    values = {
        f"val/{kind}/{name}": value for kind, part in parts.items() if part for name, value in part.numbers().items()
    }
    tracker.metrics(values, step)
    tracker.finish("FINISHED")


def _train(config: TrainConfig, classes: tuple[ClassInfo, ...], tracker: Tracker, done: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    execution = config.execution
    cpus = execution.workers * execution.cpus_per_worker
    with ray_session(execution.address or None):
        require_cpus(cpus, f"training with {execution.workers} workers of {execution.cpus_per_worker} CPUs")
        inbox = ray.remote(num_cpus=0)(_Inbox).remote()
        follower = _Follower(inbox, tracker, Progress("train", config.optim.steps, "steps", done))
        job = {"config": to_dict(config), "classes": [dataclasses.asdict(info) for info in classes]}
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job, "inbox": inbox},
            scaling_config=ScalingConfig(
                num_workers=execution.workers,
                use_gpu=execution.gpu,
                resources_per_worker={
                    "CPU": execution.cpus_per_worker,
                    **({"GPU": 1} if execution.gpu else {}),
                },
            ),
            run_config=RunConfig(
                # Ray keeps its own state per attempt; what a run continues from are our checkpoints alone.
                name=f"attempt-{time.time_ns()}",
                storage_path=f"{config.out}/ray",
                failure_config=FailureConfig(max_failures=execution.max_failures),
            ),
        )
        follower.start()
        try:
            stopped = trainer.fit().return_value
        except TrainingFailedError as error:
            raise TrainingError(_reason(error, config.out)) from error
        finally:
            follower.finish()
        if stopped:
            raise TrainingError(stopped)


def _reason(error: BaseException, out: str) -> str:
    """One line about the first worker that failed."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", None) or failure
        lines = str(cause).strip().splitlines() or [""]
        return f"worker {rank} failed: {type(cause).__name__}: {lines[-1]}; correct it and give the same command again"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"training stopped: {lines[0]}; give the same command again to go on from the last checkpoint in {out}"

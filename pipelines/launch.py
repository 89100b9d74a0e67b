"""Ray Train around the training loop: starts the workers and follows their metrics."""

import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from model.settings import to_dict
from pipelines.config import TrainConfig
from pipelines.loop import Job, TrainingError, fit
from pipelines.manifest import ClassInfo
from pipelines.progress import Progress
from pipelines.ray_session import ray_session, require_cpus, require_gpus
from pipelines.tracking import Tracker
from pipelines.train_feed import Place

_POLL_S = 0.5


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


def launch(config: TrainConfig, classes: tuple[ClassInfo, ...], tracker: Tracker, done: int) -> None:
    """Run the workers until the last step.

    Args:
        config: the run, resolved against its data.
        classes: in the order of labels.
        tracker: takes the metrics.
        done: steps that earlier attempts did.

    Raises:
        RayError: the cluster is too small.
        TrainingError: the workers failed, or the training cannot go on.
    """
    execution = config.execution
    cpus = execution.workers * execution.cpus_per_worker
    with ray_session(execution.address or None):
        require_cpus(cpus, f"training with {execution.workers} workers of {execution.cpus_per_worker} CPUs")
        if execution.gpu:
            require_gpus(execution.workers, f"training with {execution.workers} workers of one GPU")
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

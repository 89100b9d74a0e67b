"""Ray Train around the training loop: starts the workers, follows them, and starts them again where that can help."""

import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from model.settings import to_dict
from pipelines import checkpoints, storage
from pipelines.config import TrainConfig
from pipelines.elastic import START_TIMEOUT_S, Elastic
from pipelines.evaluator import Evaluator
from pipelines.follower import Follower
from pipelines.inbox import Failure, Inbox
from pipelines.loop import Job, TrainingError
from pipelines.manifest import ClassInfo
from pipelines.network import TorchOnNodeAddress
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from pipelines.tracking import Tracker
from pipelines.train_worker import train_worker
from pipelines.watchdog import Watchdog

_LOG = logging.getLogger(__name__)


class _AttemptError(Exception):
    """An attempt that ended before its time, and whether that will come again."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class _End(NamedTuple):
    """How an attempt ended: steps done, and why it was asked to stop (empty: it was not)."""

    steps: int
    asked: str


class _Attempt:
    """The workers from one start to their end."""

    def __init__(self, job: Job, tracker: Tracker, workers: int) -> None:
        config = job.config
        self._job, self._workers = job, workers
        self._inbox = ray.remote(num_cpus=0)(Inbox).remote()
        done = max(checkpoints.steps(config.out), default=0)
        progress = Progress("train", config.optim.steps, "steps", done)
        evaluator = Evaluator(config, tracker)
        execution = config.execution
        watchdog = Watchdog(execution.hang_timeout_s, execution.first_step_timeout_s)
        self.follower = Follower(self._inbox, tracker, progress, evaluator, watchdog)

    def run(self) -> _End:
        """Train.

        Raises:
            _AttemptError: a worker failed or died.
        """
        self.follower.start()
        try:
            steps = int(self._trainer().fit().return_value)
        except TrainingFailedError as error:
            self.follower.finish(complete=False)
            raise _AttemptError(self._cause(error)) from error
        except BaseException:
            self.follower.finish(complete=False)
            raise
        self.follower.finish(steps == self._job.config.optim.steps or self.follower.asked == "early")
        return _End(steps, self.follower.asked)

    def _trainer(self) -> TorchTrainer:
        config, execution = self._job.config, self._job.config.execution
        resources = {"CPU": execution.cpus_per_worker, **({"GPU": 1} if execution.gpu else {})}
        job = {"config": to_dict(config), "classes": [dataclasses.asdict(info) for info in self._job.classes]}
        # Read when CUDA starts; without it some matrix products are not deterministic (cuBLAS, "Reproducibility").
        env = {"env_vars": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}} if config.deterministic and execution.gpu else None
        return TorchTrainer(
            train_worker,
            train_loop_config={"job": job, "inbox": self._inbox},
            torch_config=TorchOnNodeAddress(
                timeout_s=int(2 * max(900, execution.hang_timeout_s, execution.first_step_timeout_s))
            ),
            scaling_config=ScalingConfig(
                num_workers=self._workers, use_gpu=execution.gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                # Ray keeps its own state per attempt; what a run continues from are our checkpoints alone.
                name=f"attempt-{time.time_ns()}",
                storage_path=storage.child_uri(config.out, "ray"),
                # Which failures are worth another attempt is decided here, not by their number alone.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
                worker_runtime_env=env,
            ),
        )

    def _cause(self, error: BaseException) -> Failure:
        told = self.follower.failures
        certain = [failure for failure in told if failure.certain]
        if certain:
            return certain[0]
        if self.follower.hung:
            return Failure(-1, "; ".join(hung.reason for hung in self.follower.hung) + ": it was killed", False)
        of_ray: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
        died = sorted(of_ray.keys() - {failure.rank for failure in told})
        if died:
            return Failure(died[0], f"worker {died[0]} died: {_first_line(of_ray[died[0]])}", certain=False)
        # What is left may be the echo of another's end, such as a connection that broke.
        return told[0] if told else Failure(-1, _first_line(error), certain=False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Restarts:
    """Decides whether another attempt makes sense."""

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._in_a_row, self._last = config, 0, ("", -1)

    def note(self, failure: Failure) -> None:
        """Take the failure of an attempt.

        Raises:
            TrainingError: it would only come again.
        """
        step = max(checkpoints.steps(self._config.out), default=0)
        went_on = step > self._last[1]
        self._in_a_row = 1 if went_on else self._in_a_row + 1
        twice = " (twice, from the same checkpoint)" if (failure.text, step) == self._last else ""
        raised = " failed: " in failure.text
        self._last = failure.text, step
        if failure.certain or (twice and raised) or self._in_a_row > self._config.execution.max_failures:
            where = f"; the last checkpoint is that of step {step}, the same command goes on from it" if step else ""
            raise TrainingError(f"{failure.text}{twice}{where}")
        sys.stderr.write(f"{failure.text}; the workers start again from step {step}\n")


@contextmanager
def _termination() -> Iterator[threading.Event]:
    """Set when the process is asked to end (SIGTERM) inside the block."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


class _Watch(threading.Thread):
    """Asks an attempt's workers to stop: where the process shall end, or where more workers have found room."""

    def __init__(self, follower: Follower, terminated: threading.Event, elastic: Elastic, workers: int) -> None:
        super().__init__(daemon=True, name="watch")
        self._follower, self._terminated, self._elastic = follower, terminated, elastic
        self._workers, self._over = workers, threading.Event()

    def run(self) -> None:
        """Watch until `end`."""
        while not self._over.wait(0.2):
            try:
                self._look()
            except Exception:
                # The cluster may not answer for a while; the wish to end must be heard after that all the same.
                _LOG.warning("the driver could not look after its cluster; it tries again", exc_info=True)

    def _look(self) -> None:
        if self._terminated.is_set():
            self._follower.ask_to_stop("terminated")
        elif not self._follower.asked and self._follower.started and self._elastic.may_grow(self._workers):
            self._follower.ask_to_stop("grow")

    def end(self) -> None:
        """Stop watching."""
        self._over.set()
        self.join()


def launch(config: TrainConfig, classes: tuple[ClassInfo, ...], tracker: Tracker) -> int:
    """Run the workers until the last step, or until measuring says that it is enough; the steps done.

    Args:
        config: the run, resolved against its data.
        classes: in the order of labels.
        tracker: takes the metrics.

    Raises:
        RayError: the cluster is too small.
        TrainingError: the workers failed, or the training cannot go on.
        KeyboardInterrupt: the process was asked to end (SIGTERM); the workers saved what they had.
    """
    job, restarts, elastic = Job(config, classes), _Restarts(config), Elastic(config)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    with ray_session(config.execution.address or None), _termination() as terminated:
        wait_s = config.execution.wait_for_nodes_s
        while True:
            workers = elastic.workers(wait_s, terminated)
            if terminated.is_set():
                raise KeyboardInterrupt("SIGTERM")
            for reason in checkpoints.set_damaged_aside(config.out):
                sys.stderr.write(f"{reason}; the run goes on from the one before it\n")
            attempt = _Attempt(job, tracker, workers)
            watch = _Watch(attempt.follower, terminated, elastic, workers)
            watch.start()
            try:
                end = attempt.run()
            except _AttemptError as error:
                if terminated.is_set():
                    raise KeyboardInterrupt("SIGTERM") from error
                if attempt.follower.started or not elastic.found_no_place(workers):
                    restarts.note(error.failure)
                wait_s = max(wait_s, START_TIMEOUT_S)  # a machine that comes back is worth a minute
                continue
            finally:
                watch.end()
            if terminated.is_set() and end.steps < config.optim.steps:
                raise KeyboardInterrupt("SIGTERM")
            if end.asked != "grow" or end.steps == config.optim.steps:
                return end.steps

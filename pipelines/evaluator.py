"""Checkpoints measured one after the other beside the running training, the best one known, old ones deleted."""

import logging
from typing import Any

import ray

from pipelines import checkpoints
from pipelines.config import TrainConfig
from pipelines.ray_session import Share, room_for
from pipelines.tracking import Tracker
from pipelines.validation import Measured, Measurements, measure

_LOG = logging.getLogger(__name__)
_MOST_WAITING = 2


class Evaluator:
    """Measures a run's checkpoints with Ray tasks; training never waits for it."""

    def __init__(self, config: TrainConfig, tracker: Tracker) -> None:
        """Go on where an earlier attempt of the run stopped."""
        self._config, self._tracker = config, tracker
        self._measured = Measurements(config.out, config.metric)
        self._waiting = [step for step in checkpoints.steps(config.out) if self._wants(step)]
        self._skip()
        self._running: tuple[int, Any] | None = None

    def _wants(self, step: int) -> bool:
        every, last = self._config.evaluation.every, self._config.optim.steps
        return bool(every) and (step % every == 0 or step == last) and step not in self._measured.values

    def committed(self, step: int) -> None:
        """Take the news of a checkpoint: measure it when its turn comes, and delete those that nobody needs."""
        if self._wants(step):
            self._waiting.append(step)
            self._skip()
        self._retain()

    def _skip(self) -> None:
        """Where measuring cannot keep pace, it leaves out the oldest that wait: each holds a checkpoint on the disk."""
        while len(self._waiting) > _MOST_WAITING:
            _LOG.warning(
                "the checkpoint of step %d is not measured: measuring is slower than evaluation.every (%d) asks for",
                self._waiting.pop(0), self._config.evaluation.every,
            )  # fmt: skip

    def _retain(self) -> None:
        needed = {*self._waiting, *([self._running[0]] if self._running else [])}
        if self._measured.best is not None:
            needed.add(self._measured.best)
        try:
            checkpoints.retain(self._config.out, self._config.execution.keep_checkpoints, needed)
        except OSError as error:
            _LOG.warning("old checkpoints of %s could not be deleted: %s", self._config.out, error)

    def poll(self, wait_s: float = 0.0) -> None:
        """Take what is finished and begin what is next; waits at most `wait_s` seconds."""
        if self._running is not None:
            step, task = self._running
            if not ray.wait([task], timeout=wait_s)[0]:
                return
            self._running = None
            self._take(step, task)
        if self._waiting:
            step = self._waiting.pop(0)
            try:
                self._running = step, self._start(step)
            except (ValueError, OSError) as error:
                self._could_not(step, error)

    def _start(self, step: int) -> Any:
        evaluation = self._config.evaluation
        task = ray.remote(num_cpus=evaluation.cpus, num_gpus=int(evaluation.gpu), max_retries=2)(measure)
        uri = checkpoints.at_step(self._config.out, step).uri
        return task.remote(uri, self._config.val, "cuda" if evaluation.gpu else "cpu", max(1, evaluation.cpus))

    def _take(self, step: int, task: Any) -> None:
        try:
            found: Measured = ray.get(task)
            values = self._measured.add(step, found.metrics)
        except (ray.exceptions.RayError, ValueError, OSError) as error:
            self._could_not(step, error)
            return
        self._tracker.metrics({f"val/{name}": value for name, value in values.items()}, step)
        for name, content in found.figures.items():
            self._tracker.file(f"figures/step-{step:08d}", name, content)
        self._retain()

    def _could_not(self, step: int, error: Exception) -> None:
        """Measuring is a service to the run: where it fails, the run goes on and says so."""
        reason = (str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__])[-1]
        _LOG.warning("the checkpoint of step %d could not be measured: %s", step, reason)

    def finish(self) -> None:
        """Measure what is left, as long as the cluster has what that takes."""
        while self._running is not None or self._waiting:
            self.poll(wait_s=1.0)
            evaluation = self._config.evaluation
            if self._running is not None and not room_for(Share(evaluation.cpus, int(evaluation.gpu))):
                _LOG.warning(
                    "the cluster has no machine any more to measure on: the checkpoints of steps %s are not measured",
                    [self._running[0], *self._waiting],
                )
                self.abort()
                self._waiting = []

    def abort(self) -> None:
        """End what is being measured; another evaluator of the run begins it again."""
        if self._running is not None:
            ray.cancel(self._running[1], force=True)
            self._running = None

    @property
    def ended_early(self) -> bool:
        """Whether as many measurements as `evaluation.patience` came after the best one."""
        patience = self._config.evaluation.patience
        return bool(patience) and self._measured.since_best >= patience

"""Checkpoints measured one after the other beside the running training, the best one known, old ones deleted."""

import logging
from typing import Any

import ray

from pipelines import checkpoints
from pipelines.config import TrainConfig
from pipelines.tracking import Tracker
from pipelines.validation import Measurements, measure

_LOG = logging.getLogger(__name__)


class Evaluator:
    """Measures a run's checkpoints with Ray tasks; training never waits for it."""

    def __init__(self, config: TrainConfig, tracker: Tracker) -> None:
        """Go on where an earlier attempt of the run stopped."""
        self._config, self._tracker = config, tracker
        self._measured = Measurements(config.out, config.evaluation.metric)
        self._waiting = [step for step in checkpoints.steps(config.out) if self._wants(step)]
        self._running: tuple[int, Any] | None = None

    def _wants(self, step: int) -> bool:
        every = self._config.evaluation.every
        return bool(every) and step % every == 0 and step not in self._measured.values

    def committed(self, step: int) -> None:
        """Take the news of a checkpoint: measure it when its turn comes, and delete those that nobody needs."""
        if self._wants(step):
            self._waiting.append(step)
        self._retain()

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
            self._running = step, self._start(step)

    def _start(self, step: int) -> Any:
        evaluation = self._config.evaluation
        task = ray.remote(num_cpus=evaluation.cpus, num_gpus=int(evaluation.gpu), max_retries=2)(measure)
        uri = checkpoints.at_step(self._config.out, step).uri
        return task.remote(uri, self._config.val, "cuda" if evaluation.gpu else "cpu", max(1, evaluation.cpus))

    def _take(self, step: int, task: Any) -> None:
        try:
            values = self._measured.add(step, ray.get(task))
        except (ray.exceptions.RayError, ValueError, OSError) as error:
            # Measuring is a service to the run: where it fails, the run goes on and says so.
            reason = (str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__])[-1]
            _LOG.warning("the checkpoint of step %d could not be measured: %s", step, reason)
            return
        self._tracker.metrics({f"val/{name}": value for name, value in values.items()}, step)
        self._retain()

    def finish(self) -> None:
        """Measure what is left."""
        while self._running is not None or self._waiting:
            self.poll(wait_s=1.0)

    @property
    def ended_early(self) -> bool:
        """Whether as many measurements as `evaluation.patience` came after the best one."""
        patience = self._config.evaluation.patience
        return bool(patience) and self._measured.since_best >= patience

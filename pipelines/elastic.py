"""How many workers a run starts with: what the cluster has room for, what it gives, and when to ask for more."""

import sys
import threading
import time

import ray

from pipelines.config import TrainConfig
from pipelines.ray_session import Share, require_workers, room_for

START_TIMEOUT_S = 60.0
_LONGEST_PAUSE_S = 3600.0


class Elastic:
    """The number of workers of a run's next attempt.

    A cluster's machines may be at work for others: what is there in all need not be free. So an attempt that found no
    place lowers the next one's number, and more are asked for only once their resources are free.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Take the run."""
        execution, evaluation = config.execution, config.evaluation
        self._wanted, self._limit = execution.workers, execution.workers
        self.least = execution.min_workers or execution.workers
        self._each = Share(execution.cpus_per_worker, int(execution.gpu))
        measuring = Share(evaluation.cpus, int(evaluation.gpu))
        self._measuring = [measuring] if evaluation.every and measuring != Share(0, 0) else []
        self._loaders = execution.loader_actors
        self._pause_s, self._looked, self._grew = START_TIMEOUT_S, time.monotonic(), False

    def workers(self, wait_s: float, ended: threading.Event) -> int:
        """How many workers to start now.

        Args:
            wait_s: seconds to wait for machines that are being added.
            ended: set where the waiting shall end.

        Raises:
            RayError: the cluster cannot hold as few as the run allows.
        """
        what = f"training with {self.least} workers of {_text(self._each)} each"
        besides = self._besides(self.least)
        if besides:
            total = Share(*map(sum, zip(*besides, strict=True)))
            what += f", and {_text(total)} for measuring and loading,"
        require_workers(self.least, self._each, what, wait_s, besides, ended)
        self._looked = time.monotonic()
        return max(self.least, self._room(self._limit))

    def _besides(self, workers: int) -> list[Share]:
        """What a run of so many workers takes besides them."""
        return self._measuring + [Share(1, 0)] * (workers * self._loaders)

    def _room(self, most: int) -> int:
        """Workers that the cluster's machines hold with what they need besides, at most so many."""
        none, some = 0, most + 1  # there is room for `none`, and none for `some`
        while some - none > 1:
            middle = (none + some) // 2
            fits = room_for(self._each, self._besides(middle)) >= middle
            none, some = (middle, some) if fits else (none, middle)
        return none

    def found_no_place(self, workers: int) -> bool:
        """Take that an attempt of so many never started; whether fewer are worth a try."""
        if self._grew:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if workers <= self.least:
            return False
        self._limit = max(self.least, min(workers - 1, self._free()))
        sys.stderr.write(
            f"{workers} workers found no place within {START_TIMEOUT_S:.0f} s, other work may hold the machines; "
            f"{self._limit} are asked for\n"
        )
        return True

    def may_grow(self, workers: int) -> bool:
        """Whether a run of so many workers shall start again with more; looks now and then alone."""
        if workers >= self._wanted or time.monotonic() - self._looked < self._pause_s:
            return False
        self._looked = time.monotonic()
        more = min(self._free(), self._room(self._wanted) - workers)
        if more < 1:
            return False
        self._limit, self._grew = min(self._wanted, workers + more), True
        return True

    def _free(self) -> int:
        """Workers that what nobody uses would hold, were it on one machine."""
        free, each = ray.available_resources(), Share(self._each.cpus + self._loaders, self._each.gpus)
        of_each = [free.get(kind, 0.0) // need for kind, need in zip(("CPU", "GPU"), each, strict=True) if need]
        return int(min(of_each, default=0.0))


def _text(share: Share) -> str:
    """As in: 2 CPUs and 1 GPU."""
    parts = [(share.cpus, f"CPU{'s' * (share.cpus > 1)}"), (share.gpus, f"GPU{'s' * (share.gpus > 1)}")]
    return " and ".join(f"{count:g} {name}" for count, name in parts if count) or "no CPU"

"""What the driver does while the workers train: passes on metrics, measures checkpoints, watches that nobody hangs."""

import logging
import os
import signal
import threading
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.evaluator import Evaluator
from pipelines.inbox import Failure
from pipelines.progress import Progress
from pipelines.tracking import Tracker
from pipelines.watchdog import Hung, Watchdog

_POLL_S = 0.5
_ANSWER_S = 30.0
_LOG = logging.getLogger(__name__)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Follower(threading.Thread):
    """One attempt's companion on the driver.

    Attributes:
        failures: what workers raised, first one first.
        hung: workers that were killed because they held up the run.
        asked: why the workers were asked to stop; empty where they were not.
        started: whether any worker was ever heard of.
    """

    def __init__(
        self, inbox: Any, tracker: Tracker, progress: Progress, evaluator: Evaluator, watchdog: Watchdog
    ) -> None:
        """Take the inbox's handle and whom to tell."""
        super().__init__(daemon=True, name="follower")
        self._inbox, self._tracker, self._progress, self._evaluator = inbox, tracker, progress, evaluator
        self._watchdog, self._received = watchdog, 0
        self._over = threading.Event()
        self.failures: list[Failure] = []
        self.hung: list[Hung] = []
        self.asked, self.started = "", False

    def run(self) -> None:
        """Follow until `finish`."""
        while not self._over.wait(_POLL_S):
            try:
                self._follow()
            except ray.exceptions.RayError:
                pass  # the cluster is going down; what ended the training is raised elsewhere
            except Exception:
                _LOG.exception("the driver could not follow its workers; they go on")

    def _follow(self) -> None:
        mail = ray.get(self._inbox.drain.remote(self._received), timeout=_ANSWER_S)
        self._received, now = mail.number, time.monotonic()
        self.started = self.started or bool(mail.beats)
        # First what was said of failures and of life: what follows may fail, and the mail comes only once.
        self.failures += mail.failures
        for beat in mail.beats:
            self._watchdog.hear(beat, now)
        for row in mail.rows:
            step = int(row.pop("step"))
            self._tracker.metrics(row, step)
            note = f"loss {row['loss/total']:.3f}  " if "loss/total" in row else ""
            self._progress.update(step, f"{note}{row['pictures_per_s']:.1f} pictures/s")
        for step in mail.committed:
            self._evaluator.committed(step)
        self._evaluator.poll()
        if self._evaluator.ended_early:
            self.ask_to_stop("early")
        if not self._over.is_set() and not self.hung:
            self._end_hanging(self._watchdog.hung(now))

    def _end_hanging(self, found: list[Hung]) -> None:
        self.hung = found
        for hung in found:
            where = NodeAffinitySchedulingStrategy(hung.beat.node, soft=False)
            # By its process: a stopped process does not answer Ray either.
            ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=where).remote(hung.beat.pid)

    def ask_to_stop(self, why: str) -> None:
        """Ask the workers to stop with a checkpoint; once."""
        if not self.asked:
            self.asked = why
            self._inbox.stop.remote()

    def finish(self, complete: bool) -> None:
        """Take what is left and end; where the training is complete, measure what is left as well."""
        self._over.set()
        self.join()
        try:
            self._follow()
            if complete:
                self._evaluator.finish()
            else:
                self._evaluator.abort()
        except ray.exceptions.RayError as error:
            _LOG.warning("the last metrics of the workers are lost: %s", error)
        except Exception:
            _LOG.exception("the driver could not take the last of its workers; what they saved is there")
        self._progress.close()

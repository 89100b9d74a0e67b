"""Checkpoints written in the background, one at a time, while the training goes on."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from pipelines import checkpoints

_LOG = logging.getLogger(__name__)
RETRIES_S = (1.0, 5.0)
"""Pauses before a failed write is tried again: object stores have short outages."""


class CheckpointWriteError(OSError):
    """The store refused a checkpoint; the ones before it are as they were."""


class CheckpointWriter:
    """Writes snapshots in order; a store that fails is raised at the next call, never lost."""

    def __init__(self, run: str, committed: Callable[[int], None]) -> None:
        """Take the place.

        Args:
            run: folder or URI of the run.
            committed: called with the step of each checkpoint once it is there, in the writing thread.
        """
        self._run, self._committed = run, committed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def submit(self, made: checkpoints.Snapshot) -> None:
        """Write a snapshot; waits for the one before it, so that two at most are in memory.

        Raises:
            CheckpointWriteError: the one before it could not be written.
        """
        self.wait()
        self._last = self._pool.submit(self._write, made)

    def wait(self) -> None:
        """Wait until everything is committed.

        Raises:
            CheckpointWriteError: it could not be.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def _write(self, made: checkpoints.Snapshot) -> None:
        for attempt, pause_s in enumerate((*RETRIES_S, None)):
            try:
                checkpoints.write(self._run, made)
                break
            except (OSError, ValueError) as error:
                if pause_s is None:
                    raise CheckpointWriteError(
                        f"the checkpoint of step {made.step} could not be written to {self._run} "
                        f"({' '.join(str(error).split())}): free space or permissions there, then give the same "
                        "command again"
                    ) from error
                _LOG.warning("checkpoint of step %d, try %d: %s", made.step, attempt + 1, error)
                time.sleep(pause_s)
        self._committed(made.step)

    def __enter__(self) -> "CheckpointWriter":
        """Use it in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the last write; what ended the block goes before what the write says."""
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)

"""One training worker of Ray Train: the loop, with a wire to the driver."""

import os
import threading
from typing import Any

import ray
import ray.train.torch
import torch

from pipelines import host
from pipelines.config import Precision
from pipelines.inbox import Failure
from pipelines.loop import Job, Supervisor, TrainingError, fit
from pipelines.train_feed import LoaderKilledError, Place
from pipelines.watchdog import DONE, Beat

_BEAT_S = 1.0
# A store, a network or a peer may be well again at the next try; a wrong value or too small a memory never is.
_CERTAIN = (
    ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, NotImplementedError, MemoryError,
    torch.OutOfMemoryError,
)  # fmt: skip


class Wire(Supervisor):
    """A worker's end: beats from a thread of its own, so that a worker that waits is not taken for one that is dead."""

    def __init__(self, inbox: Any, rank: int) -> None:
        """Take the inbox's handle and the worker's number, and begin to beat."""
        context = ray.get_runtime_context()
        self._inbox, self._stop = inbox, False
        self._beat = Beat(rank, 0, "start", os.getpid(), context.get_node_id(), ray.util.get_node_ip_address())
        self._over = threading.Event()
        threading.Thread(target=self._keep_beating, daemon=True, name="beat").start()

    def at(self, step: int, phase: str) -> None:
        """Say where the worker is, with the next beat."""
        self._beat = self._beat._replace(step=step, phase=phase)

    def committed(self, step: int) -> None:
        """Say that a checkpoint is there."""
        self._inbox.committed.remote(step)

    def stop_asked(self) -> bool:
        """What the driver answered to the last beat."""
        return self._stop

    def close(self) -> None:
        """Stop beating, with a last beat that says so."""
        self._over.set()
        self._inbox.beat.remote(self._beat._replace(phase=DONE))

    def _keep_beating(self) -> None:
        while not self._over.is_set():
            try:
                self._stop = ray.get(self._inbox.beat.remote(self._beat), timeout=30)
            except ray.exceptions.GetTimeoutError:
                continue  # slow, not gone: a worker that stops beating for it would be taken for a dead one
            except ray.exceptions.RayError:
                return  # the driver is gone, and soon this worker
            self._over.wait(_BEAT_S)


def train_worker(raw: dict[str, Any]) -> int:
    """Train as one of the workers; the steps done.

    Args:
        raw: `job` as plain values and the handle of the `inbox`.
    """
    job = Job.from_dict(raw["job"])
    context = ray.train.get_context()
    if job.config.execution.gpu:
        torch.set_num_threads(job.config.execution.cpus_per_worker)
    else:
        host.set_up(job.config.execution.cpus_per_worker, job.config.precision is not Precision.FP32)
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    wire = Wire(raw["inbox"], place.rank)
    try:
        return fit(job, place, raw["inbox"].put.remote, wire)
    except Exception as error:
        ray.get(raw["inbox"].failed.remote(failure_of(error, place.rank)))
        raise
    finally:
        wire.close()


def failure_of(error: Exception, rank: int) -> Failure:
    """What to tell the driver of an error, and whether it is certain to come back."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    if lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        lines = [lines[-1].removeprefix(f"{type(error).__name__}: ")]  # what it says before is a traceback
    text = " ".join(" ".join(lines).split())
    if isinstance(error, TrainingError):
        return Failure(rank, text, certain=True)
    if isinstance(error, LoaderKilledError):
        return Failure(
            rank, f"worker {rank} lost a loader process, most likely to the machine's memory limit ({text}): lower "
            "execution.loader_processes (or loader_actors) or optim.batch", certain=False,
        )  # fmt: skip
    return Failure(rank, f"worker {rank} failed: {type(error).__name__}: {text}", isinstance(error, _CERTAIN))

"""Batches built by Ray actors on other machines: for GPUs that outrun the cores beside them.

The same function of data, seed and number as `loading.stream` computes, so nothing else of a run knows the difference:
order, resuming and another number of workers are as before. Ray Data's iterators would not do: they bring rows to
training in an order that only they know, and start over after a loss.
"""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from pipelines import host
from pipelines.loading import Batch, BuilderKilledError, TrainBatches

_AHEAD = 4  # batches an actor, as torch's loader has them
_RETRIES = 3


class Builder:
    """Builds batches where there is a free core."""

    def __init__(self, pickled: bytes) -> None:
        """Take the batches of one worker, pickled."""
        host.set_up(1, is_16_bit=False)
        self._pickled = pickled
        self._batches: TrainBatches | None = None

    def build(self, number: int) -> Any:
        """A batch, its tensors as arrays, which Ray carries without a copy.

        Opens the data sets when the first one is built: their errors then come to the worker as they are.
        """
        if self._batches is None:
            self._batches = ray.cloudpickle.loads(self._pickled)
        return _to_arrays(self._batches[number])


def remote_stream(batches: TrainBatches, start: int, stop: int, actors: int, pin: bool) -> Iterator[Batch]:
    """Batches `start` .. `stop` - 1 in order, built ahead by `actors` actors of one CPU each, spread over the cluster.

    An actor that dies with its machine is started again elsewhere, and what it built is built again.

    Args:
        batches: of this worker.
        start: the first number.
        stop: one past the last.
        actors: how many.
        pin: whether batches come in pinned memory.

    Raises:
        BuilderKilledError: actors died again and again over the same batch.
        Exception: what building a batch raised.
    """
    # SPREAD also takes them out of the training's placement group, which has no room for them.
    settings = {"num_cpus": 1, "scheduling_strategy": "SPREAD", "max_restarts": -1, "max_task_retries": _RETRIES}
    build = ray.remote(Builder).options(**settings)
    pickled = ray.put(ray.cloudpickle.dumps(batches))
    builders = [build.remote(pickled) for _ in range(actors)]
    try:
        turns = itertools.cycle(builders)
        pending: collections.deque[Any] = collections.deque()
        for number in range(start, stop + _AHEAD * actors):
            if number < stop:
                pending.append(next(turns).build.remote(number))
            if pending:  # brings what is built to this machine before it is asked for
                ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=True)
            if number - start >= _AHEAD * actors and pending:
                yield _to_tensors(_fetched(pending.popleft()), pin)
    finally:
        for builder in builders:
            ray.kill(builder)


def _fetched(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError) as error:
        raise BuilderKilledError(" ".join(str(error).split())) from error


def _to_arrays(value: Any) -> Any:
    """Tensors in named tuples as arrays; pixels are turned, so that their memory is in the order of their axes."""
    if isinstance(value, Batch):
        turned = value.images._replace(pixels=value.images.pixels.permute(0, 2, 3, 1))
        return Batch(*(_to_arrays(item) for item in value._replace(images=turned)))
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, tuple):
        return type(value)(*(_to_arrays(item) for item in value))
    return value


def _to_tensors(value: Any, pin: bool) -> Any:
    """The inverse, in memory of this process, so that Ray's is free again."""
    if isinstance(value, Batch):
        made = Batch(*(_to_tensors(item, pin) for item in value))
        return made._replace(images=made.images._replace(pixels=made.images.pixels.permute(0, 3, 1, 2)))
    if isinstance(value, np.ndarray):
        tensor = torch.empty(value.shape, dtype=getattr(torch, value.dtype.name), pin_memory=pin)
        np.copyto(tensor.numpy(), value)
        return tensor
    if isinstance(value, tuple):
        return type(value)(*(_to_tensors(item, pin) for item in value))
    return value

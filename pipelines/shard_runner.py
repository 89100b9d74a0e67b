"""Ray Data over shards: each shard is one task, and finished ones are handed on as they come."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray import cloudpickle
from ray.exceptions import RayError

Row = dict[str, Any]
Work = Callable[[int], Row]
"""Makes the shard of a number and returns JSON-able facts about it; only these go through Ray."""

# Errors travel as data: Ray Data wraps what a task raises, and on its way to the driver the cause is lost.
_RESULT = pa.schema([pa.field("shard", pa.int64()), pa.field("facts", pa.string()), pa.field("error", pa.binary())])


class ShardError(ValueError):
    """A shard could not be made; the same command tries the missing ones again."""


@dataclass(frozen=True)
class Workers:
    """Processes that stay, for work that is costly to set up (a detector).

    Attributes:
        count: processes, at most.
        cpus: CPU cores of each.
        gpus: GPUs of each.
        least: processes to begin with; more are started while shards wait and the cluster has room. 0 starts all.
    """

    count: int
    cpus: int = 1
    gpus: int = 0
    least: int = 0


class _Worker:
    """A staying process: sets the work up once.

    What the setting up raises is kept for the first shard: Ray reports a constructor that fails as a dead process.
    """

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self._failed: Exception | None = None
        try:
            self._work = make_work()
        except Exception as error:
            self._failed = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _do(self._make, batch)

    def _make(self) -> Work:
        if self._failed is not None:
            raise self._failed
        return self._work


def _do(make_work: Callable[[], Work], batch: pa.Table) -> pa.Table:
    shards = batch.column("item").to_pylist()
    try:
        work = make_work()
        rows = [{"shard": shard, "facts": json.dumps(work(shard))} for shard in shards]
    except Exception as error:
        rows = [{"shard": shard, "error": _packed(error)} for shard in shards]
    return pa.Table.from_pylist(rows, schema=_RESULT)


def _packed(error: Exception) -> bytes:
    try:
        data: bytes = cloudpickle.dumps(error.with_traceback(None))
        cloudpickle.loads(data)
    except Exception:  # not every exception survives the way
        data = cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data


def run_shards(
    make_work: Callable[[], Work], shards: Sequence[int], workers: Workers | None = None
) -> Iterator[tuple[int, Row]]:
    """Do the work of shards on the connected Ray, in any order.

    A process that dies is replaced and its shard tried again; what the work itself raises ends the run.

    Args:
        make_work: sets the work up, in the process that does it.
        shards: numbers of the shards.
        workers: processes that stay; None sets the work up for each shard anew, on any free CPU.

    Yields:
        Number and facts of each shard as it is finished.

    Raises:
        ShardError: a task failed; finished shards stay.
        ValueError: what the work raised.
    """
    if not shards:
        return
    with _quiet_context():
        # A block a shard, hence a task a shard: a retried task repeats one shard and no more.
        numbers = ray.data.from_items(list(shards), override_num_blocks=len(shards))
        if workers is None:
            made = numbers.map_batches(
                lambda batch: _do(make_work, batch), batch_size=None, batch_format="pyarrow", num_cpus=1
            )
        else:
            made = numbers.map_batches(
                _Worker,
                fn_constructor_args=(make_work,),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=workers.cpus,
                num_gpus=workers.gpus or None,
                compute=ray.data.ActorPoolStrategy(min_size=workers.least or workers.count, max_size=workers.count),
            )
        try:
            for batch in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    if row["error"] is not None:
                        raise _refusal(cloudpickle.loads(row["error"]))
                    yield row["shard"], json.loads(row["facts"])
        except RayError as error:
            raise _refusal(_cause(error)) from error


def _refusal(cause: BaseException) -> ValueError:
    """What the work refused as it said it, anything else as a shard that could not be made."""
    if isinstance(cause, ValueError):
        return cause
    return ShardError(
        f"a shard could not be made: {type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}; "
        "run the same command again to make the missing shards"
    )


@contextmanager
def _quiet_context() -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    names = ("enable_progress_bars", "print_on_execution_start", "execution_no_progress_timeout_s")
    before = [getattr(context, name) for name in names], logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    # A large shard on a slow machine may well take longer than Ray's half an hour.
    context.execution_no_progress_timeout_s = -1
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in zip(names, before[0], strict=True):
            setattr(context, name, value)
        logger.setLevel(before[1])


def _cause(error: BaseException) -> BaseException:
    # Ray wraps what a task raised, once or twice, as `cause` or as the usual chain.
    seen = {id(error)}
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or id(inner) in seen:
            return error
        seen.add(id(inner))
        error = inner

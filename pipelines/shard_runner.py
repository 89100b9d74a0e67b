"""Ray Data over shards: one task a shard, finished ones handed on as they come."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pyarrow as pa
import ray.data
from ray.exceptions import RayError, RayTaskError

from pipelines import rejections
from pipelines.manifest import ShardInfo
from pipelines.shard_task import ShardResult, ShardTask, make_shard

_RESULT = pa.schema([pa.field("number", pa.int64()), pa.field("result", pa.string())])


class ShardError(ValueError):
    """A shard could not be made; the same command tries the missing ones again."""


def run_shards(task: ShardTask, num_shards: int) -> Iterator[tuple[int, ShardResult]]:
    """Make all shards of a plan on the connected Ray, in any order.

    Args:
        task: the plan.
        num_shards: shards 0..num_shards-1.

    Yields:
        Number and result of each shard as it is finished.

    Raises:
        ShardError: a task failed; finished shards stay.
        ValueError: what `make_shard` raised.
    """
    if num_shards == 0:
        return

    def work(batch: pa.Table) -> pa.Table:
        numbers = batch.column("item").to_pylist()
        results = [_to_json(make_shard(task, number)) for number in numbers]
        return pa.table({"number": numbers, "result": results}, schema=_RESULT)

    with _quiet_context():
        # A block a shard, hence a task a shard: a retried task repeats one shard and no more.
        numbers = ray.data.from_items(list(range(num_shards)), override_num_blocks=num_shards)
        made = numbers.map_batches(work, batch_size=None, batch_format="pyarrow", num_cpus=1)
        try:
            for batch in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    yield row["number"], _from_json(row["result"])
        except (RayTaskError, RayError) as error:
            cause = _cause(error)
            if isinstance(cause, ValueError):
                raise cause from None
            raise ShardError(
                f"a shard could not be made: {type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}; "
                "run the same command again to make the missing shards"
            ) from error


@contextmanager
def _quiet_context() -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        logger.setLevel(before[2])


def _cause(error: BaseException) -> BaseException:
    # Ray wraps what a task raised, once or twice, as `cause` or as the usual chain.
    seen = {id(error)}
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or id(inner) in seen:
            return error
        seen.add(id(inner))
        error = inner


def _to_json(result: ShardResult) -> str:
    return json.dumps(
        {
            "info": asdict(result.info),
            "rejections": [rejections.to_dict(r) for r in result.rejections],
            "was_there": result.was_there,
        }
    )


def _from_json(text: str) -> ShardResult:
    raw = json.loads(text)
    lost = tuple(rejections.from_dict(r) for r in raw["rejections"])
    return ShardResult(ShardInfo(**raw["info"]), lost, raw["was_there"])

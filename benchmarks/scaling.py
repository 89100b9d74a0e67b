"""One table: what reporting, checkpointing and data cost Ray Train workers whose step takes a fixed time.

    PYTHONPATH=. python benchmarks/scaling.py [--workers 1 2 4 8 16] [--steps 60] [--step-ms 200]

The step is a sleep and the all-reduce of its flags, so that many workers fit on few cores; everything around it is the
real loop: pictures are read and transformed, metrics reported every 10 steps, a checkpoint written every 20. "lost" is
the share of the time that is not the step, from the tenth step to the last, on worker 0.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from pipelines import launch
from pipelines.dataset import Dataset
from pipelines.ray_session import ray_session
from pipelines.train_state import Outcome, TrainState
from pipelines.train_worker import train_worker
from tests.pipelines import tiny_run, tiny_shards

_FIRST = 10


class Rows:
    """A tracker that keeps nothing."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Forget."""


def sleeping_worker(raw: dict[str, Any]) -> int:
    """The training worker with a step that sleeps; worker 0 leaves the moments of its steps in a file."""
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    out, step_s = Path(raw["job"]["config"]["out"]), float(os.environ["STEP_S"])
    moments: list[float] = []

    def sleep(state: TrainState, model: torch.nn.Module, parts: Any, ask: int = 0) -> Outcome:
        list(parts)
        moments.append(time.monotonic())
        time.sleep(step_s)
        flags = torch.tensor([0.0, float(ask)])
        if world > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return Outcome({"cls": torch.zeros(())}, torch.ones(()), flags[0] > 0, flags[0] > 0, flags[1])

    TrainState.step = sleep  # type: ignore[method-assign]
    done = train_worker(raw)
    if rank == 0:
        (out / "moments.txt").write_text("\n".join(map(str, moments)))
    return done


def measure(data: Dataset, out: Path, workers: int, args: argparse.Namespace) -> float:
    """Seconds of a step, all included."""
    execution = {"workers": workers, "checkpoint_every": 20, "report_every": 10, "keep_checkpoints": 1}
    config = tiny_run.config(data, out, optim={"steps": args.steps, "batch": 2 * workers}, execution=execution)
    launch.launch(config, tiny_shards.CLASSES, Rows())
    moments = [float(line) for line in (out / "moments.txt").read_text().splitlines()]
    return (moments[-1] - moments[_FIRST]) / (len(moments) - 1 - _FIRST)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-ms", type=float, default=200.0)
    args = parser.parse_args()
    os.environ["STEP_S"] = str(args.step_ms / 1e3)
    launch.train_worker = sleeping_worker
    print(f"{os.cpu_count()} cores, load before the run {os.getloadavg()[0]:.1f}\n")
    print("| workers | step ms | lost % |\n|---------|---------|--------|")
    with tempfile.TemporaryDirectory() as folder, ray_session(num_cpus=max(args.workers)):
        data = tiny_run.dataset(Path(folder, "data"), (32, 32))
        for workers in args.workers:
            step_ms = 1e3 * measure(data, Path(folder, str(workers)), workers, args)
            print(f"| {workers:7} | {step_ms:7.1f} | {100 * (1 - args.step_ms / step_ms):6.1f} |", flush=True)


if __name__ == "__main__":
    main()

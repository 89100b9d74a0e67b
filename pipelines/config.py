"""What a training run is made of; the command line is generated from these dataclasses."""

import dataclasses
import enum
from typing import Any

from model.config import DetectorConfig
from model.settings import to_dict
from pipelines.geometry import AugmentConfig
from pipelines.optim import OptimConfig


class Precision(enum.Enum):
    """Arithmetic of the convolutions and matrix products."""

    FP32 = "fp32"
    BF16 = "bf16"  # autocast; parameters, losses and box arithmetic stay float32


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Where and how a run is executed; nothing here changes what it computes beyond rounding.

    Attributes:
        address: Ray cluster to use (`auto` for the one this machine belongs to); empty starts one on this machine.
        workers: training processes; the batch is divided among them.
        cpus_per_worker: CPU cores and threads of each.
        gpu: one GPU a worker, and NCCL between them.
        loader_processes: processes a worker that build batches ahead; 0 builds them in the worker.
        report_every: steps between reported metrics.
        checkpoint_every: steps between checkpoints; the last step always has one.
        max_failures: restarts from the last checkpoint after a worker died, before the run gives up.
    """

    address: str = ""
    workers: int = 1
    cpus_per_worker: int = 1
    gpu: bool = False
    loader_processes: int = 0
    report_every: int = 20
    checkpoint_every: int = 1000
    max_failures: int = 3

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("workers", "cpus_per_worker", "report_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"execution.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("loader_processes", "max_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"execution.{name} must be >= 0, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        train: prepared data sets to train on.
        val: prepared data set to evaluate the final checkpoint on; empty for none.
        out: folder or URI of the run; the same command with the same folder goes on where it stopped.
        ratio: pictures of each training set in a batch, relative to each other (6 4 is the distillation paper's
            labelled : pseudo); empty divides the batch in proportion to the sets' sizes.
        init: checkpoint to take the weights from; empty starts from random ones.
        seed: fixes initial weights, order, augmentation and sampling.
        shuffle_window: shards shuffled together; 0 for all.
        precision: arithmetic of the network.
        tracking_uri: MLflow server or sqlite:///FILE; empty is MLflow's own default.
        detector: the model.
        optim: optimiser and schedule.
        augment: what happens to training pictures.
        execution: where and how the run is executed.
    """

    train: tuple[str, ...] = ()
    val: str = ""
    out: str = ""
    ratio: tuple[int, ...] = ()
    init: str = ""
    seed: int = 0
    shuffle_window: int = 0
    precision: Precision = Precision.FP32
    tracking_uri: str = ""
    detector: DetectorConfig = DetectorConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    execution: ExecutionConfig = ExecutionConfig()

    def __post_init__(self) -> None:
        """Check what can be checked without looking at the data."""
        if self.ratio and (len(self.ratio) != len(self.train) or min(self.ratio) < 1):
            raise ValueError(
                f"ratio needs a number >= 1 for each of the {len(self.train)} training sets, got {self.ratio}"
            )
        if self.optim.batch % self.execution.workers:
            raise ValueError(
                f"optim.batch ({self.optim.batch}) must be a multiple of execution.workers ({self.execution.workers})"
            )

    def identity(self) -> dict[str, Any]:
        """What the result depends on besides the data: all but places and execution."""
        values = to_dict(self)
        for name in ("train", "val", "out", "tracking_uri", "execution"):
            del values[name]
        return values


def batch_shares(batch: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """Divide a batch in proportion to `weights`, exactly, at least one each; largest remainders first.

    Raises:
        ValueError: the batch is smaller than the number of parts.
    """
    if batch < len(weights):
        raise ValueError(f"a batch of {batch} cannot hold a picture of each of {len(weights)} training sets")
    shares, left, rest = [1] * len(weights), batch, list(range(len(weights)))
    # A part whose share is below one gets one; it must not take part in the division of what is left.
    while poor := [i for i in rest if left * weights[i] < sum(weights[j] for j in rest)]:
        left -= len(poor)
        rest = [i for i in rest if i not in poor]
    total = sum(weights[i] for i in rest)
    for i in rest:
        shares[i] = left * weights[i] // total
    by_remainder = sorted(rest, key=lambda i: (-(left * weights[i] % total), i))
    for i in by_remainder[: batch - sum(shares)]:
        shares[i] += 1
    return tuple(shares)

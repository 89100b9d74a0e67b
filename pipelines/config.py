"""What a training run is made of; the command line is generated from these dataclasses."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from model.config import DetectorConfig
from model.settings import to_dict
from pipelines import secrets
from pipelines.geometry import AugmentConfig
from pipelines.optim import OptimConfig
from pipelines.order import SamplingConfig


class Precision(enum.Enum):
    """Arithmetic of the convolutions and matrix products."""

    FP32 = "fp32"
    BF16 = "bf16"  # autocast; parameters, losses and box arithmetic stay float32
    FP16 = "fp16"  # the same in float16, with a loss scale that adapts itself


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Where and how a run is executed; nothing here changes what it computes beyond rounding.

    Attributes:
        address: Ray cluster to use (`auto` for the one this machine belongs to); empty starts one on this machine.
        workers: training processes; the batch is divided among them.
        min_workers: the run starts, and goes on after a machine was lost, with as few as this; 0 needs all `workers`.
        cpus_per_worker: CPU cores and threads of each.
        gpu: one GPU a worker, and NCCL between them.
        accumulate: parts a worker divides its share of the batch into, one after the other, to save memory.
        compile: compile the network with torch.compile.
        loader_processes: processes a worker that build batches ahead; 0 builds them in the worker.
        loader_actors: instead, Ray actors a worker that build batches ahead, of one CPU each, on any machine of the
            cluster with cores to spare: for GPUs that outrun the cores beside them.
        report_every: steps between reported metrics.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_checkpoints: newest checkpoints that are kept, besides the best one; 0 keeps all.
        max_failures: restarts in a row without a new checkpoint in between, before the run gives up.
        hang_timeout_s: seconds of silence or of no step after which a worker is named, killed and the run restarted.
        first_step_timeout_s: the same of no step before the first one is done, which compiles the network.
        wait_for_nodes_s: seconds to wait for a cluster that grows to hold the workers; 0 fails at once.
    """

    address: str = ""
    workers: int = 1
    min_workers: int = 0
    cpus_per_worker: int = 1
    gpu: bool = False
    accumulate: int = 1
    compile: bool = False
    loader_processes: int = 0
    loader_actors: int = 0
    report_every: int = 20
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    max_failures: int = 3
    hang_timeout_s: float = 600.0
    first_step_timeout_s: float = 1800.0
    wait_for_nodes_s: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("workers", "cpus_per_worker", "accumulate", "report_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"execution.{name} must be >= 1, got {getattr(self, name)}")
        counts = "min_workers", "loader_processes", "loader_actors", "keep_checkpoints", "max_failures"
        for name in (*counts, "wait_for_nodes_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"execution.{name} must be >= 0, got {getattr(self, name)}")
        if self.loader_processes and self.loader_actors:
            raise ValueError(
                f"execution.loader_processes ({self.loader_processes}) and execution.loader_actors "
                f"({self.loader_actors}) both build batches: choose one"
            )
        for name in ("hang_timeout_s", "first_step_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"execution.{name} must be > 0, got {getattr(self, name)}")
        if self.min_workers > self.workers:
            raise ValueError(
                f"execution.min_workers ({self.min_workers}) must not exceed execution.workers ({self.workers})"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Measuring checkpoints on `val` beside the running training.

    Attributes:
        every: steps between the checkpoints that are measured, besides the last one; 0 measures none before the end.
            Where measuring cannot keep pace, older ones are left out.
        metric: decides which checkpoint is the best one: box/AP, mask/AP50, keypoints/AP, ...; larger is better. Empty
            takes mask/AP, and box/AP of a detector without masks.
        patience: measurements in a row without a better one after which the run ends early; 0 never.
        gpu: measure on a GPU of its own, besides those of the workers.
        cpus: CPU cores set aside for it; 0 shares those of the workers.
    """

    every: int = 0
    metric: str = ""
    patience: int = 0
    gpu: bool = False
    cpus: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("every", "patience", "cpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name} must be >= 0, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class PseudoConfig:
    """Training on pictures that `maskray distill` labelled; data that people labelled are not touched by it.

    Attributes:
        ignore: uncertain detections are neither object nor background; else they are background.
        weights: multiply an object's losses by the weight that distill gave it.
        strong: pseudo-labelled pictures go through `augment` instead of what happens to all others.
        augment: of pseudo-labelled pictures.
    """

    ignore: bool = True
    weights: bool = True
    strong: bool = False
    augment: AugmentConfig = AugmentConfig(colour=0.4)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        train: prepared data sets to train on.
        val: prepared data set to evaluate the final checkpoint on; empty for none.
        out: folder or URI of the run; the same command with the same folder goes on where it stopped.
        ratio: pictures of each training set in a batch, relative to each other (6 4 is the distillation paper's
            labelled : pseudo); empty takes 6 4 where there are labelled and pseudo-labelled sets, and divides each
            share, or the whole batch, in proportion to the sets' sizes. Every batch is divided alike, in whole pictures
            (16 into 10 and 6), and the run says how; batches of a multiple of 10 are 6 : 4 exactly.
        holdout: share of the first training set that is not trained on, so that `maskray distill --audit` can measure
            pseudo-labels on it; none unless asked for, 0.05 is a good one for a teacher.
        holdout_seed: which pictures are held out.
        init: checkpoint to take the weights from; empty starts from random ones.
        rpn_from: checkpoint of a detector that makes the proposals, in training and ever after (the paper's stage-wise
            training); empty trains a proposal network of the detector's own.
        seed: fixes initial weights, order, augmentation and sampling.
        shuffle_window: shards shuffled together; 0 for all, or for as many as fit twice into the local copies of
            remote data sets ($MASKRAY_CACHE_GB of the machine that starts the run; a run keeps the number it began
            with).
        precision: arithmetic of the network.
        deterministic: only operators that give the same bits again on the same kind of machine; slower on GPUs.
        register: name under which MLflow registers the final model (the best one, where checkpoints are measured);
            empty registers none.
        tracking_uri: MLflow server or sqlite:///FILE; empty is MLflow's own default.
        detector: the model.
        optim: optimiser and schedule.
        augment: what happens to training pictures.
        pseudo: what is different for pictures that a detector labelled.
        evaluation: measuring checkpoints while the run goes on.
        sampling: which pictures come in an epoch, and how often.
        execution: where and how the run is executed.
    """

    train: tuple[str, ...] = ()
    val: str = ""
    out: str = ""
    ratio: tuple[int, ...] = ()
    holdout: float = 0.0
    holdout_seed: int = 0
    init: str = ""
    rpn_from: str = ""
    seed: int = 0
    shuffle_window: int = 0
    precision: Precision = Precision.FP32
    deterministic: bool = False
    register: str = ""
    tracking_uri: str = ""
    detector: DetectorConfig = DetectorConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    pseudo: PseudoConfig = PseudoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sampling: SamplingConfig = SamplingConfig()
    execution: ExecutionConfig = ExecutionConfig()

    def __post_init__(self) -> None:
        """Check what can be checked without looking at the data."""
        if secrets.has_password(self.tracking_uri):
            raise ValueError(
                "tracking_uri holds a password, which would be logged: leave it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the nodes"
            )
        if self.ratio and (len(self.ratio) != len(self.train) or min(self.ratio) < 1):
            raise ValueError(
                f"ratio needs a number >= 1 for each of the {len(self.train)} training sets, got {self.ratio}"
            )
        if not 0 <= self.holdout < 1 or self.holdout_seed < 0:
            raise ValueError(
                f"training needs 0 <= holdout < 1 and holdout-seed >= 0, got {self.holdout} and {self.holdout_seed}"
            )
        parts = self.execution.workers * self.execution.accumulate
        if self.optim.batch < parts:
            raise ValueError(
                f"optim.batch ({self.optim.batch}) must give each of execution.workers ({self.execution.workers}) x "
                f"execution.accumulate ({self.execution.accumulate}) parts a picture: use at least {parts}"
            )

    @property
    def metric(self) -> str:
        """What decides which checkpoint is the best one."""
        return self.evaluation.metric or ("mask/AP" if self.detector.mask.enabled else "box/AP")

    def identity(self) -> dict[str, Any]:
        """What the result depends on besides data and first weights: all but places, execution and patience."""
        values = to_dict(self)
        for name in ("train", "val", "out", "init", "rpn_from", "register", "tracking_uri", "evaluation", "execution"):
            del values[name]
        del values["optim"]["max_skipped"]
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


def default_ratio(sizes: Sequence[int], pseudo: Sequence[bool]) -> tuple[int, ...]:
    """Weights of training sets in a batch: 6 to 4 between those of people and of detectors, else by size.

    Args:
        sizes: pictures of each set, at least one.
        pseudo: which sets a detector labelled.
    """
    totals = [sum(size for size, made in zip(sizes, pseudo, strict=True) if made is kind) for kind in (False, True)]
    if not all(totals):
        return tuple(sizes)
    # Each kind's weights add up to its share times both totals.
    return tuple((4 * totals[0] if made else 6 * totals[1]) * size for size, made in zip(sizes, pseudo, strict=True))

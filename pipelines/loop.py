"""The training loop: what every worker runs, from the first batch or from the last checkpoint."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.build import build_detector
from model.checkpoint import load_strict
from model.detector import LOSS_NAMES, Detector
from model.settings import from_dict
from model.structures import Images, PackedMasks, Targets
from pipelines import checkpoints
from pipelines.config import Precision, TrainConfig, batch_shares
from pipelines.dataset import Dataset
from pipelines.loading import Batch, Source, TrainBatches, stream
from pipelines.manifest import ClassInfo
from pipelines.optim import build_optimiser, learning_rate_at, set_learning_rate
from pipelines.transforms import Wanted


class TrainingError(ValueError):
    """A training that cannot go on; the message says at which step and what to do."""


class Place(NamedTuple):
    """Where a worker stands: its number among how many, and its device."""

    rank: int
    world: int
    device: torch.device


@dataclasses.dataclass(frozen=True)
class Job:
    """All a worker is told.

    Attributes:
        config: the run.
        classes: of the training data, in the order of labels.
    """

    config: TrainConfig
    classes: tuple[ClassInfo, ...]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Job":
        """The inverse of `dataclasses.asdict` over plain values; what Ray carries to the workers."""
        classes = tuple(ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in raw["classes"])
        return cls(from_dict(TrainConfig, raw["config"]), classes)


METRICS = (
    "loss/total",
    *(f"loss/{name}" for name in LOSS_NAMES),
    "learning_rate",
    "pictures_per_s",
    "data_wait_share",
)
"""What a worker reports, besides `step` and `epoch`."""

Emit = Callable[[dict[str, float]], None]


def build_batches(config: TrainConfig, place: Place) -> TrainBatches:
    """This worker's batches."""
    sets = [Dataset(uri) for uri in config.train]
    shares = batch_shares(config.optim.batch, config.ratio or tuple(len(dataset) for dataset in sets))
    sources = [Source(dataset, share) for dataset, share in zip(sets, shares, strict=True)]
    detector = config.detector
    wanted = Wanted(
        keypoints=detector.keypoint.num_keypoints if detector.keypoint.enabled else 0,
        semantic=detector.semantic.num_classes if detector.semantic.enabled else 0,
    )
    return TrainBatches(
        sources, detector.picture, config.augment, config.seed, place.rank, place.world, config.shuffle_window or None,
        wanted,
    )  # fmt: skip


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; copies from pinned memory do not wait."""

    def move(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    images, targets, ids = batch
    masks = PackedMasks(*map(move, targets.masks))
    optional = {
        name: move(part)
        for name in ("keypoints", "semantic", "ignore", "weights")
        if (part := getattr(targets, name)) is not None
    }
    moved = Targets(
        move(targets.boxes), move(targets.labels), move(targets.valid), masks, move(targets.seeds), **optional
    )
    return Batch(Images(move(images.pixels), move(images.sizes_hw)), moved, ids)


def train_step(
    model: nn.Module, batch: Batch, optimiser: torch.optim.Optimizer, config: TrainConfig
) -> dict[str, Tensor]:
    """One forward, backward and update; the losses, detached, still on the device."""
    device = batch.images.pixels.device
    autocast = (
        torch.autocast(device.type, torch.bfloat16) if config.precision is Precision.BF16 else contextlib.nullcontext()
    )
    with autocast:
        losses: dict[str, Tensor] = model(batch.images, batch.targets)
    total = torch.stack([losses[name] for name in LOSS_NAMES]).sum()
    optimiser.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    if config.optim.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    optimiser.step()
    return {name: value.detach() for name, value in losses.items()}


class _Window:
    """Losses, pictures and seconds since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._sum = torch.zeros(len(LOSS_NAMES), device=self._device)
        self._steps = 0
        self._started = time.monotonic()
        self._waited = 0.0

    def add(self, losses: Mapping[str, Tensor], waited_s: float) -> None:
        self._sum += torch.stack([losses[name] for name in LOSS_NAMES])
        self._steps += 1
        self._waited += waited_s

    def read(self, batch: int, world: int) -> dict[str, float]:
        """Means over steps and workers; waits for the device."""
        mean = self._sum / (self._steps * world)
        if world > 1:
            dist.all_reduce(mean)
        elapsed = time.monotonic() - self._started
        values = {f"loss/{name}": float(value) for name, value in zip(LOSS_NAMES, mean.tolist(), strict=True)}
        values["loss/total"] = sum(values.values())
        values["pictures_per_s"] = self._steps * batch / elapsed
        values["data_wait_share"] = self._waited / elapsed
        return values


def _start(job: Job, place: Place) -> tuple[Detector, torch.optim.Optimizer, int]:
    """Detector, optimiser and number of steps done, from the last checkpoint if there is one."""
    config = job.config
    torch.manual_seed(config.seed)
    detector = build_detector(config.detector)
    last = checkpoints.latest(config.out)
    if last is None and config.init:
        first = checkpoints.load_detector(checkpoints.load(config.init))
        load_strict(detector, first.state_dict(), config.init)
    detector.to(place.device).train()
    optimiser = build_optimiser(detector, config.optim)
    if last is not None:
        checkpoints.restore(last, detector, optimiser)
    return detector, optimiser, last.step if last else 0


def _data_parallel(detector: Detector, place: Place) -> nn.Module:
    if place.world == 1:
        return detector
    on_gpu = place.device.type == "cuda"
    # A static graph holds because every loss exists on every step, also without objects.
    return nn.parallel.DistributedDataParallel(
        detector,
        device_ids=[place.device] if on_gpu else None,
        static_graph=True,
        gradient_as_bucket_view=False,
    )


def fit(job: Job, place: Place, emit: Emit) -> None:
    """Train until the last step; resumes from the run's last checkpoint.

    Args:
        job: the run.
        place: this worker.
        emit: takes metrics (with `step` and `epoch`) on worker 0.

    Raises:
        TrainingError: a loss is not finite.
    """
    config = job.config
    detector, optimiser, first = _start(job, place)
    model = _data_parallel(detector, place)
    batches = build_batches(config, place)
    source = stream(batches, first, config.optim.steps, config.execution.loader_processes, place.device.type == "cuda")
    window = _Window(place.device)
    for step in range(first, config.optim.steps):
        asked = time.monotonic()
        batch = to_device(next(source), place.device)
        waited = time.monotonic() - asked
        rate = learning_rate_at(step, config.optim)
        set_learning_rate(optimiser, rate)
        window.add(train_step(model, batch, optimiser, config), waited)
        done = step + 1
        last = done == config.optim.steps
        due = last or done % config.execution.checkpoint_every == 0
        if due or done % config.execution.report_every == 0:
            metrics = window.read(config.optim.batch, place.world)
            broken = [name for name, value in metrics.items() if not math.isfinite(value)]
            if due and not _is_finite(detector):
                broken.append("a weight")
            _refuse_non_finite(broken, done, config)
            if place.rank == 0:
                emit({**metrics, "learning_rate": rate, "step": done, "epoch": batches.epoch_of(done)})
            if due and place.rank == 0:
                checkpoints.save(config.out, done, detector, optimiser, job.classes)
            window.reset()


def _is_finite(detector: Detector) -> bool:
    """Whether all weights are numbers; a loss is that of the weights before its step, so it cannot tell."""
    return bool(torch.stack([value.detach().isfinite().all() for value in detector.parameters()]).all())


def _refuse_non_finite(broken: list[str], step: int, config: TrainConfig) -> None:
    # Losses (as means) and weights are the same on every worker: all stop together and no checkpoint is poisoned.
    if broken:
        raise TrainingError(
            f"{', '.join(broken)} is not finite at step {step}: "
            f"lower optim.learning_rate ({config.optim.learning_rate}) "
            "or set optim.clip_norm, and run the same command again in another --out"
        )

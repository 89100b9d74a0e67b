"""What a worker trains on: its share of each batch, in parts, on its device."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.config import TrainConfig, batch_shares
from pipelines.dataset import Dataset
from pipelines.loading import Batch, Source, TrainBatches, stream
from pipelines.order import Position
from pipelines.sampling import repeats
from pipelines.train_state import Part
from pipelines.transforms import Wanted


class Place(NamedTuple):
    """Where a worker stands: its number among how many, and its device."""

    rank: int
    world: int
    device: torch.device


class WorkerBatches(TrainBatches):
    """A worker's share of each batch in parts: item `step * parts + k` is part k of batch `step`.

    Workers and parts interleave; they differ by one picture where the batch cannot be divided evenly.
    """

    def __init__(self, sources: list[Source], config: TrainConfig, place: Place) -> None:
        """Take the data sets, the run and the worker."""
        super().__init__(
            sources,
            config.detector.picture,
            config.augment,
            config.seed,
            window=config.shuffle_window or None,
            wanted=Wanted.by(config.detector),
        )
        self.parts = config.execution.accumulate
        self._worker, self._workers = place.rank, place.world

    def positions(self, item: int) -> list[tuple[int, Position]]:
        """(data set number, sample) of a part."""
        step, part = divmod(item, self.parts)
        return super().positions(step)[self._worker + self._workers * part :: self._workers * self.parts]


def build_batches(config: TrainConfig, place: Place) -> WorkerBatches:
    """This worker's batches."""
    sets = [Dataset(uri) for uri in config.train]
    shares = batch_shares(config.optim.batch, config.ratio or tuple(len(dataset) for dataset in sets))
    sources = [
        Source(dataset, share, repeats(dataset, config.sampling)) for dataset, share in zip(sets, shares, strict=True)
    ]
    return WorkerBatches(sources, config, place)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, or named tuples of them at any depth, on a device; copies from pinned memory do not wait."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return type(value)(*(to_device(item, device) for item in value))
    return value


class Feed:
    """A worker's batches in order, on its device.

    Attributes:
        waited_s: seconds the last step waited for its pictures.
        image_ids: of the last step's pictures.
        epoch_of: epochs of the first data set that are complete after so many steps.
    """

    def __init__(self, config: TrainConfig, place: Place, first: int) -> None:
        """Begin at step `first`, counted from 0."""
        self._batches = build_batches(config, place)
        parts, steps = self._batches.parts, config.optim.steps
        pin = place.device.type == "cuda"
        processes = config.execution.loader_processes
        self._source = stream(self._batches, first * parts, steps * parts, processes, pin)
        self._parts, self._weight = parts, place.world / config.optim.batch
        self._device = place.device
        self.epoch_of = self._batches.epoch_of
        self.waited_s, self.image_ids = 0.0, list[int]()

    def parts(self) -> Iterator[Part]:
        """The parts of the next step; counts the seconds and keeps the pictures' ids."""
        self.waited_s, self.image_ids = 0.0, []
        for _ in range(self._parts):
            asked = time.monotonic()
            batch: Batch = next(self._source)
            self.waited_s += time.monotonic() - asked
            self.image_ids += batch.image_ids.tolist()
            moved: Batch = to_device(batch, self._device)
            yield Part(moved.images, moved.targets, len(batch.image_ids) * self._weight)

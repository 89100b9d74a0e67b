"""What a worker trains on: its share of each batch, in parts, on its device."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines import checkpoints
from pipelines.config import TrainConfig, batch_shares, default_ratio
from pipelines.dataset import Dataset
from pipelines.holdout import TRAINED_ON, IntArray, held_out_by, held_out_ids, knows_what_it_saw, merged
from pipelines.loading import Batch, BuilderKilledError, Source, TrainBatches, stream
from pipelines.order import Position, epoch_length
from pipelines.remote_loading import remote_stream
from pipelines.sampling import repeats
from pipelines.train_state import Part
from pipelines.transforms import Wanted


class LoaderKilledError(RuntimeError):
    """A loader process was killed, as a rule by the machine for its memory; the message names the pictures."""


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
            wanted=dataclasses.replace(
                Wanted.by(config.detector),
                ignore=config.pseudo.ignore and any(map(_is_pseudo, sources)),
                weights=config.pseudo.weights and any(map(_is_pseudo, sources)),
            ),
        )
        self.parts = config.execution.accumulate
        self._worker, self._workers = place.rank, place.world

    def positions(self, item: int) -> list[tuple[int, Position]]:
        """(data set number, sample) of a part."""
        step, part = divmod(item, self.parts)
        return super().positions(step)[self._worker + self._workers * part :: self._workers * self.parts]

    def __getitem__(self, item: int) -> Batch:
        """Build a part.

        Raises:
            MemoryError: there is not enough memory; the message names the pictures.
        """
        try:
            return super().__getitem__(item)
        except Exception as error:
            if not _is_for_memory(error):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MemoryError(
                f"too little memory to build the batch of {self.described(item)} ({reason}): lower "
                "execution.loader_processes (or loader_actors) or optim.batch, or leave such pictures out"
            ) from error

    def described(self, item: int) -> str:
        """The pictures of a part, for people."""
        ids, largest = [], (0, 0)
        for number, place in self.positions(item):
            dataset = self._sources[number].dataset
            ids.append(int(dataset.image_ids[place.index]))
            height, width = (int(side) for side in dataset.sizes_hw[place.index])
            largest = max(largest, (height, width), key=lambda size: size[0] * size[1])
        return f"pictures {ids}, of up to {largest[0]} x {largest[1]} pixels"


def _is_for_memory(error: BaseException | None) -> bool:
    """Whether an error is numpy's, Pillow's or torch's for memory, or was raised from one."""
    while error is not None:
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in ("allocate memory", "bad_alloc"))
        ):
            return True
        error = error.__cause__
    return False


def _is_pseudo(source: Source) -> bool:
    return source.dataset.manifest.is_pseudo


def held_out(config: TrainConfig, dataset: Dataset) -> IntArray:
    """Ids of the pictures of a run's training set that it is not trained on: of the first set alone."""
    is_first = dataset.uri == config.train[0]
    return held_out_ids(dataset.image_ids, config.holdout if is_first else 0.0, config.holdout_seed)


def trained_on(config: TrainConfig) -> dict[str, Tensor]:
    """Ids of the pictures held out, by hash of each training set; what a checkpoint keeps as `TRAINED_ON`.

    The sets of the checkpoints that the weights come from are among them. A run that goes on keeps its record; one that
    begins with a checkpoint without a record has none.
    """
    last = checkpoints.latest(config.out)
    if last is not None:
        return checkpoints.load_extra(last, TRAINED_ON)
    earlier = [checkpoints.load(uri) for uri in (config.init, config.rpn_from) if uri]
    if not all(map(knows_what_it_saw, earlier)):
        return {}
    sets = [Dataset(uri) for uri in config.train]
    own = {dataset.manifest.hash: frozenset(held_out(config, dataset).tolist()) for dataset in sets}
    known = merged([own, *map(held_out_by, earlier)])
    return {key: torch.tensor(sorted(ids), dtype=torch.int64) for key, ids in known.items()}


def _repeats(config: TrainConfig, dataset: Dataset) -> npt.NDArray[np.float64] | None:
    """How often each picture comes an epoch: never where it is held out."""
    factors, left_out = repeats(dataset, config.sampling), held_out(config, dataset)
    if not len(left_out):
        return factors
    known = np.ones(len(dataset)) if factors is None else factors
    return np.where(np.isin(dataset.image_ids, left_out), 0.0, known)


def epoch_samples(config: TrainConfig, dataset: Dataset) -> int:
    """Samples of a training set in an epoch, after what is held out, left out and repeated."""
    factors = _repeats(config, dataset)
    return len(dataset) if factors is None else epoch_length(factors)


def build_batches(config: TrainConfig, place: Place) -> WorkerBatches:
    """This worker's batches."""
    sets = [Dataset(uri) for uri in config.train]
    ratio = config.ratio or default_ratio([len(d) for d in sets], [d.manifest.is_pseudo for d in sets])
    shares = batch_shares(config.optim.batch, ratio)
    sources = []
    for dataset, share in zip(sets, shares, strict=True):
        pseudo = dataset.manifest.is_pseudo
        augment = config.pseudo.augment if pseudo and config.pseudo.strong else None
        sources.append(Source(dataset, share, _repeats(config, dataset), augment, ignored=pseudo))
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
        actors = config.execution.loader_actors
        numbers = first * parts, steps * parts
        self._source = (
            remote_stream(self._batches, *numbers, actors, pin) if actors
            else stream(self._batches, *numbers, processes, pin)
        )  # fmt: skip
        self._item, self._ahead = first * parts, max(1, processes, actors)
        self._parts, self._weight = parts, place.world / config.optim.batch
        self._device = place.device
        self.epoch_of = self._batches.epoch_of
        self.waited_s, self.image_ids = 0.0, list[int]()

    def parts(self) -> Iterator[Part]:
        """The parts of the next step; counts the seconds and keeps the pictures' ids."""
        self.waited_s, self.image_ids = 0.0, []
        for _ in range(self._parts):
            asked = time.monotonic()
            batch = self._next()
            self.waited_s += time.monotonic() - asked
            self.image_ids += batch.image_ids.tolist()
            moved: Batch = to_device(batch, self._device)
            yield Part(moved.images, moved.targets, len(batch.image_ids) * self._weight)

    def _next(self) -> Batch:
        try:
            batch: Batch = next(self._source)
        except RuntimeError as error:
            is_of_torch = "DataLoader worker" in str(error) and "killed" in str(error)
            if not is_of_torch and not isinstance(error, BuilderKilledError):
                raise
            items = range(self._item, self._item + self._ahead)
            built = "; ".join(self._batches.described(item) for item in items)
            raise LoaderKilledError(f"{' '.join(str(error).split())} It was building one of: {built}") from error
        self._item += 1
        return batch

"""Shards to batches: batch number s is a pure function of the data sets, the seed and s.

One mechanism serves one worker or many, and a fresh or a resumed run: a torch `DataLoader` walks the step numbers,
and its worker processes (if any) build whole batches.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from model.config import PictureConfig
from model.picture import ByteArray, empty_batch, padded_hw
from model.structures import Images, PackedMasks, Targets
from pipelines import host
from pipelines.dataset import Dataset
from pipelines.decode import UNKNOWN_CLASS, DecodeError
from pipelines.geometry import AugmentConfig, Placement, draw_placement, largest_picture
from pipelines.order import Position, SampleOrder, sample_seed
from pipelines.records import Record
from pipelines.transforms import Sample, Wanted, mirrored, place

_MIN_OBJECTS = 8
_MIN_MASK_BYTES = 1 << 12


class LoadingError(ValueError):
    """A picture of a data set that cannot be decoded; one line that says which, and what to do."""


class BuilderKilledError(RuntimeError):
    """A process that builds batches was killed again and again, as a rule by its machine for its memory."""


class Batch(NamedTuple):
    """What one worker trains on in one step.

    Attributes:
        images: the pictures.
        targets: their objects.
        image_ids: int64 [B], ids in their sources.
    """

    images: Images
    targets: Targets
    image_ids: Tensor


def _power_of_two(value: int, least: int) -> int:
    return max(least, 1 << max(0, value - 1).bit_length())


def aspect_groups(sizes_hw: npt.NDArray[np.int32], short_edge_px: int, picture: PictureConfig) -> npt.NDArray[np.int8]:
    """Group of each picture: 0 square enough for the square padding, 1 landscape, 2 portrait."""
    height, width = sizes_hw[:, 0].astype(float), sizes_hw[:, 1].astype(float)
    scale = np.minimum(short_edge_px / np.minimum(height, width), picture.long_edge_px / np.maximum(height, width))
    square_side = -(-short_edge_px // picture.size_divisor) * picture.size_divisor
    square = np.maximum(height, width) * scale <= square_side
    return np.where(square, 0, np.where(width >= height, 1, 2)).astype(np.int8)


def collate(samples: Sequence[Sample], images: Images, seeds: Sequence[int], wanted: Wanted = Wanted()) -> Targets:
    """Objects and masks of samples padded to one of a few shapes: objects a picture, and mask bytes.

    Args:
        samples: the batch.
        images: its pictures, which fix the shape of semantic maps.
        seeds: one a sample, fixes which of its boxes are sampled.
        wanted: what the samples hold beside boxes, classes and masks.
    """
    sizes, batch = images.sizes_hw.tolist(), len(samples)
    counts = [len(s.labels) + (0 if s.ignored is None else len(s.ignored)) for s in samples]
    objects = _power_of_two(max(counts), _MIN_OBJECTS)
    mask_bytes = sum(crop.bits.size for sample in samples for crop in sample.masks if crop is not None)
    data = np.empty(_power_of_two(mask_bytes, _MIN_MASK_BYTES), np.uint8)
    data[mask_bytes:] = 0
    boxes = np.zeros((batch, objects, 4), np.float32)
    labels = np.zeros((batch, objects), np.int64)
    valid = np.zeros((batch, objects), bool)
    offsets = np.zeros((batch, objects), np.int64)
    extents = np.zeros((batch, objects, 6), np.int64)
    start = 0
    for b, sample in enumerate(samples):
        count = len(sample.labels)
        boxes[b, :count], labels[b, :count], valid[b, :count] = sample.boxes, sample.labels, True
        for g, crop in enumerate(sample.masks):
            if crop is None:
                offsets[b, g] = -1
                continue
            data[start : start + crop.bits.size].reshape(crop.bits.shape)[:] = crop.bits
            offsets[b, g] = start
            extents[b, g] = (crop.y0, crop.x0, *crop.bits.shape, *sizes[b])
            start += crop.bits.size
    masks = PackedMasks(torch.from_numpy(data), torch.from_numpy(offsets), torch.from_numpy(extents))
    targets = Targets(
        torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(valid), masks,
        torch.tensor(list(seeds), dtype=torch.int64),
    )  # fmt: skip
    return _with_wanted(targets, images, samples, wanted)


def _with_wanted(targets: Targets, images: Images, samples: Sequence[Sample], wanted: Wanted) -> Targets:
    """The targets with what is wanted beside boxes, classes and masks."""
    batch, objects = targets.labels.shape
    keypoints = np.zeros((batch, objects, wanted.keypoints, 3), np.float32)
    weights = np.zeros((batch, objects), np.float32)
    ignore = np.zeros((batch, objects), bool)
    for b, sample in enumerate(samples):
        count = len(sample.labels)
        if sample.keypoints is not None:
            keypoints[b, :count] = sample.keypoints
        if sample.weights is not None:
            weights[b, :count] = sample.weights
        if sample.ignored is not None:
            end = count + len(sample.ignored)
            ignore[b, count:end] = True
            targets.boxes[b, count:end] = torch.from_numpy(sample.ignored)
    if wanted.semantic:
        maps = torch.full((batch, *images.pixels.shape[2:]), UNKNOWN_CLASS, dtype=torch.uint8)
        for slot, sample in zip(maps, samples, strict=True):
            if sample.semantic is not None:
                slot[: sample.semantic.shape[0], : sample.semantic.shape[1]] = torch.from_numpy(sample.semantic)
        targets = targets._replace(semantic=maps)
    return targets._replace(
        keypoints=torch.from_numpy(keypoints) if wanted.keypoints else None,
        ignore=torch.from_numpy(ignore) if wanted.ignore else None,
        weights=torch.from_numpy(weights) if wanted.weights else None,
    )


class Source(NamedTuple):
    """A data set and how many samples of it stand in each batch over all workers.

    Attributes:
        dataset: to read.
        per_batch: its samples in a batch.
        repeats: float64 [samples], how often each comes an epoch (see `sampling.repeats`); None for once.
        augment: what happens to its pictures; None for what happens to all.
        ignored: whether its ignored regions are loaded, where the detector is to know them.
    """

    dataset: Dataset
    per_batch: int
    repeats: npt.NDArray[np.float64] | None = None
    augment: AugmentConfig | None = None
    ignored: bool = True


class TrainBatches(TorchDataset[Batch]):
    """Batch `s` of one worker, by `batches[s]`."""

    def __init__(
        self,
        sources: Sequence[Source],
        picture: PictureConfig,
        augment: AugmentConfig,
        seed: int,
        rank: int = 0,
        world: int = 1,
        window: int | None = None,
        wanted: Wanted = Wanted(),
    ) -> None:
        """Take the data sets with their share of the batch, and this worker's place among the workers.

        Args:
            sources: data sets with their share of the batch.
            picture: the detector's picture settings.
            augment: what happens to the pictures.
            seed: of the run.
            rank: this worker's number.
            world: number of workers.
            window: shards shuffled together; None for all.
            wanted: what the detector learns from beside boxes, classes and masks.

        Raises:
            ValueError: the batch cannot be divided among the workers, or no data set has what is wanted.
        """
        total = sum(source.per_batch for source in sources)
        if total % world:
            raise ValueError(
                f"a batch of {total} pictures cannot be divided among {world} workers: "
                f"choose a batch that is a multiple of {world}, or another number of workers"
            )
        self._sources, self._picture, self._seed = list(sources), picture, seed
        self._augments = [source.augment or augment for source in sources]
        self._rank, self._world = rank, world
        self._largest = _largest([largest_picture(picture, one) for one in self._augments])
        self._wanted = _checked(wanted, [source.dataset for source in sources])
        self._wanted_of = [dataclasses.replace(wanted, ignore=wanted.ignore and s.ignored) for s in sources]
        self._swaps = [[mirrored(info.keypoints) for info in s.dataset.manifest.classes] for s in sources]
        self._orders = [
            SampleOrder(
                source.dataset.rows_per_shard.tolist(),
                aspect_groups(source.dataset.sizes_hw, self._largest.short_edge_px, self._largest),
                source.per_batch,
                seed + number,  # two copies of one data set must not walk in step
                window,
                source.repeats,
            )
            for number, source in enumerate(sources)
        ]

    def epoch_of(self, step: int) -> float:
        """Epochs of the first data set that are complete before batch `step`."""
        return step * self._sources[0].per_batch / len(self._orders[0])

    def positions(self, step: int) -> list[tuple[int, Position]]:
        """(data set number, sample) of this worker's share of batch `step`; workers interleave."""
        places = [(number, place) for number, order in enumerate(self._orders) for place in order.batch(step)]
        return places[self._rank :: self._world]

    def __getitem__(self, step: int) -> Batch:
        """Build this worker's share of batch `step`.

        Raises:
            LoadingError: a picture cannot be decoded.
        """
        drawn = []
        for number, position in self.positions(step):
            seed = sample_seed(self._seed + number, position.epoch, position.index, position.copy)
            record, rng = self._sources[number].dataset.record(position.index), np.random.default_rng(seed)
            placement = draw_placement((record.height, record.width), self._picture, self._augments[number], rng)
            drawn.append(_Drawn(number, position.index, seed, record, rng, placement))
        sizes = [one.placement.size_hw for one in drawn]
        images = empty_batch(sizes, padded_hw(sizes, self._largest.short_edge_px, self._largest), torch.uint8)
        slots = images.pixels.permute(0, 2, 3, 1).numpy()
        samples = [self._place(one, slot) for one, slot in zip(drawn, slots, strict=True)]
        targets = collate(samples, images, [one.seed for one in drawn], self._wanted)
        return Batch(images, targets, torch.tensor([one.record.image_id for one in drawn], dtype=torch.int64))

    def _place(self, one: "_Drawn", slot: ByteArray) -> Sample:
        """The sample, with its pixels in its slot [H, W, 3] of the batch."""
        height, width = one.placement.size_hw
        number, colour = one.source, self._augments[one.source].colour
        wanted, swaps, out = self._wanted_of[number], self._swaps[number], slot[:height, :width]
        try:
            return place(one.record, one.placement, colour, one.rng, wanted, swaps, out)
        except DecodeError as error:
            raise LoadingError(
                f"record {one.row} ({one.record.file_name}) of {self._sources[number].dataset.uri} cannot be "
                f"decoded ({error}): prepare the data again without --no-full-decode, which rejects such pictures"
            ) from error


class _Drawn(NamedTuple):
    """A sample of a batch before its picture is decoded."""

    source: int
    row: int
    seed: int
    record: Record
    rng: np.random.Generator
    placement: Placement


def _largest(pictures: Sequence[PictureConfig]) -> PictureConfig:
    """The largest sides that pictures of any source have."""
    short, long = max(p.short_edge_px for p in pictures), max(p.long_edge_px for p in pictures)
    return dataclasses.replace(pictures[0], short_edge_px=short, long_edge_px=long)


def _checked(wanted: Wanted, datasets: Sequence[Dataset]) -> Wanted:
    """Refuse to train a branch that no data set has labels for.

    Raises:
        ValueError: keypoints or semantic maps are wanted and there are none, or there are more keypoints.
    """
    most = max((len(info.keypoints) for d in datasets for info in d.manifest.classes), default=0)
    where = ", ".join(d.uri for d in datasets)
    if wanted.keypoints and not 0 < most <= wanted.keypoints:
        raise ValueError(
            f"the detector learns {wanted.keypoints} keypoints, the classes of {where} have {most or 'none'}: "
            "prepare a keypoints json, or choose a detector for these keypoints"
        )
    values = max((d.manifest.semantic_classes for d in datasets), default=0)
    if wanted.semantic and not 0 < values <= wanted.semantic:
        raise ValueError(
            f"the detector learns {wanted.semantic} semantic classes, the maps of {where} have {values or 'none'}: "
            "prepare the data with maps, or set detector.semantic.num_classes"
        )
    return wanted


def stream(batches: TrainBatches, start: int, stop: int, loader_processes: int, pin: bool) -> Iterator[Batch]:
    """Batches `start` .. `stop` - 1 in order, built ahead by `loader_processes` processes (0: in this one)."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=loader_processes,
        pin_memory=pin,
        prefetch_factor=4 if loader_processes else None,
        multiprocessing_context="spawn" if loader_processes else None,
        worker_init_fn=_set_up_loader,
    )
    yield from loader


def _set_up_loader(_: int) -> None:
    host.set_up(1, is_16_bit=False)

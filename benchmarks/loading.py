"""Three tables: pictures a second on one core from prepared shards and by the peers, steps, and memory over an epoch.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/loading.py --coco FOLDER [--split val2017] [--rounds 5]
        [--epochs 20] [--no-ray-data]

FOLDER holds COCO's pictures and annotations; they are prepared into a temporary folder first. All sides decode, flip
at random, resize to 800 x 1333 and collate batches of 2 with boxes and masks, on one thread, taking turns. The peers:
torchvision's CocoDetection, its detection reference's steps (polygons to full bitmaps by pycocotools) and the transform
of its Mask R-CNN, which normalises and resizes, called directly and by torch's DataLoader in the same process; and our
own batches by Ray Data's iterator (from_items, map_batches by one process that stays, iter_batches), timed by the clock
from its first batch on, since its work is in other processes. All other times are processor time, so that other work on
the machine disturbs less; each figure is the best of the rounds. The kernels are those that training uses, on bytes.
"""

import argparse
import dataclasses
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as tvf

from model.config import PictureConfig, ResizeKernel
from model.picture import empty_batch, padded_hw, resize
from pipelines import host, prepare, prepare_config
from pipelines.dataset import Dataset
from pipelines.decode import decode_rgb, decode_rgb_fast
from pipelines.geometry import AugmentConfig, draw_placement
from pipelines.loading import Source, TrainBatches, collate, stream
from pipelines.mask_crops import mask_crops
from pipelines.ray_session import ray_session
from pipelines.transforms import transform

BATCH = 2
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Peer:
    """torchvision's road from a COCO folder to a batch."""

    def __init__(self, pictures: Path, annotations: Path) -> None:
        self._set = CocoDetection(str(pictures), str(annotations))
        self._transform = GeneralizedRCNNTransform(800, 1333, MEAN, STD)
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._set)

    def batch(self, numbers: list[int]) -> object:
        return self.collate([self[number] for number in numbers])

    def collate(self, samples: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> object:
        return self._transform(*map(list, zip(*samples, strict=True)))

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self, BATCH, shuffle=True, collate_fn=self.collate, drop_last=True)  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        picture, rows = self._set[number]
        width, height = picture.size
        rows = [row for row in rows if not row["iscrowd"]]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.zeros((len(rows), height, width), dtype=torch.uint8)
        for slot, row in zip(masks, rows, strict=True):
            parts = coco_mask.frPyObjects(row["segmentation"], height, width)
            slot[:] = torch.from_numpy(coco_mask.decode(coco_mask.merge(parts)))
        pixels = tvf.to_dtype(tvf.pil_to_tensor(picture), torch.float32, scale=True)
        if self._rng.random() < 0.5:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        labels = torch.tensor([row["category_id"] for row in rows], dtype=torch.int64)
        return pixels, {"boxes": boxes, "labels": labels, "masks": masks}


def rate(work: Callable[[int], object], count: int, pictures: int) -> float:
    """Pictures a second of processor time over `count` calls."""
    start = time.process_time()
    for number in range(count):
        work(number)
    return pictures / (time.process_time() - start)


def best(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The best rate of each, taking turns; the first turn warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            found[name].append(work())
    return {name: max(rates[1:]) for name, rates in found.items()}


def epoch(batches: TrainBatches, pictures: int) -> float:
    return rate(batches.__getitem__, pictures // BATCH, pictures // BATCH * BATCH)


def iterate(made: Iterable[object], pictures: int, clock: Callable[[], float] = time.process_time) -> float:
    """Pictures a second of an iterator."""
    start = clock()
    for _ in made:
        pass
    return pictures / (clock() - start)


class BuildBatches:
    """Ray Data's step numbers to our batches."""

    def __init__(self, folder: str) -> None:
        self._batches = TrainBatches([Source(Dataset(folder), BATCH)], PictureConfig(), AugmentConfig(), 0)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        (batch,) = [self._batches[int(step)] for step in rows["item"]]
        masks = [batch.targets.masks.data.numpy()] * BATCH
        return {"pixels": batch.images.pixels.numpy(), "boxes": batch.targets.boxes.numpy(), "masks": masks}


def ray_data_rate(folder: str, steps: int) -> float:
    """Our batches by Ray Data's iterator, pictures a second by the clock; the connected Ray has one CPU."""
    made = ray.data.from_items(list(range(steps + 1))).map_batches(
        BuildBatches, fn_constructor_args=(folder,), batch_size=1, num_cpus=1, concurrency=1
    )
    batches = iter(made.iter_batches(batch_size=BATCH))
    next(batches)
    return iterate(batches, steps * BATCH, time.monotonic)


def memory_lines(data: Dataset, epochs: int) -> list[str]:
    """The memory of this process at ten points of `epochs` times its pictures, as a table."""
    batches = TrainBatches([Source(data, BATCH)], PictureConfig(), AugmentConfig(), 0)
    steps = max(10, epochs * len(data) // BATCH)
    marks = [round(steps * tenth / 10) for tenth in range(1, 11)]
    lines = [f"| of {steps * BATCH} pictures | resident MiB |", "|---|---|"]
    for step, _ in enumerate(stream(batches, 0, steps, 0, pin=False), 1):
        if step in marks:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            lines.append(f"| {step * BATCH} | {resident:.0f} |")
    return lines


def steps_of(data: Dataset, picture: PictureConfig) -> dict[str, Callable[[], float]]:
    """The parts of our road, each alone."""
    records = [data.record(index) for index in range(len(data))]
    pixels = [decode_rgb_fast(record.image) for record in records]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in pixels]
    augment, count = AugmentConfig(flip=0.0), len(records)
    rng = np.random.default_rng(0)
    places = [draw_placement((r.height, r.width), picture, augment, rng) for r in records]
    samples = [transform(record, picture, augment, rng) for record in records[:BATCH]]
    sizes = [place.size_hw for place in places[:BATCH]]
    padded = padded_hw(sizes, picture.short_edge_px, picture)
    return {
        "read a record": lambda: rate(data.record, count, count),
        "decode by Pillow": lambda: rate(lambda k: decode_rgb(records[k].image), count, count),
        "decode by libjpeg-turbo": lambda: rate(lambda k: decode_rgb_fast(records[k].image), count, count),
        "resize bytes": lambda: rate(lambda k: places[k].pixels(pixels[k]), count, count),
        "resize, exact float kernel": lambda: rate(
            lambda k: resize(tensors[k], places[k].resized_hw, picture.kernel), count, count
        ),
        "record to sample, all": lambda: rate(lambda k: transform(records[k], picture, augment, rng), count, count),
        "masks": lambda: rate(lambda k: mask_crops(records[k].instances, records[k], places[k]), count, count),
        "collate": lambda: rate(
            lambda k: collate(samples, empty_batch(sizes, padded, torch.uint8), [0] * BATCH), 10, 10 * BATCH
        ),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of Ray Data's row and the table of memory")
    parser.add_argument("--no-ray-data", action="store_true")
    args = parser.parse_args()
    host.set_up(1, is_16_bit=False)
    pictures, annotations = args.coco / args.split, args.coco / f"annotations/instances_{args.split}.json"
    with tempfile.TemporaryDirectory() as folder:
        with ray_session(num_cpus=1):
            prepare.run(prepare_config.PrepareCoco(images=str(pictures), annotations=str(annotations), out=folder))
        data, peer = Dataset(folder), Peer(pictures, annotations)
        count = len(peer) // BATCH * BATCH
        works: dict[str, Callable[[], float]] = {}
        for kernel in ResizeKernel:
            picture = dataclasses.replace(PictureConfig(), kernel=kernel)
            batches = TrainBatches([Source(data, BATCH)], picture, AugmentConfig(), 0)
            works[f"maskray, {kernel.value}"] = lambda batches=batches: epoch(batches, len(data))  # type: ignore[misc]
        works["torchvision"] = lambda: rate(lambda k: peer.batch([BATCH * k, BATCH * k + 1]), count // BATCH, count)
        works["torchvision by DataLoader"] = lambda: iterate(peer.loader(), count)
        print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {len(data)} pictures, 1 thread")
        print(f"load before the run {os.getloadavg()[0]:.1f}\n")
        found = best(works, args.rounds)
        print("| a batch of 2 from shards or files | pictures/s/core | times torchvision |\n|---|---|---|")
        for name, speed in found.items():
            print(f"| {name} | {speed:.0f} | {speed / found['torchvision']:.1f} |", flush=True)
        if not args.no_ray_data:
            with ray_session(num_cpus=1):
                speed = ray_data_rate(folder, args.epochs * count // BATCH)
            print(f"| maskray's batches by Ray Data, by the clock | {speed:.0f} | {speed / found['torchvision']:.1f} |")
        print("\n| step | pictures/s/core | ms |\n|---|---|---|")
        for name, speed in best(steps_of(data, PictureConfig()), args.rounds).items():
            print(f"| {name} | {speed:.0f} | {1e3 / speed:.2f} |", flush=True)
        print("\n" + "\n".join(memory_lines(data, args.epochs)))
        print(f"\nlargest memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()

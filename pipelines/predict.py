"""The predict command: label every picture of a data set with Ray Data actors, one result shard an input shard."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import ray
import torch

from pipelines import checkpoints, commit, predictions, storage
from pipelines.dataset import Dataset
from pipelines.inference import cut_batches, predict_batch
from pipelines.manifest import FileInfo
from pipelines.predictions import PredictionsError, PredictionsManifest
from pipelines.progress import Progress
from pipelines.ray_session import ray_session, require_cpus, require_gpus
from pipelines.shard_runner import Row, Workers, run_shards


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Detect objects on every picture of a data set.

    Attributes:
        checkpoint: a checkpoint, or a training run (its latest checkpoint).
        data: prepared data set, labelled or not.
        out: folder or URI of the predictions; the same command goes on where it stopped.
        batch: pictures that go through the network together.
        workers: processes, each with a detector; 0 takes one for each free CPU (or GPU), at most one a shard.
        cpus_per_worker: CPU cores and threads of each.
        gpu: one GPU a worker.
        address: Ray cluster to use; empty starts one on this machine.
    """

    checkpoint: str
    data: str
    out: str
    batch: int = 4
    workers: int = 0
    cpus_per_worker: int = 1
    gpu: bool = False
    address: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.batch < 1 or self.cpus_per_worker < 1 or self.workers < 0:
            raise ValueError(
                f"predict needs batch >= 1, cpus-per-worker >= 1 and workers >= 0, got {self.batch}, "
                f"{self.cpus_per_worker} and {self.workers}"
            )


class _Labeller:
    """One worker: loads the detector once, then turns shards into prediction shards."""

    def __init__(self, config: PredictConfig, meta: dict[str, Any]) -> None:
        torch.set_num_threads(config.cpus_per_worker)
        self._config, self._meta = config, meta
        self._device = torch.device("cuda" if config.gpu else "cpu")
        self._detector = checkpoints.load_detector(checkpoints.load(config.checkpoint)).to(self._device).eval()
        self._dataset = Dataset(config.data)

    def label(self, shard: int) -> Row:
        """Predict one shard and commit it; its file, pictures and detections."""
        first = int(self._dataset.rows_per_shard[:shard].sum())
        rows = range(first, first + int(self._dataset.rows_per_shard[shard]))
        sizes = [(int(h), int(w)) for h, w in self._dataset.sizes_hw[rows.start : rows.stop]]
        found: list[predictions.PicturePrediction | None] = [None] * len(rows)
        for batch in cut_batches(sizes, self._detector, self._config.batch):
            records = [self._dataset.record(rows[i]) for i in batch]
            for i, picture in zip(batch, predict_batch(self._detector, records, self._device), strict=True):
                found[i] = picture
        pictures = [picture for picture in found if picture is not None]
        count = sum(len(picture.scores) for picture in pictures)
        meta = {**self._meta, "shard": shard, "pictures": len(pictures), "detections": count}
        buffer = predictions.to_ipc(pictures, meta)
        filesystem, folder = storage.open_uri(self._config.out)
        name = predictions.shard_name(shard)
        commit.write_file(filesystem, storage.join(folder, name), memoryview(buffer))
        info = FileInfo(name, buffer.size, commit.sha256_of(memoryview(buffer)))
        return {"info": dataclasses.asdict(info), "pictures": len(pictures), "detections": count}


Fact = tuple[FileInfo, int, int]


def _finished(config: PredictConfig, dataset: Dataset, meta: dict[str, Any]) -> dict[int, Fact]:
    """Shards that an earlier run of the same command finished.

    Raises:
        PredictionsError: the folder holds predictions of another data set or checkpoint.
    """
    filesystem, folder = storage.open_uri(config.out)
    done: dict[int, Fact] = {}
    for shard in range(len(dataset.rows_per_shard)):
        path = storage.join(folder, predictions.shard_name(shard))
        if not storage.is_file(filesystem, path):
            continue
        found = predictions.read_meta(filesystem, path)
        if found is None or any(found.get(name) != value for name, value in meta.items()):
            raise PredictionsError(
                f"{config.out} holds predictions of another data set, checkpoint or batch: choose another --out"
            )
        data = storage.read_bytes(filesystem, path)
        info = FileInfo(predictions.shard_name(shard), len(data), commit.sha256_of(data))
        done[shard] = info, int(found["pictures"]), int(found["detections"])
    return done


def run(config: PredictConfig) -> PredictionsManifest:
    """Label the data set and commit the predictions; finished shards of an earlier run are not redone.

    Raises:
        ValueError: data, checkpoint or cluster do not fit; the message says what to do.
    """
    config = dataclasses.replace(
        config,
        checkpoint=storage.canonical_uri(config.checkpoint),
        data=storage.canonical_uri(config.data),
        out=storage.canonical_uri(config.out),
    )
    dataset, checkpoint = Dataset(config.data), checkpoints.load(config.checkpoint)
    # A run gets new checkpoints while it trains: fix the one that was found.
    config = dataclasses.replace(config, checkpoint=checkpoint.uri)
    meta: dict[str, Any] = {"dataset": dataset.manifest.hash, "checkpoint": checkpoint.hash, "batch": config.batch}
    filesystem, folder = storage.open_uri(config.out)
    path = storage.join(folder, predictions.FILE_NAME)
    if storage.is_file(filesystem, path):
        found = PredictionsManifest.load(config.out)
        if (found.dataset, found.checkpoint) != (meta["dataset"], meta["checkpoint"]):
            raise PredictionsError(
                f"{config.out} holds predictions of another data set or checkpoint: choose another --out"
            )
        return found
    commit.sweep_temps(filesystem, folder)
    done = _finished(config, dataset, meta)
    missing = [shard for shard in range(len(dataset.rows_per_shard)) if shard not in done]
    if missing:
        progress = Progress("predict", len(dataset), "pictures", sum(pictures for _, pictures, _ in done.values()))
        for shard, fact in _label_all(config, meta, missing):
            done[shard] = fact
            progress.update(sum(pictures for _, pictures, _ in done.values()))
        progress.close()
    made = PredictionsManifest(
        dataset=meta["dataset"],
        checkpoint=meta["checkpoint"],
        classes=checkpoint.classes,
        shards=tuple(done[shard][0] for shard in sorted(done)),
        pictures=sum(pictures for _, pictures, _ in done.values()),
        detections=sum(count for _, _, count in done.values()),
    )
    if made.pictures != len(dataset):
        raise PredictionsError(f"{made.pictures} pictures were labelled, the data set has {len(dataset)}: run it again")
    commit.write_file(filesystem, path, made.to_bytes(), exclusive=True)
    return made


def _label_all(config: PredictConfig, meta: dict[str, Any], missing: list[int]) -> Iterator[tuple[int, Fact]]:
    with ray_session(config.address or None):
        resources = ray.cluster_resources()
        units = resources.get("GPU", 0) if config.gpu else resources.get("CPU", 1) / config.cpus_per_worker
        count = min(config.workers or max(1, int(units)), len(missing))
        require_cpus(count * config.cpus_per_worker, f"predicting with {count} workers")
        if config.gpu:
            require_gpus(count, f"predicting with {count} workers of one GPU")
        workers = Workers(count, config.cpus_per_worker, int(config.gpu))
        for shard, facts in run_shards(lambda: _Labeller(config, meta).label, missing, workers):
            yield shard, (FileInfo(**facts["info"]), facts["pictures"], facts["detections"])

"""The predict command: label every picture of a data set with Ray Data actors, one result shard an input shard."""

import dataclasses
from collections.abc import Iterator

import ray

from model import fusion
from model.merge import Merge
from model.views import parse_views
from pipelines import checkpoints, commit, labeller, predictions, storage
from pipelines.coco_export import write_results
from pipelines.config import Precision
from pipelines.labeller import Labelled, Labeller, Order, find_shard
from pipelines.making import Account, Making
from pipelines.manifest import Manifest
from pipelines.predictions import PredictionsManifest
from pipelines.progress import Progress
from pipelines.ray_session import ray_session, require_cpus, require_gpus
from pipelines.shard_runner import Workers, run_shards


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Detect objects on every picture of a data set.

    Attributes:
        checkpoint: a checkpoint, or a training run (its latest checkpoint).
        data: prepared data set, labelled or not.
        out: folder or URI of the predictions; the same command goes on where it stopped.
        views: none, fast (4), paper (18), or shorter sides in pixels, f for flipped, such as 800,800f,1000; what the
            views find is merged.
        merge: how views' boxes become one set: NMS and voting, NMS alone (none), or weighted box fusion (wbf, which
            needs the extra of that name).
        voting_iou: by voting a box becomes the score-weighted mean of the views' boxes that overlap it so much.
        precision: fp32, bf16 or fp16.
        batch: most views of pictures held at a time; a picture's views are always held together.
        workers: most processes, each with a detector; 0 takes one for each free CPU (or GPU), at most one a shard.
        min_workers: begin with so many and take more while there is room; 0 starts all at once.
        cpus_per_worker: CPU cores and threads of each.
        gpu: one GPU a worker.
        results: write COCO's results.json too.
        address: Ray cluster to use; empty starts one on this machine.
    """

    checkpoint: str
    data: str
    out: str
    views: str = "none"
    merge: Merge = Merge.VOTE
    voting_iou: float = 0.8
    precision: Precision = Precision.FP32
    batch: int = 4
    workers: int = 0
    min_workers: int = 0
    cpus_per_worker: int = 1
    gpu: bool = False
    results: bool = False
    address: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.batch < 1 or self.cpus_per_worker < 1 or self.workers < 0 or self.min_workers < 0:
            raise ValueError(
                f"predict needs batch >= 1, cpus-per-worker >= 1, workers >= 0 and min-workers >= 0, got {self.batch}, "
                f"{self.cpus_per_worker}, {self.workers} and {self.min_workers}"
            )
        if self.workers and self.min_workers > self.workers:
            raise ValueError(f"predict got min-workers {self.min_workers} and workers {self.workers}, wanted no more")
        if not 0 < self.voting_iou <= 1:
            raise ValueError(
                f"predict got voting-iou {self.voting_iou}, wanted above 0 to 1; --merge none does not vote"
            )


def run(config: PredictConfig) -> PredictionsManifest:
    """Label the data set and commit the predictions; finished shards of an earlier run are not redone.

    Raises:
        ValueError: data, checkpoint or cluster do not fit; the message says what to do.
    """
    if config.merge is Merge.WBF:
        fusion.require()
    out, data = storage.canonical_uri(config.out), storage.canonical_uri(config.data)
    # A run gets new checkpoints while it trains: fix the one that was found.
    dataset, checkpoint = Manifest.load(data), checkpoints.load(storage.canonical_uri(config.checkpoint))
    views = parse_views(config.views, checkpoint.detector.picture)
    making = Making(
        views=tuple(map(str, views)),
        voting_iou=config.voting_iou,
        precision=config.precision.value,
        batch=config.batch,
        threads=config.cpus_per_worker,
        device="cuda" if config.gpu else "cpu",
        merge=config.merge.value,
    )
    key = {"dataset": dataset.hash, "checkpoint": checkpoint.hash, "making": dataclasses.asdict(making)}
    order = Order(checkpoint.uri, data, out, making, key)
    made = _committed(order) or _label(config, order, dataset, checkpoint)
    if config.results:
        write_results(out, out, made)
    return made


def _committed(order: Order) -> PredictionsManifest | None:
    """What an earlier run of the same command committed."""
    filesystem, folder = storage.open_uri(order.out)
    if not storage.is_file(filesystem, storage.join(folder, predictions.FILE_NAME)):
        return None
    found = PredictionsManifest.load(order.out)
    making = {} if found.making is None else dataclasses.asdict(found.making)
    making = {name: list(value) if isinstance(value, tuple) else value for name, value in making.items()}
    labeller.check_key(order, {"dataset": found.dataset, "checkpoint": found.checkpoint, "making": making})
    return found


def _label(
    config: PredictConfig, order: Order, dataset: Manifest, checkpoint: checkpoints.Checkpoint
) -> PredictionsManifest:
    filesystem, folder = storage.open_uri(order.out)
    commit.sweep_temps(filesystem, folder)
    with ray_session(config.address or None):
        done = dict(_find_all(order, _present(order, len(dataset.shards))))
        missing = [shard for shard in range(len(dataset.shards)) if shard not in done]
        if missing:
            order = dataclasses.replace(order, machines=_machines(done))
            pictures = sum(shard.pictures for shard in done.values())
            progress = Progress("predict", dataset.rows_written, "pictures", pictures)
            for number, shard in _label_all(config, order, missing):
                done[number] = shard
                pictures += shard.pictures
                progress.update(pictures)
            progress.close()
            commit.sweep_temps(filesystem, folder)  # of workers that were killed on the way
    shards = [done[number] for number in sorted(done)]
    accounts = [dataclasses.astuple(shard.account) for shard in shards]
    made = PredictionsManifest(
        dataset=dataset.hash,
        checkpoint=checkpoint.hash,
        classes=checkpoint.classes,
        shards=tuple(shard.info for shard in shards),
        pictures=dataset.rows_written,
        detections=sum(shard.detections for shard in shards),
        making=order.making,
        account=Account(*(sum(parts) for parts in zip(*accounts, strict=True))) if accounts else Account(0, 0, 0),
        machines=_machines(done),
    )
    path = storage.join(folder, predictions.FILE_NAME)
    try:
        commit.write_file(filesystem, path, made.to_bytes(), exclusive=True)
    except commit.CommitConflictError:
        # The same command twice at a time makes the same bytes: whoever is first commits them.
        if storage.read_bytes(filesystem, path) != made.to_bytes():
            raise
    return made


def _machines(done: dict[int, Labelled]) -> tuple[str, ...]:
    return tuple(sorted({shard.machine for shard in done.values()}))


def _present(order: Order, count: int) -> list[int]:
    """Numbers of the shards, of so many, that have a file."""
    filesystem, folder = storage.open_uri(order.out)
    if not storage.is_folder(filesystem, folder):
        return []
    names = {info.base_name for info in storage.list_files(filesystem, folder)}
    return [shard for shard in range(count) if predictions.shard_name(shard) in names]


def _find_all(order: Order, present: list[int]) -> Iterator[tuple[int, Labelled]]:
    """Those of the shards that an earlier run finished; each file is read whole, hence by tasks."""
    for number, facts in run_shards(lambda: lambda shard: {"found": find_shard(order, shard)}, present):
        if facts["found"] is not None:
            yield number, Labelled.from_facts(facts["found"])


def _label_all(config: PredictConfig, order: Order, missing: list[int]) -> Iterator[tuple[int, Labelled]]:
    resources = ray.cluster_resources()
    units = resources.get("GPU", 0) if config.gpu else resources.get("CPU", 1) / config.cpus_per_worker
    count = min(config.workers or max(1, int(units), config.min_workers), len(missing))
    least = min(config.min_workers, count) or count
    require_cpus(least * config.cpus_per_worker, f"predicting with {least} workers")
    if config.gpu:
        require_gpus(least, f"predicting with {least} workers of one GPU")
    workers = Workers(count, config.cpus_per_worker, int(config.gpu), least)
    for number, facts in run_shards(lambda: Labeller(order).label, missing, workers):
        yield number, Labelled.from_facts(facts)

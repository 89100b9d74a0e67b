"""The distill command: choose pseudo-labels among the detections on a pool of pictures nobody labelled.

The rule is that of data distillation (Radosavovic et al. 2017, section 3): of each class keep, best scores first, as
many objects a picture as people annotated in the labelled set. It is computed by order statistics, so that the result
does not depend on how detections are spread over shards or on the order in which they are read.
"""

import dataclasses
import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines import commit, dataset_writer, predictions, storage
from pipelines import manifest as manifests
from pipelines.dataset import Dataset
from pipelines.manifest import ClassInfo, Manifest, ShardInfo
from pipelines.predictions import PicturePrediction, PredictionsManifest
from pipelines.progress import Progress
from pipelines.ray_session import ray_session
from pipelines.records import Instance, Record
from pipelines.shard_runner import run_shards

_FEW_OBJECTS = 20


class DistillError(ValueError):
    """Inputs that do not belong together, or a selection that keeps nothing."""


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Choose pseudo-labels and write them as a data set that `maskray train` takes.

    Attributes:
        predictions: what `maskray predict` made on the pool.
        pool: prepared data set of unlabelled pictures.
        labelled: prepared data set the detector was trained on; its objects a picture set how many are kept.
        out: folder or URI of the pseudo-labelled data set.
        min_score: detections below are never kept, whatever the rule says.
        max_score: detections from here on are always kept.
        keep_empty: keep pictures without any kept object, as pictures without objects.
        address: Ray cluster to use; empty starts one on this machine.
    """

    predictions: str
    pool: str
    labelled: str
    out: str
    min_score: float = 0.3
    max_score: float = 1.0
    keep_empty: bool = False
    address: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.min_score <= self.max_score <= 1:
            raise ValueError(
                f"distill needs 0 <= min-score <= max-score <= 1, got {self.min_score} and {self.max_score}"
            )


class ClassSelection(NamedTuple):
    """What the rule chose for one class.

    Attributes:
        name: of the class.
        labelled_rate: objects a labelled picture.
        wanted: objects to keep in the pool by the rule.
        threshold: score from which detections are kept.
        kept: detections kept.
        found: detections in all.
        few_labels: the labelled rate rests on few objects and is unsure.
    """

    name: str
    labelled_rate: float
    wanted: int
    threshold: float
    kept: int
    found: int
    few_labels: bool


class DistillResult(NamedTuple):
    """The data set made and what was chosen a class."""

    manifest: Manifest
    selection: tuple[ClassSelection, ...]


def select_class(scores: npt.NDArray[np.float32], wanted: int, min_score: float, max_score: float) -> float:
    """The score threshold (kept iff score >= it) that keeps `wanted` detections, within the floor and the cap.

    Equal scores stand or fall together, on the side of keeping fewer, so that ties need no order.

    Args:
        scores: of one class over the whole pool.
        wanted: detections to keep.
        min_score: floor of the threshold.
        max_score: cap of the threshold.
    """
    if wanted >= scores.size:
        threshold = min_score
    elif wanted <= 0:
        threshold = max_score
    else:
        ordered = np.sort(scores)[::-1]
        last, after = ordered[wanted - 1], ordered[wanted]
        threshold = float(last) if last > after else float(np.nextafter(last, np.float32(2)))
    return min(max(threshold, min_score), max_score)


def _select(
    labelled: Manifest, pool_pictures: int, scores: list[npt.NDArray[np.float32]], config: DistillConfig
) -> tuple[ClassSelection, ...]:
    rows = []
    for info, count, of_class in zip(labelled.classes, labelled.class_counts, scores, strict=True):
        rate = count / labelled.labelled_images
        wanted = round(rate * pool_pictures)
        threshold = select_class(of_class, wanted, config.min_score, config.max_score)
        # In float64, as each detection is judged below: a threshold of 0.7 lies above the float32 number nearest to it.
        kept = int((of_class.astype(np.float64) >= threshold).sum())
        rows.append(ClassSelection(info.name, rate, wanted, threshold, kept, of_class.size, count < _FEW_OBJECTS))
    return tuple(rows)


def pseudo_record(record: Record, found: PicturePrediction, thresholds: npt.NDArray[np.float64]) -> Record:
    """The pool's picture with the kept detections as its objects, best first."""
    kept = [i for i in range(len(found.scores)) if found.scores[i] >= thresholds[found.labels[i]] and found.areas[i]]
    instances = tuple(
        Instance(
            # Unique in the data set as long as image ids are: a picture has at most 100 detections.
            id=record.image_id * 1000 + rank + 1,
            label=int(found.labels[i]),
            box_xyxy=tuple(float(v) for v in found.boxes_xyxy[i]),  # type: ignore[arg-type]
            area=float(found.areas[i]),
            crowd=False,
            ignore=False,
            polygons=None,
            rle=None if found.rles is None else found.rles[i],
            keypoints=None,
            score=float(found.scores[i]),
        )
        for rank, i in enumerate(kept)
    )
    return dataclasses.replace(record, instances=instances, labelled=True)


@dataclasses.dataclass(frozen=True)
class _ShardWork:
    """What is needed to write any pseudo-labelled shard."""

    config: DistillConfig
    predictions: PredictionsManifest
    thresholds: tuple[float, ...]
    fingerprint: str

    def write(self, shard: int) -> ShardInfo:
        """Write one shard; the same input gives the same bytes."""
        pool = Dataset(self.config.pool)
        found = predictions.read_pictures(self.config.predictions, self.predictions.shards[shard])
        first = int(pool.rows_per_shard[:shard].sum())
        thresholds = np.array(self.thresholds)
        rows = []
        for offset, picture in enumerate(found):
            record = pool.record(first + offset)
            if record.image_id != picture.image_id:
                raise DistillError(
                    f"picture {first + offset} of the pool has id {record.image_id}, its prediction "
                    f"{picture.image_id}: predict again on this pool"
                )
            made = pseudo_record(record, picture, thresholds)
            if made.instances or self.config.keep_empty:
                rows.append(made)
        filesystem, folder = storage.open_uri(self.config.out)
        return dataset_writer.write_shard(filesystem, folder, shard, rows, {"fingerprint": self.fingerprint})


def _check(config: DistillConfig, pool: Dataset, labelled: Manifest, found: PredictionsManifest) -> None:
    if found.dataset != pool.manifest.hash:
        raise DistillError(f"{config.predictions} was made on other data than {config.pool}: predict on this pool")
    if found.classes != labelled.classes:
        raise DistillError(
            f"the detector's classes {_names(found.classes)} are not those of {config.labelled} "
            f"{_names(labelled.classes)}: give the data set the detector was trained on"
        )
    if not labelled.labelled_images:
        raise DistillError(f"{config.labelled} has no labelled picture: give the data set the detector was trained on")


def _names(classes: tuple[ClassInfo, ...]) -> list[str]:
    return [info.name for info in classes]


def _scores(config: DistillConfig, found: PredictionsManifest) -> list[npt.NDArray[np.float32]]:
    """Scores of all detections with a mask, class by class."""
    parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in found.classes]
    for picture in predictions.all_pictures(config.predictions, found):
        for label in range(len(found.classes)):
            parts[label].append(picture.scores[(picture.labels == label) & (picture.areas > 0)])
    return [np.concatenate(part) if part else np.empty(0, np.float32) for part in parts]


def run(config: DistillConfig) -> DistillResult:
    """Choose thresholds, then write the pseudo-labelled data set; the same command again changes nothing.

    Raises:
        DistillError: inputs that do not belong together, or nothing was kept.
        ValueError: an input that is missing or damaged, or an output that holds other data.
    """
    config = dataclasses.replace(
        config,
        predictions=storage.canonical_uri(config.predictions),
        pool=storage.canonical_uri(config.pool),
        labelled=storage.canonical_uri(config.labelled),
        out=storage.canonical_uri(config.out),
    )
    pool, labelled = Dataset(config.pool), Manifest.load(config.labelled)
    found = PredictionsManifest.load(config.predictions)
    _check(config, pool, labelled, found)
    selection = _select(labelled, len(pool), _scores(config, found), config)
    if not any(row.kept for row in selection) and not config.keep_empty:
        best = max((row.threshold for row in selection), default=config.min_score)
        raise DistillError(
            f"no detection reached its threshold (floor {config.min_score}, highest {best:.3f}): "
            "lower --min-score, or train the teacher longer"
        )
    source = {
        "kind": "distill",
        "images": config.pool,
        "pool": pool.manifest.hash,
        "labelled": labelled.hash,
        "predictions": found.hash,
        "teacher": found.checkpoint,
        "keep_empty": str(config.keep_empty),
        "thresholds": json.dumps({row.name: row.threshold for row in selection}, sort_keys=True),
    }
    fingerprint = commit.sha256_of(json.dumps({**source, "images": ""}, sort_keys=True).encode())
    filesystem, folder = storage.open_uri(config.out)
    if storage.is_file(filesystem, storage.join(folder, manifests.FILE_NAME)):
        made = Manifest.load(config.out)
        if made.fingerprint != fingerprint:
            raise DistillError(f"{config.out} holds another data set: choose another --out")
        return DistillResult(made, selection)
    commit.sweep_temps(filesystem, folder)
    work = _ShardWork(config, found, tuple(row.threshold for row in selection), fingerprint)
    shards = tuple(_write_all(work, len(pool.rows_per_shard)))
    rows = sum(shard.rows for shard in shards)
    draft = dataset_writer.Draft(
        classes=found.classes,
        shards=shards,
        rejections=(),
        rows_in=rows,
        instances_in=sum(shard.instances for shard in shards),
        source={
            **source,
            "pool_pictures": str(len(pool)),
            "pictures_without_kept_object": str(len(pool) - rows),
        },
        fingerprint=fingerprint,
    )
    return DistillResult(dataset_writer.commit_dataset(filesystem, folder, draft), selection)


def _write_all(work: _ShardWork, count: int) -> list[ShardInfo]:
    done: dict[int, ShardInfo] = {}
    progress = Progress("distill", count, "shards")
    with ray_session(work.config.address or None):
        for shard, facts in run_shards(lambda: lambda number: dataclasses.asdict(work.write(number)), range(count)):
            done[shard] = ShardInfo(**facts)
            progress.update(len(done))
    progress.close()
    return [done[shard] for shard in range(count)]

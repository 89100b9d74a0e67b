"""`maskray inspect --verify`: everything that a committed data set says, compared with everything it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines import check_semantic, commit, decode, masks, polygons
from pipelines.dataset import Dataset, DatasetError
from pipelines.manifest import ClassInfo, Manifest
from pipelines.records import Instance, Record, SchemaError


def verify(dataset: Dataset) -> Iterator[str]:
    """Check everything again; reads all of it.

    Yields:
        One line for each damaged shard, bad record or object, and each number that does not add up.
    """
    account = _Account(dataset.manifest)
    first = 0
    for number, info in enumerate(dataset.manifest.shards):
        try:
            dataset.shard(number)
        except (DatasetError, SchemaError) as error:
            yield str(error)
            account.is_whole = False
        else:
            before = account.instances
            for index in range(first, first + info.rows):
                record = dataset.record(index)
                problems = [*_record_problems(record, dataset.manifest), *_index_problems(record, dataset, index)]
                yield from (f"record {index} ({record.file_name}): {problem}" for problem in problems)
                account.add(record)
            if account.instances - before != info.instances:
                yield f"{info.file} holds {account.instances - before} objects, the manifest says {info.instances}"
        first += info.rows
    yield from account.problems()
    yield from _rejection_problems(dataset)


class _Account:
    """What the records add up to."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._counts = {rule: np.zeros(len(manifest.classes), np.int64) for rule in ("objects", "old")}
        self._seen: set[int] = set()
        self._twice: list[int] = []
        self._labelled = 0
        self.instances, self.is_whole = 0, True

    def add(self, record: Record) -> None:
        """Count a record."""
        for rule, labels in _labels_of(record).items():
            known = [label for label in labels if 0 <= label < len(self._counts[rule])]
            self._counts[rule] += np.bincount(known, minlength=len(self._counts[rule])).astype(np.int64)
        if record.image_id in self._seen:
            self._twice.append(record.image_id)
        self._seen.add(record.image_id)
        self._labelled += record.labelled
        self.instances += len(record.instances)

    def problems(self) -> Iterator[str]:
        """Where the records and the manifest differ; nothing is known of damaged shards."""
        yield from (f"image id {image_id} belongs to more than one record" for image_id in self._twice)
        if not self.is_whole:
            return
        if not any(tuple(c.tolist()) == self._manifest.class_counts for c in self._counts.values()):
            yield "objects a class differ from the manifest"
        if self._labelled != self._manifest.labelled_images:
            yield f"{self._labelled} pictures are labelled, the manifest says {self._manifest.labelled_images}"


def _labels_of(record: Record) -> dict[str, list[int]]:
    """Labels of what counts as an object: neither crowd nor ignored; once, ignored ones counted too."""
    return {
        "objects": [i.label for i in record.instances if not (i.crowd or i.ignore)],
        "old": [i.label for i in record.instances if not i.crowd],
    }


def _index_problems(record: Record, dataset: Dataset, index: int) -> Iterator[str]:
    labels = dataset.labels[dataset.label_offsets[index] : dataset.label_offsets[index + 1]].tolist()
    differs = {
        "image id": record.image_id != dataset.image_ids[index],
        "size": (record.height, record.width) != tuple(dataset.sizes_hw[index]),
        "being labelled": record.labelled != dataset.labelled[index],
        "labels": labels not in _labels_of(record).values(),
    }
    yield from (f"its {name} differs from the index" for name, wrong in differs.items() if wrong)


def _record_problems(record: Record, manifest: Manifest) -> Iterator[str]:
    if commit.sha256_of(record.image) != record.sha256:
        yield "the picture does not match its sha256"
    try:
        # What was accepted is decoded, whatever --max-pixels was.
        pixels = decode.decode_rgb(record.image, max(1, record.height * record.width))
    except decode.DecodeError as error:
        yield f"the picture cannot be decoded ({error})"
    else:
        if pixels.shape[:2] != (record.height, record.width):
            yield f"the picture is {pixels.shape[0]}x{pixels.shape[1]}, noted {record.height}x{record.width}"
    if record.semantic is not None:
        try:
            check_semantic.check_map(record.semantic, record.height, record.width, manifest.semantic_classes)
        except check_semantic.MapError as error:
            yield f"semantic map: {error}"
    ids = [i.id for i in record.instances]
    if len(set(ids)) < len(ids):
        yield f"the object id {next(n for n in ids if ids.count(n) > 1)} stands twice"
    for instance in record.instances:
        for problem in _instance_problems(instance, record, manifest.classes):
            yield f"object {instance.id}: {problem}"


def _instance_problems(instance: Instance, record: Record, classes: Sequence[ClassInfo]) -> Iterator[str]:
    x1, y1, x2, y2 = instance.box_xyxy
    if not (np.isfinite(instance.box_xyxy).all() and x2 > x1 and y2 > y1):
        yield f"box {instance.box_xyxy}"
    # Written so that NaN is out of range.
    for name, value, most in (
        ("area", instance.area, np.inf),
        ("score", instance.score, 1.0),
        ("loss weight", instance.loss_weight, np.inf),
    ):
        if not (0 <= value <= most and np.isfinite(value)):
            yield f"{name} {value}"
    if not 0 <= instance.label < len(classes):
        yield f"label {instance.label}, outside of 0..{len(classes) - 1}"
    elif instance.keypoints is not None:
        yield from _keypoint_problems(instance, len(classes[instance.label].keypoints))
    try:
        if instance.polygons is not None:
            polygons.validate_polygons(instance.polygons, record.height, record.width)
        if instance.rle is not None:
            masks.validate_rle(instance.rle, record.height, record.width)
    except masks.MaskError as error:
        yield str(error)


def _keypoint_problems(instance: Instance, wanted: int) -> Iterator[str]:
    points = instance.keypoints
    assert points is not None
    if wanted and len(points) != wanted:
        yield f"{len(points)} keypoints, its class has {wanted}"
    if not (np.isfinite(points).all() and np.isin(points[:, 2], (0, 1, 2)).all()):
        yield "keypoints that are not finite, or whose visibility is none of 0, 1 and 2"


def _rejection_problems(dataset: Dataset) -> Iterator[str]:
    try:
        lost = dataset.rejections()
    except (DatasetError, ValueError) as error:
        yield str(error)
        return
    manifest = dataset.manifest
    rows, objects = sum(r.is_row for r in lost), sum(r.instances for r in lost)
    if (rows, objects) != (manifest.rows_rejected, manifest.instances_rejected):
        yield (
            f"{manifest.rejected.file} lists {rows} pictures and {objects} objects, the manifest says "
            f"{manifest.rows_rejected} and {manifest.instances_rejected}"
        )

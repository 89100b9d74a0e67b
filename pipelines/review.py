"""Pseudo-labels for people to correct: a few pictures with files for FiftyOne, CVAT and Label Studio.

`review/` is a folder that FiftyOne loads as a COCODetectionDataset: pictures in data/, labels in labels.json. cvat.json
is what CVAT uploads as annotations in the format COCO 1.0, for a task made of the same pictures. label_studio.json is a
list of tasks with predictions, for a project with the labelling config in label_studio.xml.
"""

import hashlib
import heapq
import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

from pipelines import commit, storage
from pipelines.coco_export import annotation, categories
from pipelines.dataset import Dataset
from pipelines.distill_outputs import read_without_pictures
from pipelines.manifest import ClassInfo
from pipelines.masks import rasterise
from pipelines.outlines import to_polygons
from pipelines.records import Instance, Record
from pipelines.selection import ClassSelection

FOLDER = "review"
_IGNORED = " (ignored)"


def choose(dataset: Dataset, selection: Sequence[ClassSelection], count: int) -> list[int]:
    """The pictures whose least certain label is nearest its threshold, most doubtful first; ignored ones count."""
    thresholds = [row.threshold for row in selection]
    best: list[tuple[float, int]] = []
    row = 0
    for info in dataset.manifest.shards:
        for record in read_without_pictures(dataset.uri, info.file):
            margins = [abs(i.score - thresholds[i.label]) for i in record.instances]
            if margins:
                best = heapq.nsmallest(count, [*best, (min(margins), row)])
            row += 1
    return [row for _, row in best]


def export(out: str, selection: Sequence[ClassSelection], count: int, prefix: str, model_version: str) -> str:
    """Write `review/` beside a pseudo-labelled data set; where it is.

    Args:
        out: URI of the data set.
        selection: its thresholds, a class each.
        count: pictures.
        prefix: what Label Studio puts before a picture's file name.
        model_version: name of the teacher in Label Studio.

    Raises:
        ValueError: the data set is missing or damaged.
    """
    dataset = Dataset(out)
    records = [dataset.record(row) for row in choose(dataset, selection, count)]
    classes = dataset.manifest.classes
    filesystem, folder = storage.open_uri(storage.child_uri(out, FOLDER))
    for record in records:
        commit.write_file(filesystem, storage.join(folder, "data", picture_name(record)), record.image)
    files = {
        "labels.json": to_coco(records, classes, attributes=False),
        "cvat.json": to_coco(records, classes, attributes=True),
        "label_studio.json": [to_task(record, classes, prefix, model_version) for record in records],
    }
    for name, body in files.items():
        commit.write_file(filesystem, storage.join(folder, name), json.dumps(body, indent=1).encode())
    config = label_config([info.name for info in classes]).encode()
    commit.write_file(filesystem, storage.join(folder, "label_studio.xml"), config)
    return storage.child_uri(out, FOLDER)


def picture_name(record: Record) -> str:
    """File name of an exported picture: that of its id, so that pictures of different folders do not collide."""
    return f"{record.image_id}{PurePosixPath(record.file_name).suffix.lower()}"


def to_coco(records: Sequence[Record], classes: Sequence[ClassInfo], attributes: bool) -> dict[str, Any]:
    """The pictures with polygons as COCO instances.

    Args:
        records: with their labels.
        classes: in the order of labels.
        attributes: put score and ignored flag into `attributes`, where CVAT reads them; else beside the rest, where
            FiftyOne does. Ignored regions are crowds (run lengths) in both.
    """
    images = [{"id": r.image_id, "file_name": picture_name(r), "height": r.height, "width": r.width} for r in records]
    rows = []
    for record in records:
        for instance in record.instances:
            row = annotation(instance, record, classes[instance.label].id)
            row.pop("score", None)
            if not row["iscrowd"]:
                row["segmentation"] = _polygons(instance, record)
            extra = {"score": round(instance.score, 6), "ignored": instance.ignore}
            rows.append(row | ({"attributes": extra} if attributes else extra))
    return {"info": {}, "licenses": [], "images": images, "annotations": rows, "categories": categories(classes)}


def _polygons(instance: Instance, record: Record) -> list[list[float]]:
    segmentation = instance.rle if instance.polygons is None else instance.polygons
    assert segmentation is not None, "pseudo-labels have masks"
    return to_polygons(rasterise(segmentation, record.height, record.width))


def to_task(record: Record, classes: Sequence[ClassInfo], prefix: str, model_version: str) -> dict[str, Any]:
    """A picture as a Label Studio task; coordinates are percent of its size.

    Its score is the lowest of its labels, so that sorting by score shows the most doubtful picture first.
    """
    percent = (100.0 / record.width, 100.0 / record.height)
    results = [
        _region(record, polygon, _region_id(instance.id, number), instance.score, name, percent)
        for instance in record.instances
        for name in [classes[instance.label].name + (_IGNORED if instance.ignore else "")]
        for number, polygon in enumerate(_polygons(instance, record))
    ]
    scores = [instance.score for instance in record.instances]
    return {
        "data": {"image": prefix + picture_name(record), "file_name": record.file_name, "image_id": record.image_id},
        "predictions": [{"model_version": model_version, "score": min(scores, default=0.0), "result": results}],
    }


def _region_id(instance: int, part: int) -> str:
    return hashlib.sha256(f"{instance}/{part}".encode()).hexdigest()[:10]


def _region(
    record: Record, polygon: Sequence[float], number: str, score: float, name: str, percent: tuple[float, float]
) -> dict[str, Any]:
    points = [[x * percent[0], y * percent[1]] for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    return {
        "id": number,
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
        "score": score,
        "value": {"points": points, "closed": True, "polygonlabels": [name]},
    }


def label_config(names: Sequence[str]) -> str:
    """Label Studio's labelling config for the tasks: the classes, and each once more as ignored."""
    labels = "\n".join(f"    <Label value={quoteattr(n + mark)}/>" for mark in ("", _IGNORED) for n in names)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <PolygonLabels name="label" toName="image">\n'
        f"{labels}\n  </PolygonLabels>\n</View>\n"
    )

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
from pipelines.pool_shards import ShardTable
from pipelines.records import Instance, Record

FOLDER = "review"
_IGNORED = " (ignored)"


def doubtful(
    shard: int, uri: str, shards: ShardTable, thresholds: Sequence[float], count: int
) -> dict[str, list[tuple[float, int]]]:
    """How far the least certain label of a picture is from its threshold, and the picture's row; ignored ones count.

    Args:
        shard: of a pseudo-labelled data set; pictures are not read.
        uri: of the data set.
        shards: of it.
        thresholds: a class each.
        count: pictures wanted, the most doubtful ones.
    """
    found = []
    for row, record in enumerate(read_without_pictures(uri, str(shards.files[shard]))):
        margins = [abs(i.score - thresholds[i.label]) for i in record.instances]
        if margins:
            found.append((min(margins), row))
    return {"rows": heapq.nsmallest(count, found)}


def export(out: str, rows: Sequence[int], prefix: str, model_version: str) -> str:
    """Write `review/` beside a pseudo-labelled data set; where it is.

    Args:
        out: URI of the data set.
        rows: of the pictures, in the order they are shown.
        prefix: what Label Studio puts before a picture's file name.
        model_version: name of the teacher in Label Studio.

    Raises:
        ValueError: the data set is missing or damaged.
    """
    dataset = Dataset(out)
    records = [dataset.record(row) for row in rows]
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
    """The pictures with polygons, or boxes alone of a detector without masks, as COCO instances.

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
            if not row["iscrowd"] and "segmentation" in row:
                row["segmentation"] = _polygons(instance, record)
            extra = {"score": round(instance.score, 6), "ignored": instance.ignore}
            rows.append(row | ({"attributes": extra} if attributes else extra))
    return {"info": {}, "licenses": [], "images": images, "annotations": rows, "categories": categories(classes)}


def _polygons(instance: Instance, record: Record) -> list[list[float]]:
    """The mask's outlines, or the box of an object without a mask."""
    segmentation = instance.rle if instance.polygons is None else instance.polygons
    if segmentation is None:
        x1, x2 = (min(max(instance.box_xyxy[at], 0.0), float(record.width)) for at in (0, 2))
        y1, y2 = (min(max(instance.box_xyxy[at], 0.0), float(record.height)) for at in (1, 3))
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]
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

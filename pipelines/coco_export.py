"""COCO's files: a prepared data set as an instances file, which evaluation takes as truth, predictions as results."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipelines import commit, predictions, storage
from pipelines.dataset import Dataset
from pipelines.manifest import ClassInfo
from pipelines.masks import polygons_to_rle
from pipelines.predictions import PredictionsManifest
from pipelines.records import Instance, Record


def _segmentation(instance: Instance, record: Record) -> dict[str, Any] | None:
    """The mask as compressed RLE; None where the instance has none."""
    counts = instance.rle
    if instance.polygons is not None:
        counts = polygons_to_rle(instance.polygons, record.height, record.width)
    if counts is None:
        return None
    return {"size": [record.height, record.width], "counts": counts.decode("ascii")}


def annotation(instance: Instance, record: Record, category_id: int) -> dict[str, Any]:
    """One object as a COCO annotation row; without a mask the segmentation is left out."""
    x1, y1, x2, y2 = instance.box_xyxy
    segmentation = _segmentation(instance, record)
    row: dict[str, Any] = {
        "id": instance.id,
        "image_id": record.image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": instance.area,
        "iscrowd": int(instance.crowd or instance.ignore),
    }
    if segmentation is not None:
        row["segmentation"] = segmentation
    if instance.keypoints is not None:
        row["keypoints"] = instance.keypoints.ravel().tolist()
        row["num_keypoints"] = int((instance.keypoints[:, 2] > 0).sum())
    if instance.score != 1.0:
        row["score"] = instance.score
    return row


def categories(classes: Sequence[ClassInfo]) -> list[dict[str, Any]]:
    """Classes as COCO's categories, with their source ids."""
    return [{"id": c.id, "name": c.name} | ({"keypoints": list(c.keypoints)} if c.keypoints else {}) for c in classes]


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """Images, annotations and categories with their source ids; ignored regions become crowds.

    Pictures' bytes are read with their rows but not decoded.
    """
    classes = dataset.manifest.classes
    images, annotations = [], []
    for index in range(len(dataset)):
        record = dataset.record(index)
        images.append(
            {
                "id": record.image_id,
                "file_name": record.file_name,
                "height": record.height,
                "width": record.width,
            }
        )
        annotations += [annotation(i, record, classes[i.label].id) for i in record.instances]
    return {
        "images": images,
        "annotations": annotations,
        "categories": categories(classes),
    }


RESULTS = "results.json"


def write_results(out: str, uri: str, found: PredictionsManifest) -> str:
    """Write results.json into `out`, every detection as COCO's evaluation takes them; its sha256.

    Args:
        out: URI of a folder.
        uri: of the committed predictions; one shard at a time is in memory.
        found: their manifest.

    Raises:
        PredictionsError: a shard is missing or damaged; nothing is written.
        OSError: the store failed.
    """
    pictures = predictions.all_pictures(uri, found)
    rows = (row for picture in pictures for row in predictions.to_results(picture, found.classes))
    return write_json(out, RESULTS, json_list(rows))


def json_list(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Rows as a JSON list, one a line."""
    yield b"["
    for number, row in enumerate(rows):
        yield (b",\n" if number else b"\n") + json.dumps(row, sort_keys=True).encode()
    yield b"\n]\n"


def write_json(out: str, name: str, chunks: Iterable[bytes]) -> str:
    """Write a file as a stream, whole or not at all; its sha256."""
    filesystem, folder = storage.open_uri(out)
    digest = commit.Digest()
    commit.write_chunks(filesystem, storage.join(folder, name), digest.through(chunks))
    return digest.hex

"""COCO's files: a prepared data set as an instances file, which evaluation takes as truth, predictions as results."""

import json
from typing import Any

from pipelines import predictions, storage
from pipelines.dataset import Dataset
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
        "categories": [
            {"id": c.id, "name": c.name} | ({"keypoints": list(c.keypoints)} if c.keypoints else {}) for c in classes
        ],
    }


RESULTS_FILE = "results.json"


def write_results(uri: str, manifest: PredictionsManifest) -> str:
    """Write committed predictions as COCO results beside them, shard by shard; where they are.

    Raises:
        PredictionsError: a shard is missing or damaged.
        OSError: the store failed.
    """
    filesystem, folder = storage.open_uri(uri)
    path = storage.join(folder, RESULTS_FILE)
    with filesystem.open_output_stream(f"{path}.part") as stream:
        separator = b"["
        for picture in predictions.all_pictures(uri, manifest):
            for row in predictions.to_results(picture, manifest.classes):
                stream.write(separator + json.dumps(row).encode())
                separator = b",\n"
        stream.write(b"]\n" if manifest.detections else b"[]\n")
    filesystem.move(f"{path}.part", path)
    return f"{uri.rstrip('/')}/{RESULTS_FILE}"

"""How well a detector did on one picture: a plain number, to choose the pictures that people should look at.

AP needs a whole data set; this is for a single picture, at a fixed score and overlap.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from pipelines.masks import MaskError, polygons_to_rle, validate_rle
from pipelines.predictions import PicturePrediction, PredictionsError
from pipelines.records import Instance, Record

MIN_SCORE = 0.5
"""Detections below are left out, as if they had not been made."""

MIN_IOU = 0.5
"""A detection with less overlap has not found the object."""


class PictureScore(NamedTuple):
    """A detector on one picture.

    Attributes:
        value: 0..1, the mean overlap (IoU) over objects and false detections, where a missed object and a
            false detection count 0; None where there is neither.
        objects: Annotated, crowds and ignored regions not counted.
        found: Of them, those that a detection was matched to.
        false: Detections that found no object and lie on no crowd and no ignored region.
    """

    value: float | None
    objects: int
    found: int
    false: int

    @property
    def mistakes(self) -> int:
        """Missed objects and false detections."""
        return self.objects - self.found + self.false


def score_picture(record: Record, prediction: PicturePrediction, min_score: float = MIN_SCORE) -> PictureScore:
    """Match detections to objects, best score first.

    Each takes the free object of its class that it overlaps most, if by ``MIN_IOU`` or more.

    Args:
        record: The annotated picture.
        prediction: Detections on it.
        min_score: Leave out detections below.

    Returns:
        The score. IoU is that of masks, or of boxes where an object of the picture has no mask.

    Raises:
        PredictionsError: A detection's mask is damaged.
    """
    order = np.argsort(-prediction.scores, kind="stable")
    kept = order[prediction.scores[order] >= min_score]
    instances = record.instances
    regions = np.array([i.crowd or i.ignore for i in instances], bool)
    overlap = overlaps(record, prediction, kept)
    labels = np.array([i.label for i in instances], np.int64)
    overlap = np.where(prediction.labels[kept][:, None] == labels, overlap, 0.0)
    free, total, false = ~regions, 0.0, 0
    for row in overlap:
        candidates = np.where(free, row, 0.0)
        best = int(candidates.argmax()) if len(candidates) else 0
        if len(candidates) and candidates[best] >= MIN_IOU:
            free[best] = False
            total += float(candidates[best])
        elif not (row[regions] >= MIN_IOU).any():
            false += 1
    objects = int((~regions).sum())
    judged = objects + false
    return PictureScore(total / judged if judged else None, objects, objects - int(free.sum()), false)


def overlaps(record: Record, prediction: PicturePrediction, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[kept, objects] of a picture: IoU, or for crowds and ignored regions the share of the detection inside.

    Of masks, or of boxes where an object of the picture has no mask.

    Raises:
        PredictionsError: a detection's mask is damaged.
    """
    instances = record.instances
    if not len(kept) or not instances:
        return np.zeros((len(kept), len(instances)))
    regions = [int(i.crowd or i.ignore) for i in instances]
    truth: list[Any] = [_rle(instance, record) for instance in instances]
    found: list[Any]
    if prediction.rles is not None and all(rle is not None for rle in truth):
        found = [_checked(prediction, prediction.rles[int(index)], int(index)) for index in kept]
        return np.asarray(coco_mask.iou(found, truth, regions), np.float64)
    truth = [_xywh(instance.box_xyxy) for instance in instances]
    found = [_xywh(box) for box in prediction.boxes_xyxy[kept].astype(float).tolist()]
    return np.asarray(coco_mask.iou(np.array(found), np.array(truth), regions), np.float64)


def _rle(instance: Instance, record: Record) -> dict[str, Any] | None:
    counts = instance.rle
    if instance.polygons is not None:
        counts = polygons_to_rle(instance.polygons, record.height, record.width)
    return None if counts is None else {"size": [record.height, record.width], "counts": counts}


def _checked(prediction: PicturePrediction, rle: bytes, index: int) -> dict[str, Any]:
    """Run lengths that pycocotools can be trusted with."""
    size = prediction.height, prediction.width
    try:
        return {"size": list(size), "counts": validate_rle(rle, *size)}
    except MaskError as error:
        raise PredictionsError(
            f"detection {index} on picture {prediction.image_id}: {error}: predict again into another --out"
        ) from error


def _xywh(box: tuple[float, float, float, float] | list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]

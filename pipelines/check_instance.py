"""One annotated object, from raw values to an `Instance` or the reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines import masks
from pipelines.polygons import validate_polygons
from pipelines.records import FloatArray, Instance
from pipelines.rejections import Reason, shown
from pipelines.source_index import as_id

_MAX_KEYPOINTS = 1000


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a source, for checking.

    Attributes:
        labels: label 0..K-1 by category id.
        num_keypoints: by label; 0 where the source names none.
    """

    labels: Mapping[int, int]
    num_keypoints: tuple[int, ...]


class InstanceError(ValueError):
    """One object cannot be used.

    Attributes:
        reason: why.
        field: the field at fault.
        value: what was found, or what is wrong with it.
    """

    def __init__(self, reason: Reason, field: str, value: str) -> None:
        """Keep the three parts of a rejection."""
        super().__init__(f"{reason.value}: {field} = {value}")
        self.reason, self.field, self.value = reason, field, value


def check_instance(raw: object, height: int, width: int, vocabulary: Vocabulary) -> Instance:
    """Check one object of a picture.

    Args:
        raw: as parsed from the source: a mapping with COCO's keys.
        height: of the picture, pixels.
        width: of the picture, pixels.
        vocabulary: the classes.

    Raises:
        InstanceError: any field cannot be used.
    """
    if not isinstance(raw, Mapping):
        raise InstanceError(Reason.BAD_INSTANCE_ID, "annotation", shown(raw))
    instance_id = as_id(raw.get("id"))
    if instance_id is None:
        raise InstanceError(Reason.BAD_INSTANCE_ID, "id", shown(raw.get("id")))
    category = as_id(raw.get("category_id"))
    if category is None or category not in vocabulary.labels:
        raise InstanceError(Reason.UNKNOWN_CATEGORY, "category_id", shown(raw.get("category_id")))
    label = vocabulary.labels[category]
    box = _box(raw.get("bbox"), height, width)
    polygons, rle = _segmentation(raw.get("segmentation"), height, width)
    return Instance(
        id=instance_id,
        label=label,
        box_xyxy=box,
        area=_area(raw.get("area"), box),
        crowd=_flag(raw, "iscrowd"),
        ignore=_flag(raw, "ignore"),
        polygons=polygons,
        rle=rle,
        keypoints=_keypoints(raw.get("keypoints"), vocabulary.num_keypoints[label], height, width),
    )


def _number(value: object) -> float | None:
    if type(value) is float:  # nearly all are
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _box(raw: object, height: int, width: int) -> tuple[float, float, float, float]:
    if not isinstance(raw, list | tuple) or len(raw) != 4:
        raise InstanceError(Reason.BAD_BOX, "bbox", f"{shown(raw)}, wanted four finite numbers x, y, w, h")
    x, y, w, h = raw
    if not (type(x) is type(y) is type(w) is type(h) is float and math.isfinite(x + y + w + h)):  # nearly all are
        numbers = [_number(v) for v in raw]
        if None in numbers:
            raise InstanceError(Reason.BAD_BOX, "bbox", f"{shown(raw)}, wanted four finite numbers x, y, w, h")
        x, y, w, h = (float(n) for n in numbers if n is not None)
    if w <= 0 or h <= 0 or x + w <= x or y + h <= y:
        raise InstanceError(Reason.BAD_BOX, "bbox", f"{shown(raw)}, wanted a positive width and height")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise InstanceError(Reason.BAD_BOX, "bbox", f"{shown(raw)} lies outside of the picture of {height}x{width}")
    if x < -width or y < -height or x + w > 2 * width or y + h > 2 * height:
        raise InstanceError(Reason.BAD_BOX, "bbox", f"{shown(raw)} reaches far outside of {height}x{width}")
    return x, y, x + w, y + h


def _area(raw: object, box: tuple[float, float, float, float]) -> float:
    if raw is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    number = _number(raw)
    if number is None or number < 0:
        raise InstanceError(Reason.BAD_AREA, "area", f"{shown(raw)}, wanted a finite number >= 0")
    return number


def _flag(raw: Mapping[str, object], field: str) -> bool:
    value = raw.get(field, 0)
    if type(value) is int and value == 0:  # nearly all are
        return False
    if not isinstance(value, int) or value not in (0, 1):
        raise InstanceError(Reason.BAD_FLAG, field, f"{shown(value)}, wanted 0 or 1")
    return bool(value)


def _segmentation(raw: object, height: int, width: int) -> tuple[tuple[FloatArray, ...] | None, bytes | None]:
    if raw is None or raw == []:  # data sets of boxes alone
        return None, None
    try:
        if isinstance(raw, Mapping):
            return None, _rle(raw, height, width)
        rings = validate_polygons(raw, height, width)
        if not any(_touches(ring, height, width) for ring in rings):
            raise masks.MaskError("the polygons lie outside of the picture")
        return rings, None
    except masks.MaskError as error:
        raise InstanceError(Reason.BAD_SEGMENTATION, "segmentation", str(error)) from error


def _touches(ring: FloatArray, height: int, width: int) -> bool:
    if 0 <= ring[0] < width and 0 <= ring[1] < height:  # nearly always
        return True
    x, y = ring[0::2], ring[1::2]
    return bool(x.min() < width and x.max() > 0 and y.min() < height and y.max() > 0)


def _rle(raw: Mapping[str, object], height: int, width: int) -> bytes:
    size = raw.get("size")
    if not isinstance(size, list | tuple) or [as_id(s) for s in size] != [height, width]:
        raise masks.MaskError(f"size is {shown(size)}, wanted [{height}, {width}] of the picture")
    counts = masks.validate_rle(raw.get("counts"), height, width)
    if masks.is_empty(counts):
        raise masks.MaskError("the mask covers no pixel")
    return counts


def _keypoints(raw: object, expected: int, height: int, width: int) -> npt.NDArray[np.float32] | None:
    if raw is None:
        return None
    if not isinstance(raw, list | tuple) or len(raw) % 3 or len(raw) > 3 * _MAX_KEYPOINTS:
        raise InstanceError(Reason.BAD_KEYPOINTS, "keypoints", f"{shown(raw)}, wanted a list of x, y, v")
    if expected and len(raw) != 3 * expected:
        raise InstanceError(
            Reason.BAD_KEYPOINTS,
            "keypoints",
            f"{len(raw)} values, wanted 3 x {expected} as the category names",
        )
    numbers = [_number(v) for v in raw]
    if any(n is None for n in numbers):
        raise InstanceError(Reason.BAD_KEYPOINTS, "keypoints", f"{shown(raw)}, wanted finite numbers")
    points = np.array(numbers, np.float64).reshape(-1, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise InstanceError(Reason.BAD_KEYPOINTS, "keypoints", f"v in {shown(raw)}, wanted 0, 1 or 2")
    near = (np.abs(points[:, 0]) <= 2 * width) & (np.abs(points[:, 1]) <= 2 * height)
    if not near[points[:, 2] > 0].all():
        raise InstanceError(Reason.BAD_KEYPOINTS, "keypoints", f"{shown(raw)} reaches far outside of {height}x{width}")
    points[(points[:, 2] == 0) & ~near, :2] = 0  # unlabelled points have no place; a huge one would overflow float32
    return points.astype(np.float32) if len(points) else None

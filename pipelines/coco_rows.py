"""COCO's annotation and result rows, judged before any compiled code sees them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipelines import masks
from pipelines.masks import MaskError, polygons_to_rle, validate_rle
from pipelines.polygons import validate_polygons
from pipelines.rejections import shown
from pipelines.run_lengths import areas

Kind = Literal["bbox", "segm", "keypoints"]
Row = dict[str, Any]

NUM_KEYPOINTS = 17
"""Of COCO's persons; the tolerances of its keypoint metric are defined for these alone."""


@dataclass(frozen=True)
class GroundTruth:
    """Annotations to measure against, checked once; use it for several calls of ``evaluate``.

    Attributes:
        classes: Name by source category id.
        sizes_hw: (height, width) in pixels by picture id.
        annotations: COCO's annotation rows.
    """

    classes: dict[int, str]
    sizes_hw: dict[int, tuple[int, int]]
    annotations: tuple[Row, ...]

    @classmethod
    def from_coco(cls, source: Mapping[str, Any]) -> "GroundTruth":
        """Read and check the content of a COCO instances file.

        Args:
            source: The parsed JSON, with images, annotations and categories.

        Returns:
            The ground truth; ``source`` is not changed.

        Raises:
            ValueError: A part is missing, or an annotation has an unknown picture or category, or a bad box.
        """
        if not isinstance(source, Mapping):
            raise ValueError(
                f"the ground truth is a {type(source).__name__}, wanted an object with images, annotations and "
                "categories: pass the content of a COCO instances file"
            )
        for part in ("images", "annotations", "categories"):
            if not isinstance(source.get(part), list):
                raise ValueError(
                    f"the ground truth has no list {part!r}, its keys are {sorted(source)}: "
                    "pass the content of a COCO instances file"
                )
        try:
            classes = {int(row["id"]): str(row["name"]) for row in source["categories"]}
            sizes = {int(row["id"]): (int(row["height"]), int(row["width"])) for row in source["images"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "the ground truth's images or categories lack a field or hold a bad one "
                f"({type(error).__name__}: {error}), wanted id, height and width of images, id and name of categories: "
                "correct the COCO instances file"
            ) from error
        truth = cls(classes, sizes, tuple(source["annotations"]))
        for position, row in enumerate(truth.annotations):
            where = f"annotations[{position}]"
            if not isinstance(row, Mapping):
                raise ValueError(f"{where} is {shown(row)}, wanted an object: correct the COCO instances file")
            _check_ids(row, truth, where)
            _flag(row, where)
            _check_box(row, where)
            _finite(row, "area", where)
        return truth

    @property
    def without_mask(self) -> int:
        """Objects that nobody drew a mask for, crowds not counted; mask metrics ignore them and what lies on them."""
        return sum(not row.get("segmentation") and not row.get("iscrowd") for row in self.annotations)


def truth_rows(truth: GroundTruth, kind: Kind) -> list[Row]:
    """The annotations as COCOeval takes them.

    Raises:
        ValueError: one is malformed.
    """
    rows = [_truth_row(row, truth, number, kind) for number, row in enumerate(truth.annotations)]
    if kind == "segm":
        _add_truth_masks(rows, truth)
    return rows


def result_rows(results: Sequence[Mapping[str, Any]], truth: GroundTruth, kind: Kind) -> list[Row]:
    """The results as COCOeval takes them.

    Raises:
        ValueError: one is malformed, or names an unknown picture or category.
    """
    rows = [_result_row(row, truth, number, kind) for number, row in enumerate(results)]
    if kind == "segm" and rows:
        return [{**row, **mask} for row, mask in zip(rows, _result_masks(results, truth), strict=True)]
    return rows


def _truth_row(row: Mapping[str, Any], truth: GroundTruth, position: int, kind: Kind) -> Row:
    """A copy for COCOeval to write into. Ids start at 1: it takes a match with id 0 for no match."""
    where = f"annotations[{position}]"
    crowd = _flag(row, where)
    copy: Row = {key: row[key] for key in ("image_id", "category_id", "bbox", "area")}
    copy |= {"id": position + 1, "iscrowd": crowd}
    if kind == "keypoints":
        points = _keypoints(row.get("keypoints", [0] * 3 * NUM_KEYPOINTS), where)
        copy |= {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
    return copy


def _add_truth_masks(rows: list[Row], truth: GroundTruth) -> None:
    """The annotations' masks; the compressed ones that are sound as they stand are judged all at once."""
    sizes = [truth.sizes_hw[row["image_id"]] for row in rows]
    texts = [_plain_counts(row, size_hw) for row, size_hw in zip(truth.annotations, sizes, strict=True)]
    sound = areas(texts, np.array(sizes, np.int64).reshape(-1, 2).prod(axis=1)) >= 0
    for position, (row, raw, size_hw) in enumerate(zip(rows, truth.annotations, sizes, strict=True)):
        if sound[position]:
            row["segmentation"] = {"size": list(size_hw), "counts": texts[position]}
        elif raw.get("segmentation"):
            row["segmentation"] = _truth_rle(raw, size_hw, f"annotations[{position}]")
        else:  # a region in which detections are neither right nor wrong
            row |= {"segmentation": _box_rle(raw["bbox"], size_hw), "iscrowd": 1}


def _box_rle(box: Sequence[float], size_hw: tuple[int, int]) -> Row:
    height, width = size_hw
    left, right = (min(max(value, 0.0), width) for value in (box[0], box[0] + box[2]))
    top, bottom = (min(max(value, 0.0), height) for value in (box[1], box[1] + box[3]))
    ring = np.array([left, top, right, top, right, bottom, left, bottom], np.float64)
    return {"size": list(size_hw), "counts": polygons_to_rle((ring,), *size_hw)}


def _flag(row: Mapping[str, Any], where: str) -> int:
    value = row.get("iscrowd", 0)
    if not isinstance(value, int) or value not in (0, 1):
        raise ValueError(f"{where}: iscrowd is {shown(value)}, wanted 0 or 1: mend the row")
    return int(value)


def _result_row(row: Mapping[str, Any], truth: GroundTruth, position: int, kind: Kind) -> Row:
    """A checked copy, with the area that COCO gives a result of this kind; masks come later, all at once."""
    where = f"results[{position}]"
    _check_ids(row, truth, where)
    copy: Row = {"id": position + 1, "iscrowd": 0, "score": _finite(row, "score", where)}
    copy |= {"image_id": row["image_id"], "category_id": row["category_id"]}
    if kind == "bbox":
        box = _check_box(row, where)
        return copy | {"bbox": box, "area": box[2] * box[3]}
    if kind == "keypoints":
        points = _keypoints(row.get("keypoints"), where)
        x, y = points[0::3], points[1::3]
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        return copy | {"keypoints": points, "bbox": box, "area": box[2] * box[3]}
    return copy


def _check_ids(row: Mapping[str, Any], truth: GroundTruth, where: str) -> None:
    known: tuple[tuple[str, Mapping[int, object], str], ...] = (
        ("image_id", truth.sizes_hw, "pictures"),
        ("category_id", truth.classes, "categories"),
    )
    for key, ids, what in known:
        value = row.get(key)
        # JSON's true and 1.0 are equal to 1 as keys, and neither is an id.
        if isinstance(value, (bool, float)) or not isinstance(value, (int, np.integer)) or value not in ids:
            raise ValueError(
                f"{where}: {key} {value!r} is none of the ground truth's {len(ids)} {what}: "
                "evaluate against the annotations of the same data set"
            )


def _check_box(row: Mapping[str, Any], where: str) -> list[float]:
    box = row.get("bbox")
    try:
        values = [float(value) for value in box] if box is not None else []
    except (TypeError, ValueError):
        values = []
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[2] < 0 or values[3] < 0:
        raise ValueError(f"{where}: bbox is {box!r}, wanted finite [x, y, width, height], sizes >= 0: mend it")
    return values


def _keypoints(value: object, where: str) -> list[float]:
    wanted = 3 * NUM_KEYPOINTS
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(numbers) != wanted or not all(type(v) in (int, float) and math.isfinite(v) for v in numbers):
        raise ValueError(
            f"{where}: keypoints are {str(value)[:60]}, wanted {wanted} finite numbers x, y, v: COCO's keypoint metric "
            f"is defined for the {NUM_KEYPOINTS} of a person"
        )
    return [float(v) for v in numbers]


def _finite(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    try:
        number = float(value) if value is not None else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {key} is {value!r}, wanted a finite number: mend the row")
    return number


def _result_masks(results: Sequence[Mapping[str, Any]], truth: GroundTruth) -> list[Row]:
    """The results' masks with their areas; those that are sound as they stand are judged all at once."""
    sizes = [truth.sizes_hw[row["image_id"]] for row in results]
    texts = [_plain_counts(row, size_hw) for row, size_hw in zip(results, sizes, strict=True)]
    made = []
    for position, area in enumerate(areas(texts, np.array(sizes, np.int64).prod(axis=1)).tolist()):
        rle: Row = {"size": list(sizes[position]), "counts": texts[position]}
        if area < 0:
            rle = _result_rle(results[position], sizes[position], f"results[{position}]")
        made.append({"segmentation": rle, "area": area if area >= 0 else masks.area(rle["counts"])})
    return made


def _plain_counts(row: Mapping[str, Any], size_hw: tuple[int, int]) -> bytes:
    """The counts of a compressed mask of that size; nothing for what has to be looked at alone."""
    segmentation = row.get("segmentation")
    if not isinstance(segmentation, Mapping) or segmentation.get("size") != list(size_hw):
        return b""
    counts = segmentation.get("counts")
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    return counts if isinstance(counts, bytes) else b""


def _result_rle(row: Mapping[str, Any], size_hw: tuple[int, int], where: str) -> Row:
    segmentation = row.get("segmentation")
    if not isinstance(segmentation, Mapping):
        raise ValueError(
            f"{where}: segmentation is a {type(segmentation).__name__}, wanted size and counts: "
            "give a compressed RLE, or evaluate kind bbox"
        )
    return _checked_rle(segmentation, size_hw, where)


def _truth_rle(row: Mapping[str, Any], size_hw: tuple[int, int], where: str) -> Row:
    """The annotated mask as a compressed RLE, from polygons or run lengths of either form."""
    segmentation = row.get("segmentation")
    if isinstance(segmentation, Mapping):
        return _checked_rle(segmentation, size_hw, where)
    try:
        rings = validate_polygons(segmentation, *size_hw)
    except MaskError as error:
        raise ValueError(f"{where}: {error}: mend or remove the annotation") from error
    return {"size": list(size_hw), "counts": polygons_to_rle(rings, *size_hw)}


def _checked_rle(segmentation: Mapping[str, Any], size_hw: tuple[int, int], where: str) -> Row:
    """Run lengths that pycocotools can be trusted with: it reads past its memory where they do not add up."""
    size = segmentation.get("size")
    if not isinstance(size, (list, tuple)) or tuple(size) != size_hw:
        raise ValueError(
            f"{where}: the mask's size is {size!r}, the picture's is {list(size_hw)}: "
            "give masks at the picture's full size, [height, width]"
        )
    try:
        counts = validate_rle(segmentation.get("counts"), *size_hw)
    except MaskError as error:
        raise ValueError(f"{where}: {error}: encode the mask again") from error
    return {"size": list(size_hw), "counts": counts}

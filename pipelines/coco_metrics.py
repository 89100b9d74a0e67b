"""COCO average precision: the one place that calls pycocotools' COCOeval, quietly, on checked input."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.masks import MaskError, polygons_to_rle, validate_polygons, validate_rle

Kind = Literal["bbox", "segm"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve numbers and the AP of each class, 0..1, or -1 where the ground truth has nothing to find.

    Attributes:
        AP: Average precision over IoU 0.50 to 0.95.
        AP50: At IoU 0.50.
        AP75: At IoU 0.75.
        APs: Objects under 32 x 32 pixels.
        APm: Objects from 32 x 32 to 96 x 96 pixels.
        APl: Larger objects.
        AR1: Average recall with 1 detection a picture.
        AR10: With 10.
        AR100: With 100.
        ARs: Recall of small objects, 100 detections.
        ARm: Of medium ones.
        ARl: Of large ones.
        per_class: AP by class name.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """The twelve numbers by name, in COCO's order."""
        return {name: getattr(self, name) for name in STAT_NAMES}


STAT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Metrics) if field.name != "per_class")


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
            _check_ids(row, truth, where)
            _check_box(row, where)
            _finite(row, "area", where)
        return truth


def evaluate(
    ground_truth: GroundTruth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> Metrics:
    """COCO's metrics of ``results``, with pycocotools' default parameters, over every picture and category.

    Args:
        ground_truth: A ``GroundTruth``, or the content of a COCO instances file.
        results: COCO result rows: image_id, category_id, score, and bbox [x, y, w, h] in pixels (for bbox) or
            segmentation, a compressed RLE of the picture's size (for segm). Not changed. May be empty.
        kind: ``bbox`` or ``segm``.

    Returns:
        The metrics. With no results, 0 wherever there is something to find.

    Raises:
        ValueError: A result or an annotation is malformed, or names an unknown picture or category.
    """
    if kind not in ("bbox", "segm"):
        raise ValueError(f"no COCO metric of kind {kind!r}: choose bbox or segm")
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else GroundTruth.from_coco(ground_truth)
    wanted = [_truth_row(row, truth, number, kind) for number, row in enumerate(truth.annotations)]
    found = [_result_row(row, truth, number, kind) for number, row in enumerate(results)]
    # pycocotools prints its progress and its table; neither has a switch.
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(_index(truth, wanted), _index(truth, found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    twelve = {name: float(value) for name, value in zip(STAT_NAMES, run.stats, strict=True)}
    return Metrics(**twelve, per_class=_per_class(run, truth.classes))


def _per_class(run: COCOeval, classes: Mapping[int, str]) -> dict[str, float]:
    """AP by class name, from precision [IoU, recall, class, area, limit] at any area, highest limit."""
    precision = run.eval["precision"][:, :, :, 0, -1]
    scores = {}
    for position, category in enumerate(run.params.catIds):
        known = precision[:, :, position][precision[:, :, position] > -1]
        scores[classes[category]] = float(np.mean(known)) if known.size else -1.0
    return scores


def _index(truth: GroundTruth, rows: list[Row]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": h, "width": w} for number, (h, w) in truth.sizes_hw.items()],
        "categories": [{"id": number, "name": name} for number, name in truth.classes.items()],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def _truth_row(row: Mapping[str, Any], truth: GroundTruth, position: int, kind: Kind) -> Row:
    """A copy for COCOeval to write into. Ids start at 1: it takes a match with id 0 for no match."""
    crowd = int(row.get("iscrowd", 0))
    copy: Row = {key: row[key] for key in ("image_id", "category_id", "bbox", "area")}
    copy |= {"id": position + 1, "iscrowd": crowd}
    if kind == "segm":
        where = f"annotations[{position}]"
        copy["segmentation"] = _truth_rle(row, truth.sizes_hw[row["image_id"]], where)
    return copy


def _result_row(row: Mapping[str, Any], truth: GroundTruth, position: int, kind: Kind) -> Row:
    """A checked copy with the area that COCO gives a result of this kind."""
    where = f"results[{position}]"
    _check_ids(row, truth, where)
    copy: Row = {"id": position + 1, "iscrowd": 0, "score": _finite(row, "score", where)}
    copy |= {"image_id": row["image_id"], "category_id": row["category_id"]}
    if kind == "bbox":
        box = _check_box(row, where)
        return copy | {"bbox": box, "area": box[2] * box[3]}
    rle = _result_rle(row, truth.sizes_hw[row["image_id"]], where)
    return copy | {"segmentation": rle, "bbox": coco_mask.toBbox(rle), "area": coco_mask.area(rle)}


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


def _finite(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    try:
        number = float(value) if value is not None else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {key} is {value!r}, wanted a finite number: mend the row")
    return number


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

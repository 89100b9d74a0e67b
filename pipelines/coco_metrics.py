"""COCO average precision: the one place that calls COCOeval, in its fast form, quietly and on checked input."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from pipelines.coco_rows import GroundTruth, Kind, Row, result_rows, truth_rows
from pipelines.collection import no_collection


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


@dataclass(frozen=True)
class KeypointMetrics:
    """COCO's ten numbers of keypoints and the AP of each class, 0..1, or -1 where there is nothing to find.

    Attributes:
        AP: Average precision over object keypoint similarity 0.50 to 0.95, at most 20 detections a picture.
        AP50: At 0.50.
        AP75: At 0.75.
        APm: Persons from 32 x 32 to 96 x 96 pixels.
        APl: Larger persons.
        AR: Average recall.
        AR50: At 0.50.
        AR75: At 0.75.
        ARm: Of medium persons.
        ARl: Of large ones.
        per_class: AP by class name.
    """

    AP: float
    AP50: float
    AP75: float
    APm: float
    APl: float
    AR: float
    AR50: float
    AR75: float
    ARm: float
    ARl: float
    per_class: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """The ten numbers by name, in COCO's order."""
        return {name: getattr(self, name) for name in KEYPOINT_STAT_NAMES}


STAT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Metrics) if field.name != "per_class")
KEYPOINT_STAT_NAMES: tuple[str, ...] = tuple(
    field.name for field in fields(KeypointMetrics) if field.name != "per_class"
)


def evaluate(
    ground_truth: GroundTruth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> Metrics:
    """COCO's metrics of boxes or masks, with COCO's own parameters, over every picture and category.

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
    stats, per_class = _run(ground_truth, results, kind)
    return Metrics(**dict(zip(STAT_NAMES, stats, strict=False)), per_class=per_class)


def evaluate_keypoints(
    ground_truth: GroundTruth | Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> KeypointMetrics:
    """COCO's metrics of person keypoints, by object keypoint similarity.

    Args:
        ground_truth: A ``GroundTruth``, or the content of a COCO person_keypoints file.
        results: COCO result rows: image_id, category_id, score and keypoints, 17 times x, y and a number that is not
            looked at. Not changed. May be empty.

    Returns:
        The metrics. With no results, 0 wherever there is something to find.

    Raises:
        ValueError: A result or an annotation is malformed, or names an unknown picture or category.
    """
    stats, per_class = _run(ground_truth, results, "keypoints")
    return KeypointMetrics(**dict(zip(KEYPOINT_STAT_NAMES, stats, strict=False)), per_class=per_class)


Curves = dict[str, list[tuple[float, float]]]
"""(recall, precision) by name of the line."""


def evaluate_with_curves(
    ground_truth: GroundTruth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[Metrics | KeypointMetrics, Curves]:
    """The metrics of a kind, keypoints included, and precision at 101 recalls, the mean over the classes.

    Raises:
        ValueError: as of `evaluate`.
    """
    stats, per_class, run = _measured(ground_truth, results, kind)
    is_points = kind == "keypoints"
    names, make = (KEYPOINT_STAT_NAMES, KeypointMetrics) if is_points else (STAT_NAMES, Metrics)
    found = make(**dict(zip(names, stats, strict=False)), per_class=per_class)
    precision = run.eval["precision"][:, :, :, 0, -1]  # [overlap, recall, class]
    known = np.where(precision > -1, precision, np.nan)
    measure = "similarity" if is_points else "IoU"
    lines: Curves = {}
    for name, at in ((f"{measure} 0.50", [0]), (f"{measure} 0.75", [5]), (f"{measure} 0.50 to 0.95", range(10))):
        values = known[list(at)]
        if not np.isnan(values).all():
            mean = np.nanmean(values, axis=(0, 2))
            lines[name] = [(float(x), float(y)) for x, y in zip(run.params.recThrs, mean, strict=True)]
    return found, lines


def _run(
    ground_truth: GroundTruth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[list[float], dict[str, float]]:
    """COCO's summary numbers and the AP of each class."""
    return _measured(ground_truth, results, kind)[:2]


def _measured(
    ground_truth: GroundTruth | Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[list[float], dict[str, float], COCOeval_faster]:
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else GroundTruth.from_coco(ground_truth)
    with no_collection():
        wanted, found = truth_rows(truth, kind), result_rows(results, truth, kind)
        run = COCOeval_faster(_index(truth, wanted), _index(truth, found), kind, print_function=_silent)
        run.evaluate()
        run.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):
        run.summarize()
    return [float(value) for value in run.stats], _per_class(run, truth.classes), run


def _silent(*_: object) -> None:
    """Takes what the evaluation would print."""


def _per_class(run: COCOeval_faster, classes: Mapping[int, str]) -> dict[str, float]:
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

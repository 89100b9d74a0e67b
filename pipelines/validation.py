"""Measuring a checkpoint in one process, and the record of all such measurements of a run."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from model.config import DetectorConfig
from pipelines import checkpoints, commit, figures, storage
from pipelines.coco_export import to_coco
from pipelines.coco_metrics import (
    KEYPOINT_STAT_NAMES,
    STAT_NAMES,
    Curves,
    KeypointMetrics,
    Metrics,
    evaluate_with_curves,
)
from pipelines.coco_rows import NUM_KEYPOINTS, GroundTruth, Kind
from pipelines.dataset import Dataset
from pipelines.inference import cut_batches, predict_batch
from pipelines.manifest import ClassInfo
from pipelines.predictions import to_results

_LOG = logging.getLogger(__name__)
_FOLDER = "measurements"


AnyMetrics = Metrics | KeypointMetrics


class Measured(NamedTuple):
    """What was measured of a checkpoint.

    Attributes:
        metrics: by kind: box, mask, keypoints.
        figures: files to look at, by name.
    """

    metrics: dict[str, AnyMetrics]
    figures: dict[str, bytes]


def kinds_of(detector: DetectorConfig, classes: Sequence[ClassInfo]) -> dict[str, Kind]:
    """What is measured of a detector, by our name: COCO's name."""
    kinds: dict[str, Kind] = {"box": "bbox"}
    if detector.mask.enabled:
        kinds["mask"] = "segm"
    # COCO's metric knows persons of 17 keypoints alone: its tolerances are measured for these.
    if detector.keypoint.enabled and {len(info.keypoints) for info in classes if info.keypoints} == {NUM_KEYPOINTS}:
        kinds["keypoints"] = "keypoints"
    return kinds


def check_metric(metric: str, detector: DetectorConfig, classes: Sequence[ClassInfo]) -> None:
    """Refuse a metric that measuring this detector will never give.

    Raises:
        ValueError: with the ones there are.
    """
    kind, _, name = metric.partition("/")
    kinds = kinds_of(detector, classes)
    if kind not in kinds or name not in (KEYPOINT_STAT_NAMES if kind == "keypoints" else STAT_NAMES):
        raise ValueError(
            f"evaluation.metric must be {' or '.join(f'{kind}/' for kind in kinds)} and one of {', '.join(STAT_NAMES)}"
            f"{' (of keypoints ' + ', '.join(KEYPOINT_STAT_NAMES) + ')' if 'keypoints' in kinds else ''}, got "
            f"{metric!r}"
        )


def measure(
    checkpoint: str, data: str, device: str = "cpu", threads: int = 1, batch: int = 4, pictures: int = 4
) -> Measured:
    """COCO metrics of a checkpoint on a data set, with figures.

    Args:
        checkpoint: its URI.
        data: of the prepared data set, labelled.
        device: where the network runs.
        threads: CPU threads.
        batch: pictures that go through the network together.
        pictures: that are drawn, always the same ones of the data set.

    Raises:
        ValueError: the checkpoint or the data cannot be used.
    """
    torch.set_num_threads(threads)
    held, dataset = checkpoints.load(checkpoint), Dataset(data)
    place = torch.device(device)
    detector = checkpoints.load_detector(held).to(place).eval()
    sizes = [(int(height), int(width)) for height, width in dataset.sizes_hw]
    rows: list[dict[str, Any]] = []
    drawn, shown = figures.chosen(len(dataset), pictures), dict[str, bytes]()
    names = [info.name for info in held.classes]
    for indices in cut_batches(sizes, detector, batch):
        found_in = predict_batch(detector, [dataset.record(i) for i in indices], place)
        for index, found in zip(indices, found_in, strict=True):
            rows += to_results(found, held.classes)
            if index in drawn:
                shown[f"picture-{found.image_id}.jpg"] = figures.picture(dataset, index, found, names)
    truth = GroundTruth.from_coco(to_coco(dataset))
    metrics, curves = dict[str, AnyMetrics](), dict[str, Curves]()
    for name, kind in kinds_of(detector.config, held.classes).items():
        of_kind = [row for row in rows if "keypoints" in row] if kind == "keypoints" else rows
        metrics[name], curves[name] = evaluate_with_curves(truth, of_kind, kind)
    page = figures.curves_page(f"Precision and recall after step {held.step}", curves)
    return Measured(metrics, {"precision-recall.html": page, **shown})


def values_of(found: Mapping[str, AnyMetrics]) -> dict[str, float]:
    """All numbers of metrics by name: box/AP, mask/AP50, ..., and mask/AP of CLASS."""
    values = {f"{kind}/{name}": value for kind, part in found.items() for name, value in part.numbers().items()}
    for kind, part in found.items():
        values |= {f"{kind}/AP of {name}": value for name, value in part.per_class.items()}
    return values


class Measurements:
    """What was measured of a run, on file beside its checkpoints: a restarted run does not measure again.

    Attributes:
        values: numbers by name, by step.
    """

    def __init__(self, run: str, metric: str) -> None:
        """Read what is there; a file that is damaged is as none, and its checkpoint is measured again.

        Args:
            run: folder or URI of the run.
            metric: the name of the value by which a checkpoint is better than another.
        """
        self._run, self._metric = run.rstrip("/"), metric
        self.values: dict[int, dict[str, float]] = {}
        filesystem, folder = storage.open_uri(storage.child_uri(self._run, _FOLDER))
        if storage.is_folder(filesystem, folder):
            for info in storage.list_files(filesystem, folder):
                if info.base_name.startswith("step-"):
                    try:
                        body = json.loads(storage.read_bytes(filesystem, info.path))
                        values = {str(name): float(value) for name, value in body["values"].items()}
                        self.values[int(body["step"])] = values
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                        _LOG.warning("%s is damaged (%s): measured again where its checkpoint is", info.path, error)

    def add(self, step: int, found: Mapping[str, AnyMetrics]) -> dict[str, float]:
        """Commit the measurement of a step; its values.

        Raises:
            ValueError: the metric is none of what was measured.
        """
        values = values_of(found)
        if self._metric not in values:
            raise ValueError(
                f"the best checkpoint is chosen by {self._metric}, measured were {', '.join(found)}: set "
                "--evaluation.metric, for a detector without masks box/AP"
            )
        self.values[step] = values
        body = {"step": step, "values": self.values[step]}
        body |= {kind: dataclasses.asdict(part) for kind, part in found.items()}
        filesystem, folder = storage.open_uri(storage.child_uri(self._run, _FOLDER))
        name = f"step-{step:08d}.json"
        commit.write_file(filesystem, storage.join(folder, name), json.dumps(body, indent=1).encode())
        return self.values[step]

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint, the earliest of equals; None where none was measured by the metric."""
        known = sorted(step for step, values in self.values.items() if self._metric in values)
        return max(known, key=lambda step: self.values[step][self._metric], default=None)

    @property
    def since_best(self) -> int:
        """Measurements after the best one."""
        best = self.best
        return 0 if best is None else sum(step > best for step in self.values)

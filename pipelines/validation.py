"""Measuring a checkpoint in one process, and the record of all such measurements of a run."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch

from pipelines import checkpoints, commit, storage
from pipelines.coco_export import to_coco
from pipelines.coco_metrics import Metrics, evaluate
from pipelines.coco_rows import GroundTruth
from pipelines.dataset import Dataset
from pipelines.inference import cut_batches, predict_batch
from pipelines.predictions import to_results

_FOLDER = "measurements"


def measure(checkpoint: str, data: str, device: str = "cpu", threads: int = 1, batch: int = 4) -> dict[str, Metrics]:
    """COCO metrics of a checkpoint on a data set, by kind (box, mask).

    Args:
        checkpoint: its URI.
        data: of the prepared data set, labelled.
        device: where the network runs.
        threads: CPU threads.
        batch: pictures that go through the network together.

    Raises:
        ValueError: the checkpoint or the data cannot be used.
    """
    torch.set_num_threads(threads)
    held, dataset = checkpoints.load(checkpoint), Dataset(data)
    place = torch.device(device)
    detector = checkpoints.load_detector(held).to(place).eval()
    sizes = [(int(height), int(width)) for height, width in dataset.sizes_hw]
    rows: list[dict[str, Any]] = []
    for indices in cut_batches(sizes, detector, batch):
        for picture in predict_batch(detector, [dataset.record(i) for i in indices], place):
            rows += to_results(picture, held.classes)
    truth = GroundTruth.from_coco(to_coco(dataset))
    found = {"box": evaluate(truth, rows, "bbox")}
    return found | {"mask": evaluate(truth, rows, "segm")} if detector.config.mask.enabled else found


def values_of(found: Mapping[str, Metrics]) -> dict[str, float]:
    """All numbers of metrics by name: box/AP, mask/AP50, ..., and mask/AP of CLASS."""
    values = {f"{kind}/{name}": value for kind, part in found.items() for name, value in part.numbers().items()}
    for kind, part in found.items():
        values |= {f"{kind}/AP of {name}": value for name, value in part.per_class.items()}
    return values


class Measurements:
    """What was measured of a run, on file beside its checkpoints: a restarted run does not measure again."""

    def __init__(self, run: str, metric: str) -> None:
        """Read what is there.

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
                    body = json.loads(storage.read_bytes(filesystem, info.path))
                    self.values[int(body["step"])] = body["values"]

    def add(self, step: int, found: Mapping[str, Metrics]) -> dict[str, float]:
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
        """Step of the best checkpoint, the earliest of equals; None where nothing is measured."""
        return max(sorted(self.values), key=lambda step: self.values[step][self._metric], default=None)

    @property
    def since_best(self) -> int:
        """Measurements after the best one."""
        best = self.best
        return 0 if best is None else sum(step > best for step in self.values)

"""The evaluate command: COCO AP of a detector on a prepared data set, or of a results file."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import checkpoints, cityscapes_results, commit, predict, predictions, storage
from pipelines.cityscapes_results import CityscapesMetrics
from pipelines.coco_export import to_coco
from pipelines.coco_metrics import KeypointMetrics, Metrics, evaluate, evaluate_keypoints
from pipelines.coco_rows import NUM_KEYPOINTS, GroundTruth
from pipelines.config import Precision
from pipelines.dataset import Dataset
from pipelines.predictions import PredictionsManifest

_FILE_NAME = "metrics.json"


class Protocol(enum.Enum):
    """Whose rules measure a detector."""

    COCO = "coco"
    CITYSCAPES = "cityscapes"  # the official instance AP, beside COCO's


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Measure COCO AP, of boxes and of masks.

    Either a checkpoint on a prepared data set (--checkpoint, --data, --out), or COCO results against COCO
    annotations, both as files (--annotations, --results).

    Attributes:
        checkpoint: a checkpoint, or a training run (its latest checkpoint).
        data: prepared data set with labels.
        out: folder or URI of the predictions and metrics; the same command goes on where it stopped.
        annotations: COCO instances file.
        results: COCO results file, with bbox, segmentation or keypoints in every row.
        views: what is merged on each picture: none, fast, paper or sizes, as `maskray predict` takes them.
        precision: fp32, bf16 or fp16.
        batch: most views of pictures held at a time.
        workers: processes, each with a detector; 0 takes one for each free CPU (or GPU).
        cpus_per_worker: CPU cores and threads of each.
        gpu: one GPU a worker.
        address: Ray cluster to use; empty starts one on this machine.
        protocol: coco, or cityscapes: its official AP too, with the results in its format in OUT/cityscapes.
        truth: local folder CITY/*_gtFine_instanceIds.png of the split; empty takes the one the data was made from.
    """

    checkpoint: str = ""
    data: str = ""
    out: str = ""
    annotations: str = ""
    results: str = ""
    views: str = "none"
    precision: Precision = Precision.FP32
    batch: int = 4
    workers: int = 0
    cpus_per_worker: int = 1
    gpu: bool = False
    address: str = ""
    protocol: Protocol = Protocol.COCO
    truth: str = ""

    def __post_init__(self) -> None:
        """Check that one of the two forms is complete.

        Raises:
            ValueError: it is not.
        """
        of_detector = (self.checkpoint, self.data, self.out)
        of_files = (self.annotations, self.results)
        if not (all(of_detector) and not any(of_files)) and not (all(of_files) and not any(of_detector)):
            given = [f"--{field.name}" for field in dataclasses.fields(self)[:5] if getattr(self, field.name)]
            raise ValueError(
                "evaluate needs either --checkpoint, --data and --out, or --annotations and --results, "
                f"got {', '.join(given) or 'none of them'}"
            )
        if self.protocol is Protocol.CITYSCAPES and self.results:
            raise ValueError("the cityscapes protocol measures a detector: give --checkpoint, --data and --out")


class Evaluation(NamedTuple):
    """Metrics; a part that was not predicted, or not measured, is None.

    Attributes:
        box: of the boxes.
        mask: of the masks.
        predictions: URI of the predictions, empty where a results file was measured.
        data: URI of the data set, empty where a results file was measured.
        keypoints: of the keypoints.
        cityscapes: Cityscapes' own instance AP of the masks.
        without_mask: annotated objects that have no mask, so that COCO's metrics of masks ignore them.
    """

    box: Metrics | None
    mask: Metrics | None
    predictions: str = ""
    data: str = ""
    keypoints: KeypointMetrics | None = None
    cityscapes: CityscapesMetrics | None = None
    without_mask: int = 0


class EvaluationError(ValueError):
    """Data or results that cannot be measured."""


def _read_json(uri: str) -> Any:
    filesystem, path = storage.open_uri(uri)
    try:
        return json.loads(storage.read_bytes(filesystem, path))
    except FileNotFoundError as error:
        raise EvaluationError(f"there is no file {uri}: give a COCO json file") from error
    except OSError as error:
        raise EvaluationError(f"cannot read {uri} ({error}): give a COCO json file") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{uri} is not JSON ({error}): give a COCO json file") from error


def measure_files(annotations: str, results: str) -> Evaluation:
    """Metrics of a COCO results file against a COCO instances file.

    Raises:
        ValueError: a file is missing, malformed, or names unknown pictures or categories.
    """
    truth = GroundTruth.from_coco(_read_json(annotations))
    rows = _read_json(results)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{results} is not a list of COCO results: give what COCO's evaluation takes")
    has_box = all("bbox" in row for row in rows)
    has_mask = all("segmentation" in row for row in rows)
    has_points = bool(rows) and all("keypoints" in row for row in rows)
    if not (has_box or has_mask or has_points):
        raise EvaluationError(f"{results} has rows without bbox, segmentation and keypoints: one of them is needed")
    return Evaluation(
        evaluate(truth, rows, "bbox") if has_box else None,
        evaluate(truth, rows, "segm") if has_mask else None,
        keypoints=evaluate_keypoints(truth, rows) if has_points else None,
        without_mask=truth.without_mask if has_mask else 0,
    )


def measure(dataset: Dataset, uri: str) -> Evaluation:
    """Metrics of committed predictions on the data set they were made on.

    Raises:
        ValueError: predictions of another data set, or data without labels.
    """
    manifest = PredictionsManifest.load(uri)
    if manifest.dataset != dataset.manifest.hash:
        raise EvaluationError(f"the predictions at {uri} were made on other data than {dataset.uri}: predict again")
    if manifest.classes != dataset.manifest.classes:
        raise EvaluationError(
            f"the detector knows {[info.name for info in manifest.classes]}, {dataset.uri} has "
            f"{list(dataset.manifest.names)}: evaluate on data of the detector's classes"
        )
    return _measure_rows(dataset, uri, *_rows(uri, manifest))


class _Parts(NamedTuple):
    """What a detector has beside boxes."""

    masks: bool
    keypoints: bool


def _rows(uri: str, manifest: PredictionsManifest) -> tuple[list[dict[str, Any]], _Parts]:
    """COCO's result rows of committed predictions, and what they hold."""
    rows, has_masks, has_keypoints = [], True, False
    for picture in predictions.all_pictures(uri, manifest):
        if picture.rejected:
            continue
        rows += predictions.to_results(picture, manifest.classes)
        has_masks = has_masks and picture.rles is not None
        has_keypoints = has_keypoints or picture.keypoints is not None
    # COCO's metric knows persons of 17 keypoints alone: its tolerances are measured for these.
    counts = {len(info.keypoints) for info in manifest.classes if info.keypoints}
    return rows, _Parts(has_masks, has_keypoints and counts == {NUM_KEYPOINTS})


def _measure_rows(dataset: Dataset, uri: str, rows: list[dict[str, Any]], has: _Parts) -> Evaluation:
    truth = GroundTruth.from_coco(to_coco(dataset))
    with_points = [row for row in rows if "keypoints" in row]
    return Evaluation(
        evaluate(truth, rows, "bbox"),
        evaluate(truth, rows, "segm") if has.masks else None,
        uri,
        dataset.uri,
        evaluate_keypoints(truth, with_points) if has.keypoints else None,
        without_mask=truth.without_mask if has.masks else 0,
    )


def measure_cityscapes(dataset: Dataset, uri: str, truth: str) -> CityscapesMetrics:
    """Cityscapes' official AP of committed predictions; its result files are written beside them.

    Raises:
        ValueError: a folder that is not local, other data, or missing ground truth.
    """
    folders = {"--out": uri, "--truth": truth or dataset.manifest.source.get("labels", "")}
    for flag, folder in folders.items():
        if not folder or not storage.is_local(storage.open_uri(folder)[0]):
            raise EvaluationError(f"{flag} is {folder!r}: Cityscapes' scripts read local folders alone; give one")
    out, truth_folder = (Path(storage.open_uri(folder)[1]) for folder in folders.values())
    names = cityscapes_results.write_results(dataset, PredictionsManifest.load(uri), uri, out / "cityscapes")
    return cityscapes_results.measure(out / "cityscapes", names, truth_folder)


def check_fits(checkpoint: checkpoints.Checkpoint, dataset: Dataset) -> None:
    """Refuse data a detector cannot be measured on, before hours are spent on predicting.

    Raises:
        EvaluationError: other classes, or pictures nobody labelled.
    """
    if checkpoint.classes != dataset.manifest.classes:
        raise EvaluationError(
            f"the checkpoint {checkpoint.uri} has the classes {[info.name for info in checkpoint.classes]}, "
            f"{dataset.uri} has {list(dataset.manifest.names)}: use a checkpoint trained on these classes"
        )
    if dataset.manifest.labelled_images < len(dataset):
        raise EvaluationError(
            f"{dataset.uri} has {len(dataset) - dataset.manifest.labelled_images} pictures without labels: "
            "AP is defined on labelled data alone"
        )


def run(config: EvaluateConfig) -> Evaluation:
    """Predict (or go on predicting), measure, and write metrics.json beside the predictions.

    Raises:
        ValueError: the inputs do not fit; the message says what to do.
    """
    if config.results:
        return measure_files(config.annotations, config.results)
    dataset = Dataset(config.data)
    check_fits(checkpoints.load(config.checkpoint), dataset)
    predict.run(
        predict.PredictConfig(
            config.checkpoint, config.data, config.out, config.views, precision=config.precision, batch=config.batch,
            workers=config.workers, cpus_per_worker=config.cpus_per_worker, gpu=config.gpu, address=config.address,
        )
    )  # fmt: skip
    found = measure(dataset, config.out)
    if config.protocol is Protocol.CITYSCAPES:
        found = found._replace(cityscapes=measure_cityscapes(dataset, config.out, config.truth))
    measured = (("box", found.box), ("mask", found.mask), ("keypoints", found.keypoints))
    parts = {name: metrics for name, metrics in measured if metrics}
    body: dict[str, Any] = {name: metrics.numbers() for name, metrics in parts.items()}
    body["per_class"] = {name: metrics.per_class for name, metrics in parts.items()}
    if found.cityscapes is not None:
        body["cityscapes"] = dataclasses.asdict(found.cityscapes)
    body |= {"data": storage.canonical_uri(config.data), "without_mask": found.without_mask}
    filesystem, folder = storage.open_uri(config.out)
    commit.write_file(filesystem, storage.join(folder, _FILE_NAME), json.dumps(body, indent=1).encode())
    return found


def load(uri: str) -> Evaluation:
    """What `run` measured and wrote into the folder of the predictions.

    Raises:
        EvaluationError: there is no finished evaluation, or its file is damaged.
    """
    filesystem, folder = storage.open_uri(uri)
    path = storage.join(folder, _FILE_NAME)
    if not storage.is_file(filesystem, path):
        raise EvaluationError(f"{uri} holds no finished evaluation: run `maskray evaluate` with --out {uri}")
    try:
        body = json.loads(storage.read_bytes(filesystem, path))
        kinds = {"box": Metrics, "mask": Metrics, "keypoints": KeypointMetrics}
        parts = {
            kind: make(**body[kind], per_class=body["per_class"][kind]) for kind, make in kinds.items() if kind in body
        }
        official = CityscapesMetrics(**body["cityscapes"]) if "cityscapes" in body else None
        ignored = int(body.get("without_mask", 0))
        return Evaluation(
            parts["box"], parts.get("mask"), uri, str(body["data"]), parts.get("keypoints"), official, ignored
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} is damaged ({error}): evaluate again into another --out") from error

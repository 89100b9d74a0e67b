"""Cityscapes' own protocol: its result format, and its instance AP by its own scripts."""

import contextlib
import io
import math
import tempfile
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines import masks, predictions
from pipelines.dataset import Dataset
from pipelines.datasets import cityscapes
from pipelines.manifest import ClassInfo
from pipelines.predictions import PicturePrediction, PredictionsManifest

_PICTURE = "_leftImg8bit.png"
_TRUTH = "_gtFine_instanceIds.png"


class CityscapesResultsError(ValueError):
    """Predictions or ground truth that Cityscapes' protocol cannot measure; one line that says what to do."""


@dataclass(frozen=True)
class CityscapesMetrics:
    """Cityscapes' instance AP, 0..1, or -1 where the ground truth has nothing to find.

    Attributes:
        AP: Mean over classes and over mask IoU 0.50 to 0.95; false positives on groups and void count for nothing.
        AP50: At IoU 0.50.
        per_class: AP by class name.
        per_class50: AP at IoU 0.50 by class name.
    """

    AP: float
    AP50: float
    per_class: dict[str, float]
    per_class50: dict[str, float]


def write_results(dataset: Dataset, found: PredictionsManifest, uri: str, folder: Path) -> list[str]:
    """Write predictions in Cityscapes' result format: a text file a picture that lists binary PNGs.

    Args:
        dataset: what the predictions were made on.
        found: their manifest.
        uri: their folder.
        folder: a local folder; made if needed, and emptied of an earlier run's results.

    Returns:
        Names of the pictures, such as frankfurt/frankfurt_000000_000294, in the data set's order.

    Raises:
        CityscapesResultsError: the data set is not Cityscapes.
    """
    foreign = [info.name for info in found.classes if info not in cityscapes.CLASSES]
    if foreign:
        raise CityscapesResultsError(
            f"the classes {foreign} are not Cityscapes': this protocol is for detectors trained on `maskray prepare "
            "cityscapes` data"
        )
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("*.txt"), *folder.glob("masks/*.png")):
        stale.unlink()
    names = []
    for index, picture in enumerate(predictions.all_pictures(uri, found)):
        name = dataset.record(index).file_name
        if not name.endswith(_PICTURE):
            raise CityscapesResultsError(f"{name} is no name of a Cityscapes picture (city/*{_PICTURE})")
        names.append(name.removesuffix(_PICTURE))
        _write_picture(picture, found.classes, folder, Path(names[-1]).name)
    return names


def _write_picture(picture: PicturePrediction, classes: Sequence[ClassInfo], folder: Path, name: str) -> None:
    if picture.rejected:  # nothing was found there, and the scripts want a file for every picture
        (folder / f"{name}_pred.txt").write_text("")
        return
    if picture.rles is None:
        raise CityscapesResultsError("Cityscapes measures masks and the detector has none: use one with a mask head")
    lines = []
    for number, (rle, label, score) in enumerate(zip(picture.rles, picture.labels, picture.scores, strict=True)):
        file = f"masks/{name}_{number}.png"
        bitmap = masks.rasterise(rle, picture.height, picture.width)
        Image.fromarray(bitmap * 255).convert("1").save(folder / file)
        lines.append(f"{file} {classes[int(label)].id} {float(score):.9g}\n")
    (folder / f"{name}_pred.txt").write_text("".join(lines))


def measure(results: Path, names: Sequence[str], truth: Path) -> CityscapesMetrics:
    """The official AP of a folder of results.

    Args:
        results: local folder that `write_results` made.
        names: of the pictures to measure on, as `write_results` returns them.
        truth: local folder with CITY/*_gtFine_instanceIds.png of these pictures.

    Raises:
        CityscapesResultsError: cityscapesScripts is not installed, or a picture's ground truth is missing.
    """
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as Official
    except ImportError as error:
        raise CityscapesResultsError(
            f"the Cityscapes protocol needs cityscapesScripts ({error}): pip install 'maskray[cityscapes]'"
        ) from error
    truths = [str(truth / f"{name}{_TRUTH}") for name in names]
    missing = next((file for file in truths if not Path(file).is_file()), None)
    if missing is not None:
        raise CityscapesResultsError(f"there is no {missing}: give the folder of the split below gtFine")
    texts = [str(results / f"{Path(name).name}_pred.txt") for name in names]
    settings = copy(Official.args)
    settings.quiet, settings.JSONOutput = True, False
    settings.predictionPath = str(results.absolute())
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        # Its cache of the ground truth, left beside the script, silently serves other ground truth later.
        settings.gtInstancesFile = str(Path(scratch) / "gtInstances.json")
        Official.setInstanceLabels(settings)
        instances = Official.getGtInstances(truths, settings)
        matches = Official.matchGtWithPreds(texts, truths, instances, settings)
        averages: dict[str, Any] = Official.computeAverages(Official.evaluateMatches(matches, settings), settings)
    by_class = averages["classes"]
    return CityscapesMetrics(
        AP=_known(averages["allAp"]),
        AP50=_known(averages["allAp50%"]),
        per_class={name: _known(found["ap"]) for name, found in by_class.items()},
        per_class50={name: _known(found["ap50%"]) for name, found in by_class.items()},
    )


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else float(value)

"""What the distill command reads: opened, and refused where it does not belong together."""

from typing import NamedTuple

from pipelines import checkpoints, leakage
from pipelines.checkpoints import Checkpoint
from pipelines.dataset import Dataset
from pipelines.distill_config import DistillConfig
from pipelines.holdout import held_out_by
from pipelines.labelled_rates import LabelledCounts, count_labels
from pipelines.manifest import ClassInfo, Manifest
from pipelines.pool_shards import PoolShards
from pipelines.predictions import PredictionsManifest


class DistillError(ValueError):
    """Inputs that do not belong together, or a selection that keeps nothing."""


class Inputs(NamedTuple):
    """What a distillation reads, opened and checked.

    Attributes:
        pool: what the pool says of itself.
        labelled: what people labelled.
        found: what the predictions say of themselves.
        teacher: the checkpoint that predicted; None where it is not named.
        counts: objects a class that people annotated.
        source: the pool's shards with their detections.
    """

    pool: Manifest
    labelled: Dataset
    found: PredictionsManifest
    teacher: Checkpoint | None
    counts: LabelledCounts
    source: PoolShards


def open_inputs(config: DistillConfig) -> Inputs:
    """Open everything, and refuse what does not belong together.

    Raises:
        DistillError: other data, classes or teacher, no labels, or validation pictures among the labelled ones.
    """
    pool, labelled = Manifest.load(config.pool), Dataset(config.labelled)
    found = PredictionsManifest.load(config.predictions)
    teacher = checkpoints.load(config.teacher) if config.teacher else None
    if found.dataset != pool.hash:
        raise DistillError(f"{config.predictions} was made on other data than {config.pool}: predict on this pool")
    if found.classes != labelled.manifest.classes:
        raise DistillError(
            f"the detector's classes {_names(found.classes)} are not those of {config.labelled} "
            f"{_names(labelled.manifest.classes)}: give the data set the detector was trained on"
        )
    if teacher is not None and teacher.hash != found.checkpoint:
        raise DistillError(
            f"{config.predictions} was not made by {teacher.uri}: give the checkpoint that predicted as --teacher"
        )
    held_out = held_out_by(teacher).get(labelled.manifest.hash, frozenset()) if teacher else frozenset()
    counts = count_labels(labelled, held_out)
    if not counts.pictures:
        raise DistillError(f"{config.labelled} has no labelled picture: give the data set the detector was trained on")
    measured = [Dataset(config.val)] if config.val else []
    leak = leakage.leak_between(labelled, measured)
    if leak.count:
        raise DistillError(
            f"{leak} of {config.labelled} are validation pictures of {config.val}: what is measured there would be "
            "too good; take them out of one of the two"
        )
    cap = teacher.detector.box.max_detections if teacher else 0
    known = leakage.hashes_of([labelled, *measured])
    source = PoolShards.of((config.pool, config.predictions), pool, found, known, cap)
    return Inputs(pool, labelled, found, teacher, counts, source)


def _names(classes: tuple[ClassInfo, ...]) -> list[str]:
    return [info.name for info in classes]


def identity(config: DistillConfig, inputs: Inputs) -> dict[str, str]:
    """What the result depends on; hashes instead of places."""
    return {
        "kind": "distill",
        "pool": inputs.pool.hash,
        "labelled": inputs.labelled.manifest.hash,
        "val": Manifest.load(config.val).hash if config.val else "",
        "predictions": inputs.found.hash,
        "teacher": inputs.found.checkpoint,
        # It brings the pictures held out, the cap of detections and the chain of where labels come from.
        "teacher_named": str(inputs.teacher is not None),
        "held_out": str(inputs.counts.held_out),
        "min_score": str(config.min_score),
        "max_score": str(config.max_score),
        "uncertain": str(config.uncertain),
        "weight": config.weight.value,
        "min_keypoint_score": str(config.min_keypoint_score),
        "keep_empty": str(config.keep_empty),
        "leaked": config.leaked.value,
        "coco": str(config.coco),
    }

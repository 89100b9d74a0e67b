"""Checkpoints of weights alone, to start training from, with what their origin needs for the way back."""

from collections.abc import Mapping

from torch import Tensor

from model.checkpoint import to_bytes
from model.detector import Detector
from pipelines import checkpoints, commit
from pipelines.checkpoints import Checkpoint, CheckpointError, Snapshot
from pipelines.manifest import ClassInfo

_REMAINDER = "remainder"


def save(uri: str, detector: Detector, classes: tuple[ClassInfo, ...], remainder: Mapping[str, Tensor]) -> Checkpoint:
    """Write a checkpoint without an optimiser at `uri`; the same one again changes nothing.

    Args:
        uri: its folder.
        detector: with the weights.
        classes: in the order of labels.
        remainder: what of another framework's weights the detector has no place for, by their names.

    Raises:
        CheckpointError: another checkpoint is there.
    """
    files: dict[str, Mapping[str, Tensor]] = {checkpoints.MODEL_FILE: detector.state_dict()}
    if remainder:
        files[f"{_REMAINDER}.safetensors"] = remainder
    made = Snapshot(0, detector.config, classes, files)
    found = checkpoints.write_at(uri, made)
    hashes = {name: commit.sha256_of(to_bytes(tensors)) for name, tensors in files.items()}
    if (found.step, found.detector, found.classes, dict(found.files)) != (0, detector.config, classes, hashes):
        raise CheckpointError(f"{uri} holds another checkpoint, which was left alone: choose another folder")
    return found


def load_remainder(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What `save` kept for the way back; empty where there is nothing.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return checkpoints.load_extra(checkpoint, _REMAINDER)

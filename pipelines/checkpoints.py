"""Checkpoints of training runs: where they are, which are kept, and what becomes of them when a run goes on.

Nothing is overwritten, and a checkpoint that is deleted loses its manifest first.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyarrow import fs as pafs
from torch import Tensor

from model.build import build_detector
from model.checkpoint import from_bytes, load_strict
from model.detector import Detector
from pipelines import commit, storage
from pipelines.checkpoint_files import (
    AVERAGE_FILE,
    FILE_NAME,
    MODEL_FILE,
    OPTIMISER_FILE,
    Checkpoint,
    CheckpointError,
    Snapshot,
    exists,
    read,
    read_bytes,
    snapshot,
    write_at,
)
from pipelines.manifest import ClassInfo

__all__ = [
    "FILE_NAME", "MODEL_FILE", "Checkpoint", "CheckpointError", "Snapshot", "at_step", "latest", "load",
    "load_detector", "load_extra", "model_files", "restore", "retain", "save", "set_damaged_aside", "snapshot",
    "steps", "write", "write_at",
]  # fmt: skip

_FOLDER = "checkpoints"


def _unflatten(flat: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        # Fused optimisers walk through memory: state must lie there as its parameter does (channels last).
        laid = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        state.setdefault(int(number), {})[name] = laid
    return {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}


def write(run: str, made: Snapshot) -> Checkpoint:
    """Write a snapshot below the run's folder, the manifest last; a committed one of that step is left as it is.

    Raises:
        OSError: the store failed; the checkpoint does not exist.
    """
    return write_at(_uri_of(run, made.step), made)


def save(
    run: str, step: int, detector: Detector, optimiser: torch.optim.Optimizer, classes: tuple[ClassInfo, ...]
) -> Checkpoint:
    """Write the checkpoint of `step` below the run's folder; a committed one of that step is left as it is."""
    return write(run, snapshot(step, detector, optimiser, classes))


def load(uri: str) -> Checkpoint:
    """The checkpoint at `uri`, or the latest one where `uri` is a training run.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    if exists(uri):
        return read(uri)
    found = latest(uri)
    if found is None:
        raise CheckpointError(
            f"{uri} holds no finished checkpoint: give the --out of `maskray train`, or one of its checkpoints/step-*"
        )
    return found


def _uri_of(run: str, step: int) -> str:
    return storage.child_uri(run, _FOLDER, f"step-{step:08d}")


def _folders(run: str) -> list[int]:
    """Steps of the run's checkpoint folders, finished or not, ascending."""
    filesystem, root = storage.open_uri(run)
    folder = storage.join(root, _FOLDER)
    if not storage.is_folder(filesystem, folder):
        return []
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(folder))]
    return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d{8}", name))


def steps(run: str) -> list[int]:
    """Steps of the run's committed checkpoints, ascending."""
    return [step for step in _folders(run) if exists(_uri_of(run, step))]


def at_step(run: str, step: int) -> Checkpoint:
    """The run's checkpoint of a step.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    return load(_uri_of(run, step))


def latest(run: str) -> Checkpoint | None:
    """The newest committed checkpoint of a run, or None."""
    known = steps(run)
    return at_step(run, known[-1]) if known else None


def retain(run: str, keep: int, protected: Collection[int]) -> list[int]:
    """Delete all but the newest `keep` checkpoints (0: none is deleted) and the `protected` ones; the steps deleted.

    What an earlier process deleted or wrote by half goes too, where a newer checkpoint is there.
    """
    known = steps(run)
    doomed = [step for step in known[:-keep] if step not in protected] if keep else []
    filesystem, root = storage.open_uri(run)
    for step in doomed:
        # Without its manifest it is no checkpoint any more, whatever becomes of the rest.
        storage.delete_file(filesystem, storage.join(root, _FOLDER, f"step-{step:08d}", FILE_NAME))
    halves = [step for step in _folders(run) if known and step < known[-1] and step not in known]
    for step in (*doomed, *halves):
        filesystem.delete_dir(storage.join(root, _FOLDER, f"step-{step:08d}"))
    return doomed


def set_damaged_aside(run: str) -> list[str]:
    """Make the newest sound checkpoint the newest one: those after it lose their manifests; why, a line for each.

    Raises:
        CheckpointError: there are checkpoints and none is sound.
    """
    damaged: list[tuple[int, str]] = []
    for step in reversed(steps(run)):
        try:
            found = at_step(run, step)
            for name in found.files:
                read_bytes(found, name)
            break
        except CheckpointError as error:
            damaged.append((step, str(error)))
    else:
        if damaged:
            raise CheckpointError(
                f"no checkpoint of {run} is sound ({damaged[0][1]}): put back a copy, or train into another --out"
            )
    filesystem, root = storage.open_uri(run)
    for step, _ in damaged:
        path = storage.join(root, _FOLDER, f"step-{step:08d}", FILE_NAME)
        commit.write_file(filesystem, f"{path}.damaged", storage.read_bytes(filesystem, path))
        storage.delete_file(filesystem, path)
    return [reason for _, reason in damaged]


def _read_checked(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    return from_bytes(read_bytes(checkpoint, name))


def model_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """What is needed to predict with a checkpoint, by file name: a folder of them loads as the checkpoint does.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    weights = AVERAGE_FILE if AVERAGE_FILE in checkpoint.files else MODEL_FILE
    filesystem, folder = storage.open_uri(checkpoint.uri)
    manifest = storage.read_bytes(filesystem, storage.join(folder, FILE_NAME))
    return {checkpoint.stored(weights): read_bytes(checkpoint, weights), FILE_NAME: manifest}


def load_extra(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """What the snapshot was given as `extra` under this name; empty where it was given nothing."""
    file = f"{name}.safetensors"
    return _read_checked(checkpoint, file) if file in checkpoint.files else {}


def load_detector(checkpoint: Checkpoint) -> Detector:
    """The detector of a checkpoint, in training mode on the CPU; of its averaged weights where it has them.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    detector = build_detector(checkpoint.detector)
    name = AVERAGE_FILE if AVERAGE_FILE in checkpoint.files else MODEL_FILE
    load_strict(detector, _read_checked(checkpoint, name), checkpoint.uri)
    return detector


def restore(
    checkpoint: Checkpoint, detector: Detector, optimiser: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """Load weights and optimiser state into an already built detector and optimiser.

    Returns:
        What the snapshot was given as `extra`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    load_strict(detector, _read_checked(checkpoint, MODEL_FILE), checkpoint.uri)
    optimiser.load_state_dict(_unflatten(_read_checked(checkpoint, OPTIMISER_FILE), optimiser))
    others = [name for name in checkpoint.files if name not in (MODEL_FILE, OPTIMISER_FILE)]
    return {name.removesuffix(".safetensors"): _read_checked(checkpoint, name) for name in others}

"""Checkpoints on any storage: one folder each, safetensors and JSON, the manifest last.

A folder without `checkpoint.json` is a save that did not finish; it is never read. Nothing is overwritten, and a
checkpoint that is deleted loses its manifest first.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from pyarrow import fs as pafs
from torch import Tensor

from model.build import build_detector
from model.checkpoint import from_bytes, load_strict, to_bytes
from model.config import DetectorConfig
from model.detector import Detector
from model.settings import from_dict, to_dict
from pipelines import commit, storage
from pipelines.manifest import ClassInfo

FILE_NAME = "checkpoint.json"
_FOLDER = "checkpoints"
MODEL_FILE, _OPTIMISER, _AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
_KIND = "checkpoint"
_FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or does not fit."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        uri: its folder.
        step: optimiser steps done.
        detector: configuration of the model.
        classes: in the order of labels.
        hash: sha256 of its manifest, which names the sha256 of each file: the checkpoint's identity.
        files: sha256 by file name.
    """

    uri: str
    step: int
    detector: DetectorConfig
    classes: tuple[ClassInfo, ...]
    hash: str
    files: Mapping[str, str]


class Snapshot(NamedTuple):
    """A copy of what a checkpoint holds, on the CPU: training may go on while it is written.

    Attributes:
        step: optimiser steps done.
        detector: configuration of the model.
        classes: in the order of labels.
        files: tensors by name, by name of their file.
    """

    step: int
    detector: DetectorConfig
    classes: tuple[ClassInfo, ...]
    files: Mapping[str, Mapping[str, Tensor]]


def _flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: ``<parameter number>.<name>``."""
    return {
        f"{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for number, slots in state["state"].items()
        for name, value in slots.items()
        if value is not None
    }


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


def snapshot(
    step: int,
    detector: Detector,
    optimiser: torch.optim.Optimizer,
    classes: tuple[ClassInfo, ...],
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Snapshot:
    """Copy everything to the CPU.

    Args:
        step: optimiser steps done.
        detector: the network.
        optimiser: its optimiser.
        classes: in the order of labels.
        extra: more tensors, by file (without its ending); `average` are the weights to predict with.
    """
    live = {MODEL_FILE: detector.state_dict(), _OPTIMISER: _flatten(optimiser.state_dict())}
    live |= {f"{name}.safetensors": dict(tensors) for name, tensors in (extra or {}).items()}
    files = {
        name: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        for name, tensors in live.items()
    }
    return Snapshot(step, detector.config, classes, files)


def write(run: str, made: Snapshot) -> Checkpoint:
    """Write a snapshot below the run's folder, the manifest last; a committed one of that step is left as it is.

    Raises:
        OSError: the store failed; the checkpoint does not exist.
    """
    return write_at(f"{run.rstrip('/')}/{_FOLDER}/step-{made.step:08d}", made)


def write_at(uri: str, made: Snapshot) -> Checkpoint:
    """Write a snapshot into the folder `uri` itself, the manifest last; a committed one is left as it is.

    Raises:
        OSError: the store failed; the checkpoint does not exist.
    """
    filesystem, folder = storage.open_uri(uri)
    if storage.is_file(filesystem, storage.join(folder, FILE_NAME)):
        return load(uri)
    commit.sweep_temps(filesystem, folder)
    hashes = {}
    for name, tensors in made.files.items():
        data = to_bytes(tensors)
        hashes[name] = commit.sha256_of(data)
        commit.write_file(filesystem, storage.join(folder, name), data)
    body = {
        "step": made.step,
        "detector": to_dict(made.detector),
        "classes": [dataclasses.asdict(info) for info in made.classes],
        "files": hashes,
    }
    raw = commit.sealed(_KIND, _FORMAT_VERSION, body)
    commit.write_file(filesystem, storage.join(folder, FILE_NAME), raw)
    return _parse(raw, uri)


def save(
    run: str, step: int, detector: Detector, optimiser: torch.optim.Optimizer, classes: tuple[ClassInfo, ...]
) -> Checkpoint:
    """Write the checkpoint of `step` below the run's folder; a committed one of that step is left as it is."""
    return write(run, snapshot(step, detector, optimiser, classes))


def _parse(raw: bytes, uri: str) -> Checkpoint:
    try:
        body = commit.unsealed(raw, _KIND, _FORMAT_VERSION)
        return Checkpoint(
            uri=uri,
            step=int(body["step"]),
            detector=from_dict(DetectorConfig, body["detector"], "detector"),
            classes=tuple(ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in body["classes"]),
            hash=commit.sha256_of(raw),
            files=dict(body["files"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{uri}/{FILE_NAME} is not a checkpoint manifest of version {_FORMAT_VERSION} ({error}): "
            "it is damaged or of another version of maskray; use another checkpoint"
        ) from error


def load(uri: str) -> Checkpoint:
    """The checkpoint at `uri`, or the latest one where `uri` is a training run.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    filesystem, folder = storage.open_uri(uri)
    path = storage.join(folder, FILE_NAME)
    if storage.is_file(filesystem, path):
        return _parse(storage.read_bytes(filesystem, path), uri)
    found = latest(uri)
    if found is None:
        raise CheckpointError(
            f"{uri} holds no finished checkpoint: give the --out of `maskray train`, or one of its checkpoints/step-*"
        )
    return found


def steps(run: str) -> list[int]:
    """Steps of the run's committed checkpoints, ascending."""
    filesystem, root = storage.open_uri(run)
    folder = storage.join(root, _FOLDER)
    if not storage.is_folder(filesystem, folder):
        return []
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(folder))]
    return sorted(
        int(name.removeprefix("step-"))
        for name in names
        if re.fullmatch(r"step-\d{8}", name) and storage.is_file(filesystem, storage.join(folder, name, FILE_NAME))
    )


def at_step(run: str, step: int) -> Checkpoint:
    """The run's checkpoint of a step.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    return load(f"{run.rstrip('/')}/{_FOLDER}/step-{step:08d}")


def latest(run: str) -> Checkpoint | None:
    """The newest committed checkpoint of a run, or None."""
    known = steps(run)
    return at_step(run, known[-1]) if known else None


def retain(run: str, keep: int, protected: Collection[int]) -> list[int]:
    """Delete all but the newest `keep` checkpoints (0: none is deleted) and the `protected` ones; the steps deleted."""
    doomed = [step for step in steps(run)[:-keep] if step not in protected] if keep else []
    filesystem, root = storage.open_uri(run)
    for step in doomed:
        folder = storage.join(root, _FOLDER, f"step-{step:08d}")
        # Without its manifest it is no checkpoint any more, whatever becomes of the rest.
        storage.delete_file(filesystem, storage.join(folder, FILE_NAME))
        filesystem.delete_dir(folder)
    return doomed


def _read_bytes(checkpoint: Checkpoint, name: str) -> bytes:
    filesystem, folder = storage.open_uri(checkpoint.uri)
    try:
        data = storage.read_bytes(filesystem, storage.join(folder, name))
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint.uri} lacks {name}: use another checkpoint") from error
    if commit.sha256_of(data) != checkpoint.files.get(name):
        raise CheckpointError(
            f"{checkpoint.uri}/{name} does not match the sha256 in {FILE_NAME}: it is damaged; use another checkpoint"
        )
    return data


def _read_checked(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    return from_bytes(_read_bytes(checkpoint, name))


def model_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """What is needed to predict with a checkpoint, by file name: a folder of them loads as the checkpoint does.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    weights = _AVERAGE if _AVERAGE in checkpoint.files else MODEL_FILE
    filesystem, folder = storage.open_uri(checkpoint.uri)
    manifest = storage.read_bytes(filesystem, storage.join(folder, FILE_NAME))
    return {weights: _read_bytes(checkpoint, weights), FILE_NAME: manifest}


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
    name = _AVERAGE if _AVERAGE in checkpoint.files else MODEL_FILE
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
    optimiser.load_state_dict(_unflatten(_read_checked(checkpoint, _OPTIMISER), optimiser))
    others = [name for name in checkpoint.files if name not in (MODEL_FILE, _OPTIMISER)]
    return {name.removesuffix(".safetensors"): _read_checked(checkpoint, name) for name in others}

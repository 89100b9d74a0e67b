"""Checkpoints on any storage: one folder each, safetensors and JSON, the manifest last.

A folder without `checkpoint.json` is a save that did not finish; it is never read. Nothing is overwritten.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

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
_MODEL, _OPTIMISER = "model.safetensors", "optimizer.safetensors"
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


def _flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: ``<parameter number>.<name>``."""
    return {
        f"{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for number, slots in state["state"].items()
        for name, value in slots.items()
        if value is not None
    }


def _unflatten(flat: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}


def save(
    run: str, step: int, detector: Detector, optimiser: torch.optim.Optimizer, classes: tuple[ClassInfo, ...]
) -> Checkpoint:
    """Write the checkpoint of `step` below the run's folder; a committed one of that step is left as it is."""
    uri = f"{run.rstrip('/')}/{_FOLDER}/step-{step:08d}"
    filesystem, folder = storage.open_uri(uri)
    if storage.is_file(filesystem, storage.join(folder, FILE_NAME)):
        return load(uri)
    files = {_MODEL: to_bytes(detector.state_dict()), _OPTIMISER: to_bytes(_flatten(optimiser.state_dict()))}
    for name, data in files.items():
        commit.write_file(filesystem, storage.join(folder, name), data)
    body = {
        "step": step,
        "detector": to_dict(detector.config),
        "classes": [dataclasses.asdict(info) for info in classes],
        "files": {name: commit.sha256_of(data) for name, data in files.items()},
    }
    raw = commit.sealed(_KIND, _FORMAT_VERSION, body)
    commit.write_file(filesystem, storage.join(folder, FILE_NAME), raw)
    return _parse(raw, uri)


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


def latest(run: str) -> Checkpoint | None:
    """The newest committed checkpoint of a run, or None."""
    filesystem, root = storage.open_uri(run)
    folder = storage.join(root, _FOLDER)
    if not storage.is_folder(filesystem, folder):
        return None
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(folder))]
    for name in sorted((name for name in names if re.fullmatch(r"step-\d{8}", name)), reverse=True):
        if storage.is_file(filesystem, storage.join(folder, name, FILE_NAME)):
            return load(f"{run.rstrip('/')}/{_FOLDER}/{name}")
    return None


def _read_checked(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    filesystem, folder = storage.open_uri(checkpoint.uri)
    try:
        data = storage.read_bytes(filesystem, storage.join(folder, name))
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint.uri} lacks {name}: use another checkpoint") from error
    if commit.sha256_of(data) != checkpoint.files.get(name):
        raise CheckpointError(
            f"{checkpoint.uri}/{name} does not match the sha256 in {FILE_NAME}: it is damaged; use another checkpoint"
        )
    return from_bytes(data)


def load_detector(checkpoint: Checkpoint) -> Detector:
    """The detector of a checkpoint, in training mode on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    detector = build_detector(checkpoint.detector)
    load_strict(detector, _read_checked(checkpoint, _MODEL), checkpoint.uri)
    return detector


def restore(checkpoint: Checkpoint, detector: Detector, optimiser: torch.optim.Optimizer) -> None:
    """Load weights and optimiser state into an already built detector and optimiser.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    load_strict(detector, _read_checked(checkpoint, _MODEL), checkpoint.uri)
    optimiser.load_state_dict(_unflatten(_read_checked(checkpoint, _OPTIMISER), optimiser))

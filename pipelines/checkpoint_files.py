"""One checkpoint on any storage: a folder of safetensors and JSON, the manifest last.

A folder without `checkpoint.json` is a save that did not finish; it is never read. Files are named by their content and
the manifest is written once: of two writers of one folder one wins, and what it names is what it wrote.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.checkpoint import to_bytes
from model.config import DetectorConfig
from model.detector import Detector
from model.settings import from_dict, to_dict
from pipelines import commit, storage
from pipelines.manifest import ClassInfo

FILE_NAME = "checkpoint.json"
MODEL_FILE, OPTIMISER_FILE, AVERAGE_FILE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
_KIND = "checkpoint"
_FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)
_BY_CONTENT = re.compile(r"\w+-[0-9a-f]{16}\.safetensors")


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
        files: sha256 by what the file is (`MODEL_FILE`, ...).
        version: of the format: from 2 on a file's name on the store holds its sha256.
    """

    uri: str
    step: int
    detector: DetectorConfig
    classes: tuple[ClassInfo, ...]
    hash: str
    files: Mapping[str, str]
    version: int = _FORMAT_VERSION

    def stored(self, name: str) -> str:
        """The name of a file on the store."""
        return name if self.version == 1 else _by_content(name, self.files[name])


def _by_content(name: str, sha256: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{sha256[:16]}{dot}{ending}"


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
    live = {MODEL_FILE: detector.state_dict(), OPTIMISER_FILE: _flatten(optimiser.state_dict())}
    live |= {f"{name}.safetensors": dict(tensors) for name, tensors in (extra or {}).items()}
    files = {
        name: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        for name, tensors in live.items()
    }
    return Snapshot(step, detector.config, classes, files)


def write_at(uri: str, made: Snapshot) -> Checkpoint:
    """Write a snapshot into the folder `uri` itself, the manifest last; a committed one is left as it is.

    Raises:
        OSError: the store failed; the checkpoint does not exist.
    """
    filesystem, folder = storage.open_uri(uri)
    if storage.is_file(filesystem, storage.join(folder, FILE_NAME)):
        return read(uri)
    commit.sweep_temps(filesystem, folder)
    hashes = {}
    for name, tensors in made.files.items():
        data = to_bytes(tensors)
        hashes[name] = commit.sha256_of(data)
        commit.write_file(filesystem, storage.join(folder, _by_content(name, hashes[name])), data)
    body = {
        "step": made.step,
        "detector": to_dict(made.detector),
        "classes": [dataclasses.asdict(info) for info in made.classes],
        "files": hashes,
    }
    raw = commit.sealed(_KIND, _FORMAT_VERSION, body)
    # Where another process of the same run was faster, what that one wrote is the checkpoint.
    with contextlib.suppress(commit.CommitConflictError):
        commit.write_file(filesystem, storage.join(folder, FILE_NAME), raw, exclusive=True)
    found = read(uri)
    _sweep(found)
    return found


def _sweep(checkpoint: Checkpoint) -> None:
    """Delete what other writers left in a committed checkpoint's folder; files of any other kind stay."""
    filesystem, folder = storage.open_uri(checkpoint.uri)
    named = {checkpoint.stored(name) for name in checkpoint.files}
    for info in storage.list_files(filesystem, folder):
        if _BY_CONTENT.fullmatch(info.base_name) and info.base_name not in named:
            storage.delete_file(filesystem, info.path)


def exists(uri: str) -> bool:
    """Whether the folder holds a committed checkpoint."""
    filesystem, folder = storage.open_uri(uri)
    return storage.is_file(filesystem, storage.join(folder, FILE_NAME))


def read(uri: str) -> Checkpoint:
    """The checkpoint in the folder `uri` itself.

    Raises:
        CheckpointError: its manifest is damaged.
    """
    filesystem, folder = storage.open_uri(uri)
    raw = storage.read_bytes(filesystem, storage.join(folder, FILE_NAME))
    try:
        body, version = _unsealed(raw)
        return Checkpoint(
            uri=uri,
            step=int(body["step"]),
            detector=from_dict(DetectorConfig, body["detector"], "detector"),
            classes=tuple(ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in body["classes"]),
            hash=commit.sha256_of(raw),
            files=dict(body["files"]),
            version=version,
        )
    except (ValueError, KeyError, TypeError) as error:
        versions = " or ".join(map(str, _READABLE_VERSIONS))
        raise CheckpointError(
            f"{storage.child_uri(uri, FILE_NAME)} is not a checkpoint manifest of version {versions} "
            f"({error}): it is damaged or of another version of maskray; use another checkpoint"
        ) from error


def _unsealed(raw: bytes) -> tuple[dict[str, Any], int]:
    """The body of a manifest of any version that can be read, and which."""
    for version in _READABLE_VERSIONS[:-1]:
        try:
            return commit.unsealed(raw, _KIND, version), version
        except ValueError:
            continue
    return commit.unsealed(raw, _KIND, _READABLE_VERSIONS[-1]), _READABLE_VERSIONS[-1]


def read_bytes(checkpoint: Checkpoint, name: str) -> bytes:
    """A file of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    filesystem, folder = storage.open_uri(checkpoint.uri)
    try:
        data = storage.read_bytes(filesystem, storage.join(folder, checkpoint.stored(name)))
    except (FileNotFoundError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.uri} lacks {name}: use another checkpoint") from error
    if commit.sha256_of(data) != checkpoint.files.get(name):
        place = storage.child_uri(checkpoint.uri, checkpoint.stored(name))
        raise CheckpointError(
            f"{place} does not match the sha256 in {FILE_NAME}: it is damaged; use another checkpoint"
        )
    return data

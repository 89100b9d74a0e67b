"""What is known of a trial, kept beside its run where it can be read without Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import commit, storage

_TRIAL_FILE = "trial.json"


@dataclasses.dataclass(frozen=True)
class Point:
    """A trial at one of its checkpoints.

    Attributes:
        step: optimiser steps done.
        samples: pictures seen; what trials of different batches are compared by.
        value: of the metric.
        checkpoint: URI.
        is_last: the training ended with it by itself, and not because the trial was stopped early.
    """

    step: int
    samples: int
    value: float
    checkpoint: str
    is_last: bool = False


def save_history(
    run: str, choices: Mapping[str, Any], history: Sequence[Point], failure: Mapping[str, str] | None = None
) -> None:
    """Write what is known of a trial.

    Args:
        run: folder or URI of its run.
        choices: it was made with.
        history: its measured checkpoints, in order.
        failure: why it ended, if it did.
    """
    filesystem, folder = storage.open_uri(run)
    body: dict[str, Any] = {"choices": dict(choices), "points": [dataclasses.asdict(point) for point in history]}
    if failure:
        body["failure"] = dict(failure)
    commit.write_file(filesystem, storage.join(folder, _TRIAL_FILE), json.dumps(body, indent=1).encode())


def _read(run: str) -> dict[str, Any]:
    filesystem, folder = storage.open_uri(run)
    path = storage.join(folder, _TRIAL_FILE)
    return dict(json.loads(storage.read_bytes(filesystem, path))) if storage.is_file(filesystem, path) else {}


def load_failure(run: str) -> dict[str, str]:
    """Why a trial ended; empty where it did not fail."""
    return dict(_read(run).get("failure", {}))


def load_choices(run: str) -> dict[str, Any]:
    """The choices a run was made with; empty where it has none."""
    return dict(_read(run).get("choices", {}))


def load_history(run: str) -> list[Point]:
    """What is known of a trial, in order; empty before its first checkpoint."""
    return [Point(**point) for point in _read(run).get("points", [])]


def finished_trials(folder_of_trials: str) -> frozenset[str]:
    """Ids of the trials that reached their last step, in whatever generation, of all in a folder or URI."""
    filesystem, folder = storage.open_uri(folder_of_trials)
    if not storage.is_folder(filesystem, folder):
        return frozenset()
    runs = [info.path.rsplit("/", 2)[1] for info in storage.list_files(filesystem, folder, recursive=True)
            if info.base_name == _TRIAL_FILE]  # fmt: skip
    whole = [
        run for run in runs if any(point.is_last for point in load_history(storage.child_uri(folder_of_trials, run)))
    ]
    return frozenset(run.partition("-")[0] for run in whole)

"""Where pseudo-labels come from: the teacher, what it learned from, and so on back to what people labelled.

Each pseudo-labelled data set carries the whole chain, so that it stays readable when older folders are gone.
"""

import contextlib
import dataclasses
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines import checkpoints, commit, storage
from pipelines.checkpoints import Checkpoint, CheckpointError
from pipelines.dataset import Dataset
from pipelines.manifest import Manifest, ManifestError
from pipelines.predictions import PredictionsManifest

_KEY = "provenance"
_NOT_FACTS = ("shards", "classes")


def _data_sets_of(checkpoint: Checkpoint, before: tuple[str, ...] = ()) -> list[str]:
    """URIs of the data that its run, and those that its first weights come from, were trained on, each once.

    None where a run's folder is gone, or weights were imported.
    """
    run = checkpoint.uri.rpartition("/checkpoints/")[0]
    if not run or run in before:
        return []
    filesystem, folder = storage.open_uri(run)
    path = storage.join(folder, "run.json")
    if not storage.is_file(filesystem, path):
        return []
    try:
        body = commit.unsealed(storage.read_bytes(filesystem, path), "run", 1)
        found = [str(uri) for uri in body["train"]]
        config = body["identity"].get("config", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    for uri in (config.get("init"), config.get("rpn_from")):
        with contextlib.suppress(CheckpointError, OSError):
            found += _data_sets_of(checkpoints.load(uri), (*before, run)) if uri else []
    return list(dict.fromkeys(found))


def training_sets(checkpoint: Checkpoint) -> list[tuple[str, Manifest]]:
    """The data sets a checkpoint's weights were trained on, as far as they are still there."""
    found = []
    for uri in _data_sets_of(checkpoint):
        try:
            found.append((uri, Manifest.load(uri)))
        except (ManifestError, OSError):
            continue
    return found


def _described(uri: str) -> dict[str, Any]:
    try:
        manifest = Manifest.load(uri)
    except (ManifestError, OSError):
        return {"uri": uri, "hash": "", "pictures": 0, "objects": 0, "from": None}
    return {
        "uri": uri, "hash": manifest.hash, "pictures": manifest.rows_written, "objects": manifest.instances_kept,
        "from": of_data_set(manifest),
    }  # fmt: skip


def of_distillation(
    labelled: Dataset, pool: tuple[str, Manifest], found: PredictionsManifest, teacher: Checkpoint | None
) -> dict[str, Any]:
    """The chain of a data set that is being made.

    Args:
        labelled: what people labelled.
        pool: what is labelled now, where and what it is.
        found: the detections, with how they were made.
        teacher: the checkpoint that made them; None where it is not known.

    Returns:
        JSON-able: `round`, `versions`, `teacher`, `predictions`, `labelled`, `pool`; the teacher's `data` name what it
        learned from, each with its own chain as `from`.
    """
    data = [_described(uri) for uri in _data_sets_of(teacher)] if teacher else []
    rounds = [part["from"]["round"] for part in data if part["from"]]
    facts = {k: v for k, v in dataclasses.asdict(found).items() if k not in _NOT_FACTS}
    known: dict[str, Any] = {"checkpoint": found.checkpoint, "uri": "", "step": None, "files": {}}
    if teacher is not None:
        known |= {"uri": teacher.uri, "step": teacher.step, "files": dict(teacher.files)}
    return {
        "round": 1 + max(rounds, default=0),
        "versions": versions(),
        "teacher": {**known, "data": data},
        "predictions": {**facts, "hash": found.hash},
        "labelled": {"uri": labelled.uri, "hash": labelled.manifest.hash},
        "pool": {"uri": pool[0], "hash": pool[1].hash},
    }


def versions() -> dict[str, str | None]:
    """Of what made the labels: maskray, the state of its sources (None of an installed wheel), Python and packages."""
    names = ("maskray", "torch", "ray", "numpy", "pyarrow")
    return {
        "sources": _state_of_sources(),
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _state_of_sources() -> str | None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # another repository may lie around an installed wheel
        return None
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def to_json(chain: Mapping[str, Any]) -> str:
    """As a data set's manifest keeps it."""
    return json.dumps(chain, sort_keys=True)


def of_data_set(manifest: Manifest) -> dict[str, Any] | None:
    """The chain of a pseudo-labelled data set; None for any other."""
    text = manifest.source.get(_KEY)
    return None if text is None else dict(json.loads(text))


def lines(chain: Mapping[str, Any], indent: str = "") -> list[str]:
    """The chain for people, from the labels back to what people labelled."""
    teacher = chain["teacher"]
    step = "" if teacher["step"] is None else f", step {teacher['step']}"
    made = [
        f"{indent}round {chain['round']}: labels of {chain['pool']['uri']} ({_short(chain['pool']['hash'])})",
        f"{indent}  by the teacher {teacher['uri'] or 'not named'} ({_short(teacher['checkpoint'])}{step})",
        f"{indent}  as many a picture as in {chain['labelled']['uri']} ({_short(chain['labelled']['hash'])})",
    ]
    for part in teacher["data"]:
        made.append(f"{indent}  it learned from {part['uri']} ({_short(part['hash']) or 'not there any more'})")
        if part["from"]:
            made += lines(part["from"], indent + "    ")
    return made


def _short(digest: str) -> str:
    return digest[:12]

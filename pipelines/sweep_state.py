"""Ray Tune's own record of a sweep, looked at before Ray Tune goes on from it: what it cannot read it forgets."""

from __future__ import annotations

import json
from collections.abc import Collection

from pipelines import storage

_STATE = "experiment_state-"
_TUNER = "tuner.pkl"


class SweepStateError(ValueError):
    """The record of a sweep is damaged, so that finished trials would be made again."""


def can_go_on(place: str, finished: Collection[str]) -> bool:
    """Whether there is a record to go on from; a damaged newest one is set aside for an older one as complete.

    Args:
        place: folder or URI where Ray Tune keeps its record.
        finished: ids of trials that reached their last step.

    Raises:
        SweepStateError: no record that can be read knows all of these.
    """
    filesystem, folder = storage.open_uri(place)
    if not storage.is_file(filesystem, storage.join(folder, _TUNER)):
        return False
    files = [info for info in storage.list_files(filesystem, folder) if info.base_name.startswith(_STATE)]
    damaged = []
    for info in sorted(files, key=lambda info: str(info.base_name), reverse=True):
        known = _trials(storage.read_bytes(filesystem, info.path))
        if known is None:
            damaged.append(info)
            continue
        require_all(place, finished, known)
        for file in damaged:
            filesystem.move(file.path, storage.join(folder, f"damaged-{file.base_name}"))
        return True
    require_all(place, finished, ())
    return False


def require_all(place: str, finished: Collection[str], known: Collection[str]) -> None:
    """Refuse to go on from a record that does not know the finished trials.

    Raises:
        SweepStateError: it lacks one.
    """
    lost = sorted(set(finished) - set(known))
    if lost:
        raise SweepStateError(
            f"the record of the sweep at {place} is damaged: {len(lost)} finished trials ({', '.join(lost[:3])}"
            f"{', ...' if len(lost) > 3 else ''}) would be trained again; put a copy of that folder back, or choose "
            "another --out"
        )


def _trials(data: bytes) -> set[str] | None:
    """Ids of the trials in a record; None where it cannot be read."""
    try:
        return {str(json.loads(trial)["trial_id"]) for trial, _ in json.loads(data)["trial_data"]}
    except (ValueError, KeyError, TypeError):
        return None

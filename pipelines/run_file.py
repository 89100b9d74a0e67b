"""The file that makes a folder a training run's own: what the run is, and where it is tracked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model.settings import from_dict
from pipelines import checkpoints, commit, storage
from pipelines.config import TrainConfig

_NAME = "run.json"
_KIND = "run"
_FORMAT_VERSION = 1


class RunConflictError(ValueError):
    """The output folder holds another run, or the data do not fit together."""


class Tracking(NamedTuple):
    """Where a run's metrics are; both empty where tracking never started.

    Attributes:
        uri: server or database, as given; empty is MLflow's own default.
        run_id: of the MLflow run.
    """

    uri: str = ""
    run_id: str = ""


class RunFile:
    """A run's file.

    Attributes:
        tracking: what is on file.
    """

    def __init__(self, out: str, body: dict[str, Any]) -> None:
        """Take the run's folder and the file's body."""
        self._out, self._body = out, body
        self.tracking = Tracking(**body["tracking"])

    def track(self, tracking: Tracking) -> None:
        """Write where the run is tracked, where that changed."""
        if tracking != self.tracking:
            self.tracking = tracking
            self._body["tracking"] = tracking._asdict()
            filesystem, path = _path(self._out)
            commit.write_file(filesystem, path, commit.sealed(_KIND, _FORMAT_VERSION, self._body))


def _path(out: str) -> tuple[Any, str]:
    filesystem, folder = storage.open_uri(out)
    return filesystem, storage.join(folder, _NAME)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A line for each setting that is not the same, by its dotted name."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} was {before!r}, is {after!r}")
    return found


def _weights(init: str, rpn_from: str) -> dict[str, str]:
    """Hashes of the checkpoints a run begins with: the same one elsewhere is the same."""
    given = {"init": init, "rpn_from": rpn_from}
    return {name: checkpoints.load(uri).hash for name, uri in given.items() if uri}


def _as_today(found: Mapping[str, Any]) -> dict[str, Any]:
    """An identity on file with what older versions did not write: settings they did not have are at their defaults."""
    identity, config = dict(found["identity"]), dict(found["identity"]["config"])
    if "weights" not in identity:
        identity["weights"] = _weights(config.get("init", ""), config.get("rpn_from", ""))
    try:
        identity["config"] = from_dict(TrainConfig, {**config, "train": found["train"]}).identity()
    except (KeyError, TypeError, ValueError):
        identity["config"] = config  # a setting of another version: the difference names it
    return identity


def _on_file(filesystem: Any, path: str) -> dict[str, Any]:
    try:
        body = commit.unsealed(storage.read_bytes(filesystem, path), _KIND, _FORMAT_VERSION)
        dict(body["identity"]["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(f"{path} is damaged ({error}): choose another --out") from error
    return body


def settings_of(run: str) -> dict[str, Any] | None:
    """The settings a folder's run began with, as plain values; None where no run has begun.

    Raises:
        RunConflictError: the run's file is damaged.
    """
    filesystem, path = _path(run)
    if not storage.is_file(filesystem, path):
        return None
    settings: dict[str, Any] = _on_file(filesystem, path)["identity"]["config"]
    return settings


def claim(config: TrainConfig, data: Sequence[str]) -> RunFile:
    """Make the folder this run's, or find that it is already.

    Args:
        config: the run, resolved.
        data: hash of the manifest of each training set.

    Raises:
        RunConflictError: the folder holds something else, or a run with other settings, data or first weights.
    """
    weights = _weights(config.init, config.rpn_from)
    identity = {"config": config.identity(), "data": list(data), "weights": weights}
    filesystem, path = _path(config.out)
    folder = storage.open_uri(config.out)[1]
    if not storage.is_file(filesystem, path):
        if storage.is_folder(filesystem, folder) and storage.list_files(filesystem, folder):
            raise RunConflictError(f"{config.out} holds other files and no training run: choose another --out")
        body = {"identity": identity, "train": list(config.train), "tracking": {}}
        commit.write_file(filesystem, path, commit.sealed(_KIND, _FORMAT_VERSION, body), exclusive=True)
        return RunFile(config.out, body)
    body = _on_file(filesystem, path)
    try:
        found, claimed = differences(_as_today(body), identity), RunFile(config.out, body)
    except checkpoints.CheckpointError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(f"{path} is damaged ({error}): choose another --out") from error
    if found:
        raise RunConflictError(
            f"{config.out} holds a run with other settings ({'; '.join(found[:5])}"
            f"{' ...' if len(found) > 5 else ''}): repeat its command to go on with it, or choose another --out"
        )
    return claimed


def tracking_of(run: str) -> tuple[str, str]:
    """Tracking URI and MLflow run id of a training run.

    Raises:
        RunConflictError: the folder holds no run, or its file is damaged.
    """
    filesystem, path = _path(run)
    if not storage.is_file(filesystem, path):
        raise RunConflictError(f"{run} holds no training run: give the --out of `maskray train`")
    try:
        tracking = commit.unsealed(storage.read_bytes(filesystem, path), _KIND, _FORMAT_VERSION)["tracking"]
        return str(tracking["uri"]), str(tracking["run_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(f"{path} is damaged or its run never started ({error}): train again") from error

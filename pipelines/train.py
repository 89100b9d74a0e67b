"""The train command: checks a run against its data, claims its folder, and tracks it while the workers train."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from model.settings import override, to_dict
from pipelines import checkpoints, commit, storage
from pipelines.coco_metrics import STAT_NAMES
from pipelines.config import TrainConfig, batch_shares, default_ratio
from pipelines.evaluate import Evaluation
from pipelines.launch import launch
from pipelines.manifest import ClassInfo, Manifest
from pipelines.optim import resolve_schedule
from pipelines.tracking import TrackedDataset, Tracker
from pipelines.validation import Measurements, values_of

_RUN_FILE = "run.json"
_KIND = "run"
_FORMAT_VERSION = 1


class RunConflictError(ValueError):
    """The output folder holds another run, or the data do not fit together."""


class TrainResult(NamedTuple):
    """What a training made.

    Attributes:
        checkpoint: URI of the final checkpoint.
        best: URI of the best checkpoint by `evaluation.metric`; empty where none was measured.
        steps: optimiser steps done; fewer than asked for where measuring ended the run.
        tracking_uri: where its metrics are.
        tracking_run: id of the MLflow run.
        model: of the registered model (`models:/NAME/VERSION`); empty where none is.
    """

    checkpoint: str
    best: str
    steps: int
    tracking_uri: str
    tracking_run: str
    model: str = ""


def _classes_of(config: TrainConfig, manifests: Mapping[str, Manifest]) -> tuple[ClassInfo, ...]:
    """The classes all training sets share."""
    first = manifests[config.train[0]].classes
    for uri in config.train[1:]:
        if manifests[uri].classes != first:
            raise RunConflictError(
                f"{uri} has the classes {list(manifests[uri].names)}, {config.train[0]} has "
                f"{[info.name for info in first]}: training sets must share ids and names of their classes"
            )
    if config.val and Manifest.load(config.val).classes != first:
        raise RunConflictError(f"{config.val} has other classes than {config.train[0]}: evaluate on matching data")
    return first


def _require_labels(manifests: Mapping[str, Manifest]) -> None:
    for uri, manifest in manifests.items():
        bare = manifest.rows_written - manifest.labelled_images
        if bare or not manifest.rows_written:
            raise RunConflictError(
                f"{uri} has {bare} pictures without labels of {manifest.rows_written}: to a training they would be "
                "pictures without objects; train on labelled pictures, or label them with `maskray distill`"
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} was {before!r}, is {after!r}")
    return found


def _claim(config: TrainConfig, manifests: Mapping[str, Manifest]) -> tuple[str, dict[str, Any]]:
    """Make the folder this run's, or find that it is already; returns the run's identity and what is on file."""
    identity = {"config": config.identity(), "data": [manifests[uri].hash for uri in config.train]}
    filesystem, folder = storage.open_uri(config.out)
    path = storage.join(folder, _RUN_FILE)
    body = {"identity": identity, "train": list(config.train), "tracking": {}}
    if not storage.is_file(filesystem, path):
        if storage.is_folder(filesystem, folder) and storage.list_files(filesystem, folder):
            raise RunConflictError(f"{config.out} holds other files and no training run: choose another --out")
        commit.write_file(filesystem, path, commit.sealed(_KIND, _FORMAT_VERSION, body), exclusive=True)
        return path, body
    try:
        found = commit.unsealed(storage.read_bytes(filesystem, path), _KIND, _FORMAT_VERSION)
        differences = _differences(found["identity"], identity)
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(f"{path} is damaged ({error}): choose another --out") from error
    if differences:
        raise RunConflictError(
            f"{config.out} holds a run with other settings ({'; '.join(differences[:5])}"
            f"{' ...' if len(differences) > 5 else ''}): repeat its command to go on with it, or choose another --out"
        )
    return path, found


def tracking_of(run: str) -> tuple[str, str]:
    """Tracking URI and MLflow run id of a training run.

    Raises:
        RunConflictError: the folder holds no run, or its file is damaged.
    """
    filesystem, folder = storage.open_uri(run)
    path = storage.join(folder, _RUN_FILE)
    if not storage.is_file(filesystem, path):
        raise RunConflictError(f"{run} holds no training run: give the --out of `maskray train`")
    try:
        tracking = commit.unsealed(storage.read_bytes(filesystem, path), _KIND, _FORMAT_VERSION)["tracking"]
        return str(tracking["uri"]), str(tracking["run_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(f"{path} is damaged or its run never started ({error}): train again") from error


def _check_evaluation(config: TrainConfig) -> None:
    evaluation = config.evaluation
    kind, _, name = evaluation.metric.partition("/")
    if kind not in ("box", "mask") or name not in STAT_NAMES:
        raise ValueError(
            f"evaluation.metric must be box/ or mask/ and one of {', '.join(STAT_NAMES)}, got {evaluation.metric!r}"
        )
    if evaluation.every and not config.val:
        raise ValueError("evaluation.every needs --val: give a prepared data set to measure on")
    if evaluation.patience and not evaluation.every:
        raise ValueError("evaluation.patience needs evaluation.every: without measurements nothing ends a run early")


def _require_same_pictures(config: TrainConfig) -> None:
    other, ours = checkpoints.load(config.rpn_from).detector.picture, config.detector.picture
    for name in ("channel_order", "mean", "std"):
        if getattr(other, name) != getattr(ours, name):
            raise RunConflictError(
                f"{config.rpn_from} takes pictures with {name} {getattr(other, name)}, this detector with "
                f"{getattr(ours, name)}: choose --rpn-from a detector of the same pictures"
            )


def resolve(config: TrainConfig) -> tuple[TrainConfig, dict[str, Manifest], tuple[ClassInfo, ...]]:
    """Check the run against its data; number of classes, length and learning rate become those of this run.

    Raises:
        RunConflictError: data sets without labels or that do not share their classes, or an `init` checkpoint of
            other classes.
        ValueError: no training set, or no output folder.
        ManifestError: a data set that is not one.
    """
    for name in ("train", "out"):
        if not getattr(config, name):
            raise ValueError(f"training needs --{name}: give {'prepared data sets' if name == 'train' else 'a folder'}")
    _check_evaluation(config)
    manifests = {uri: Manifest.load(uri) for uri in config.train}
    _require_labels(manifests)
    classes = _classes_of(config, manifests)
    if config.init:
        known = checkpoints.load(config.init).classes
        if known != classes:
            raise RunConflictError(
                f"the checkpoint {config.init} has the classes {[info.name for info in known]}, the data "
                f"{[info.name for info in classes]}: train on data with the checkpoint's classes, or leave out --init"
            )
    if config.rpn_from:
        config = override(config, "detector.separate_rpn", True)
        _require_same_pictures(config)
    sizes = [manifests[uri].rows_written for uri in config.train]
    ratio = config.ratio or default_ratio(sizes, [manifests[uri].is_pseudo for uri in config.train])
    trained_on = sizes[0] - round(config.holdout * sizes[0])
    optim = resolve_schedule(config.optim, trained_on, batch_shares(config.optim.batch, ratio)[0])
    return dataclasses.replace(override(config, "detector.num_classes", len(classes)), optim=optim), manifests, classes


def _plan(given: TrainConfig, resolved: TrainConfig, manifests: Mapping[str, Manifest]) -> str:
    """What will be done, for people: length, batch, workers and the learning rate, with where it comes from."""
    optim, execution = resolved.optim, resolved.execution
    pictures = sum(manifest.rows_written for manifest in manifests.values())
    workers = f"{execution.min_workers} to {execution.workers}" if execution.min_workers else f"{execution.workers}"
    rate = f"learning rate {optim.learning_rate:g}"
    if given.optim.reference_batch not in (0, optim.batch):
        rate += f" ({given.optim.learning_rate:g} x {optim.batch}/{given.optim.reference_batch})"
    parts = f" in {execution.accumulate} parts" if execution.accumulate > 1 else ""
    return (
        f"{optim.steps} steps of {optim.batch} pictures{parts}, {optim.steps * optim.batch / pictures:.3g} epochs of "
        f"{pictures} pictures, {workers} workers, {rate}"
    )


def _with_full_places(config: TrainConfig) -> TrainConfig:
    """Every path written out: workers run in other folders, and on other machines."""

    def full(uri: str) -> str:
        return storage.canonical_uri(uri) if uri else ""

    return dataclasses.replace(
        config,
        train=tuple(map(full, config.train)),
        val=full(config.val),
        out=full(config.out),
        init=full(config.init),
        rpn_from=full(config.rpn_from),
    )


def run(config: TrainConfig, say: Callable[[str], None] | None = None, parent: str = "") -> TrainResult:
    """Train until the last step and commit its checkpoint; the same call goes on where an earlier one stopped.

    Args:
        config: the run.
        say: takes a line for people on what will be done.
        parent: MLflow run to nest this run's below.

    Raises:
        ValueError: the configuration, the data or the cluster do not fit; the message says what to do.
        TrainingError: the workers failed.
    """
    given = _with_full_places(config)
    config, manifests, classes = resolve(given)
    if say:
        say(_plan(given, config, manifests))
    path, on_file = _claim(config, manifests)
    last = checkpoints.latest(config.out)
    done = last.step if last else 0
    tracker = Tracker(config.tracking_uri, on_file["tracking"].get("run_id"), config.out.rsplit("/", 1)[-1], parent)
    if not on_file["tracking"]:
        _describe(tracker, config, manifests)
        on_file["tracking"] = {"uri": config.tracking_uri, "run_id": tracker.run_id}
        data = commit.sealed(_KIND, _FORMAT_VERSION, on_file)
        commit.write_file(storage.open_uri(config.out)[0], path, data)
    status = "FAILED"
    try:
        if done < config.optim.steps and not _is_over(config):
            launch(config, classes, tracker)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    final = checkpoints.load(config.out)
    best = Measurements(config.out, config.evaluation.metric).best
    chosen = final if best is None else checkpoints.at_step(config.out, best)
    version = _register(tracker, config.register, chosen) if config.register else ""
    best_uri = "" if best is None else chosen.uri
    return TrainResult(final.uri, best_uri, final.step, tracker.uri, tracker.run_id, version)


def _describe(tracker: Tracker, config: TrainConfig, manifests: Mapping[str, Manifest]) -> None:
    """Tell the tracker what the run is: its resolved settings and its data."""
    settings = to_dict(config)
    tracker.parameters({**settings, "data": {str(i): m.hash for i, m in enumerate(manifests.values())}})
    tracker.file("", "config.json", json.dumps(settings, indent=1).encode())
    sets = [("training", uri, manifest) for uri, manifest in manifests.items()]
    sets += [("validation", config.val, Manifest.load(config.val))] if config.val else []
    tracker.inputs([TrackedDataset(use, uri, m.hash, m.rows_written) for use, uri, m in sets])


def _register(tracker: Tracker, name: str, chosen: checkpoints.Checkpoint) -> str:
    """Keep a checkpoint's model with the run, as plain files, and register it; `models:/NAME/VERSION` or empty."""
    for file, content in checkpoints.model_files(chosen).items():
        tracker.file("model", file, content)
    version = tracker.register(name, "model", chosen.hash)
    return f"models:/{name}/{version}" if version else ""


def _is_over(config: TrainConfig) -> bool:
    """Whether an earlier attempt ended the run early."""
    patience = config.evaluation.patience
    return bool(patience) and Measurements(config.out, config.evaluation.metric).since_best >= patience


def log_evaluation(result: TrainResult, found: Evaluation, step: int) -> None:
    """Add the final checkpoint's AP to the run's tracking."""
    tracker = Tracker(result.tracking_uri, result.tracking_run, "")
    parts = {kind: part for kind, part in (("box", found.box), ("mask", found.mask)) if part}
    tracker.metrics({f"val/{name}": value for name, value in values_of(parts).items()}, step)
    tracker.finish("FINISHED")

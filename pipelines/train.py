"""The train command: checks a run against its data, claims its folder, and tracks it while the workers train."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from model.config import PoolOperation
from model.settings import override, to_dict
from pipelines import checkpoints, storage
from pipelines.config import TrainConfig, batch_shares, default_ratio
from pipelines.dataset import Dataset
from pipelines.evaluate import Evaluation
from pipelines.holdout import knows_what_it_saw
from pipelines.launch import launch
from pipelines.manifest import ClassInfo, Manifest
from pipelines.optim import resolve_schedule
from pipelines.run_file import RunConflictError, RunFile, Tracking, claim, settings_of
from pipelines.shard_cache import ShardCache
from pipelines.tracking import TrackedDataset, Tracker
from pipelines.train_feed import epoch_samples
from pipelines.validation import Measurements, check_metric, values_of


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


def _with_window(config: TrainConfig, manifests: Mapping[str, Manifest]) -> TrainConfig:
    """The run with the shuffle window it began with; a new one's follows from its data and this machine's cache.

    Only where none was asked for, and for remote data sets: local ones are mapped where they are.
    """
    remote = [manifest for uri, manifest in manifests.items() if not storage.is_local(storage.open_uri(uri)[0])]
    if config.shuffle_window or not remote:
        return config
    begun = settings_of(config.out)
    if begun is not None:
        window = int(begun.get("shuffle_window", 0))
    else:
        window = ShardCache.from_environment().window([[s.bytes for s in m.shards] for m in remote])
    return dataclasses.replace(config, shuffle_window=window)


def _check_evaluation(config: TrainConfig, classes: tuple[ClassInfo, ...]) -> None:
    evaluation = config.evaluation
    check_metric(config.metric, config.detector, classes)
    if evaluation.every and not config.val:
        raise ValueError("evaluation.every needs --val: give a prepared data set to measure on")
    if evaluation.patience and not evaluation.every:
        raise ValueError("evaluation.patience needs evaluation.every: without measurements nothing ends a run early")


def _check_determinism(config: TrainConfig) -> None:
    """Refuse what would fail in its first step: gradients of torchvision's that have one form alone on a GPU."""
    detector = config.detector
    if not (config.deterministic and config.execution.gpu):
        return
    without = {
        "detector.pooler.operation=pool": detector.pooler.operation is PoolOperation.POOL,
        "detector.backbone.deformable_stages": bool(detector.backbone.deformable_stages),
    }
    for name, is_used in without.items():
        if is_used:
            raise ValueError(
                f"--deterministic on GPUs cannot train with {name}: its gradient has no deterministic form there; "
                "leave one of the two out, or train on CPUs"
            )


def _require_same_pictures(config: TrainConfig) -> None:
    other, ours = checkpoints.load(config.rpn_from).detector.picture, config.detector.picture
    for name in ("channel_order", "mean", "std"):
        if getattr(other, name) != getattr(ours, name):
            raise RunConflictError(
                f"{config.rpn_from} takes pictures with {name} {getattr(other, name)}, this detector with "
                f"{getattr(ours, name)}: choose --rpn-from a detector of the same pictures"
            )


def _require_records(config: TrainConfig) -> None:
    for name in ("init", "rpn_from"):
        uri = getattr(config, name)
        if uri and not knows_what_it_saw(checkpoints.load(uri)):
            raise RunConflictError(
                f"{uri} does not say which pictures it was trained on, so holding some out would prove nothing: leave "
                f"out --holdout, or --{name.replace('_', '-')}"
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
    manifests = {uri: Manifest.load(uri) for uri in config.train}
    _require_labels(manifests)
    classes = _classes_of(config, manifests)
    _check_evaluation(config, classes)
    _check_determinism(config)
    if config.init:
        known = checkpoints.load(config.init).classes
        if known != classes:
            raise RunConflictError(
                f"the checkpoint {config.init} has the classes {[info.name for info in known]}, the data "
                f"{[info.name for info in classes]}: train on data with the checkpoint's classes, or leave out --init"
            )
    if config.holdout:
        _require_records(config)
    if config.rpn_from:
        config = override(config, "detector.separate_rpn", True)
        _require_same_pictures(config)
    sizes = [manifests[uri].rows_written for uri in config.train]
    ratio = config.ratio or default_ratio(sizes, [manifests[uri].is_pseudo for uri in config.train])
    an_epoch = epoch_samples(config, Dataset(config.train[0]))
    optim = resolve_schedule(config.optim, an_epoch, batch_shares(config.optim.batch, ratio)[0])
    return dataclasses.replace(override(config, "detector.num_classes", len(classes)), optim=optim), manifests, classes


def _plan(given: TrainConfig, resolved: TrainConfig) -> str:
    """What will be done, for people: length, batch, workers and the learning rate, with where it comes from."""
    optim, execution = resolved.optim, resolved.execution
    sets = [Dataset(uri) for uri in resolved.train]
    pictures = sum(epoch_samples(resolved, dataset) for dataset in sets)
    workers = f"{execution.min_workers} to {execution.workers}" if execution.min_workers else f"{execution.workers}"
    rate = f"learning rate {optim.learning_rate:g}"
    if given.optim.reference_batch not in (0, optim.batch):
        rate += f" ({given.optim.learning_rate:g} x {optim.batch}/{given.optim.reference_batch})"
    shares = ""
    if len(sets) > 1:
        ratio = resolved.ratio or default_ratio([len(d) for d in sets], [d.manifest.is_pseudo for d in sets])
        shares = f" ({' : '.join(map(str, batch_shares(optim.batch, ratio)))} of the training sets)"
    parts = f" in {execution.accumulate} parts" if execution.accumulate > 1 else ""
    return (
        f"{optim.steps} steps of {optim.batch} pictures{shares}{parts}, "
        f"{optim.steps * optim.batch / pictures:.3g} epochs of {pictures} pictures, {workers} workers, {rate}"
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
    config = _with_window(config, manifests)
    if say:
        say(_plan(given, config))
    on_file = claim(config, [manifests[uri].hash for uri in config.train])
    done = max(checkpoints.steps(config.out), default=0)
    tracker = _tracker(config, on_file, manifests, say, parent)
    status = "FAILED"
    try:
        if done < config.optim.steps and not _is_over(config):
            tracker.begin()
            launch(config, classes, tracker)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    final = checkpoints.load(config.out)
    best = Measurements(config.out, config.metric).best
    chosen = final if best is None else checkpoints.at_step(config.out, best)
    version = _register(tracker, config.register, chosen) if config.register else ""
    best_uri = "" if best is None else chosen.uri
    return TrainResult(final.uri, best_uri, final.step, tracker.uri, tracker.run_id, version)


def _tracker(
    config: TrainConfig,
    on_file: RunFile,
    manifests: Mapping[str, Manifest],
    say: Callable[[str], None] | None,
    parent: str,
) -> Tracker:
    """The run's tracker: that of its earlier attempts, unless there is none or it is to be tracked elsewhere now."""
    before = on_file.tracking
    here = before.run_id if before.uri == config.tracking_uri else ""
    tracker = Tracker(config.tracking_uri, here, storage.name_of(config.out), parent)
    if not here:
        _describe(tracker, config, manifests)
        if before.run_id and say:
            say(
                f"tracked as a new run at {config.tracking_uri or 'the default place'}: what came before stays in run "
                f"{before.run_id} at {before.uri or 'the default place'}"
            )
    if tracker.run_id:
        on_file.track(Tracking(config.tracking_uri, tracker.run_id))
    return tracker


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
    return bool(patience) and Measurements(config.out, config.metric).since_best >= patience


def log_evaluation(result: TrainResult, found: Evaluation, step: int) -> None:
    """Add the final checkpoint's AP to the run's tracking."""
    tracker = Tracker(result.tracking_uri, result.tracking_run, "")
    measured = (("box", found.box), ("mask", found.mask), ("keypoints", found.keypoints))
    parts = {kind: part for kind, part in measured if part}
    tracker.metrics({f"val/{name}": value for name, value in values_of(parts).items()}, step)
    tracker.finish("FINISHED")

"""One trial of a sweep: the ordinary training, followed by checkpoint, measured, and reported to Ray Tune."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from pipelines import checkpoints, commit, evaluate, run_file, storage, train
from pipelines.config import TrainConfig
from pipelines.sweep_space import Dimension, chosen_settings, with_settings

_POLL_S = 1.0
_LOGGED_WITHIN_S = 120.0
_POINTER = "pointer.json"
_TRIAL_FILE = "trial.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All a trial is told, besides its choices.

    Attributes:
        base: the run that trials vary; its `out` is the folder of all trials.
        dimensions: what is varied.
        metric: that decides: loss/total, or one of the evaluation such as mask/AP.
        reports: checkpoints a trial that are measured, its last included.
        gpu: measure on a GPU.
        is_population: trials go on from checkpoints of others, which are kept until the sweep is over.
    """

    base: TrainConfig
    dimensions: tuple[Dimension, ...]
    metric: str
    reports: int
    gpu: bool
    is_population: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether checkpoints must be evaluated."""
        return not self.metric.startswith("loss/")


@dataclasses.dataclass(frozen=True)
class Point:
    """A trial at one of its checkpoints.

    Attributes:
        step: optimiser steps done.
        samples: pictures seen; what trials of different batches are compared by.
        value: of the metric.
        checkpoint: URI.
    """

    step: int
    samples: int
    value: float
    checkpoint: str


def trial_config(plan: Plan, choices: Mapping[str, Any], trial: str, generation: int = 0) -> TrainConfig:
    """The run of a trial, in a folder of its own."""
    config = with_settings(plan.base, chosen_settings(plan.dimensions, choices))
    name = f"{trial}-{generation}" if generation else trial
    every = math.ceil(config.optim.steps / plan.reports)
    # A trial's own retention knows neither who goes on from its checkpoints nor which one is being measured.
    execution = dataclasses.replace(
        config.execution, checkpoint_every=every, report_every=min(config.execution.report_every, every),
        keep_checkpoints=0,
    )  # fmt: skip
    return dataclasses.replace(config, out=storage.child_uri(plan.base.out, name), execution=execution)


def points(plan: Plan, config: TrainConfig, known: int) -> Iterator[Point]:
    """Train, and yield each new checkpoint with its metric, the last one at the end.

    Args:
        plan: of the sweep.
        config: the trial's run.
        known: step from which on checkpoints are news.

    Raises:
        ValueError: the training or the measurement failed.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            train.run(config)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="training")
    thread.start()
    while True:
        is_over = not thread.is_alive()
        if failures:
            raise failures[0]
        newest = checkpoints.latest(config.out)
        if newest is not None and newest.step > known:
            known = newest.step
            yield Point(known, known * config.optim.batch, measure(plan, config, newest), newest.uri)
        elif is_over:
            return
        else:
            time.sleep(_POLL_S)


def measure(plan: Plan, config: TrainConfig, checkpoint: checkpoints.Checkpoint) -> float:
    """The metric of a checkpoint.

    Raises:
        ValueError: it cannot be measured.
    """
    if not plan.is_measured:
        return _logged(config, plan.metric, checkpoint.step)
    found = evaluate.run(
        evaluate.EvaluateConfig(
            checkpoint=checkpoint.uri,
            data=config.val,
            out=storage.child_uri(config.out, f"evaluations/step-{checkpoint.step:08d}"),
            workers=1,
            gpu=plan.gpu,
        )
    )
    kind, _, name = plan.metric.partition("/")
    metrics = {"box": found.box, "mask": found.mask}.get(kind)
    numbers = metrics.numbers() if metrics else {}
    if name not in numbers:
        raise ValueError(f"there is no metric {plan.metric!r}: choose box/AP, mask/AP, mask/AP50, ... or loss/total")
    return numbers[name]


def _logged(config: TrainConfig, metric: str, step: int) -> float:
    """A metric of the training itself, logged at a step or next to it.

    Unlike a `Tracker`, reading it leaves a finished run finished.

    Raises:
        ValueError: it was not logged, though some time was given.
    """
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- takes seconds

    uri, run_id = run_file.tracking_of(config.out)
    client, end = MlflowClient(tracking_uri=uri or None), time.monotonic() + _LOGGED_WITHIN_S
    while True:
        # The workers' metrics take another way than their checkpoints, and may come later.
        rows = {row.step: float(row.value) for row in client.get_metric_history(run_id, metric)}
        is_late = time.monotonic() > end
        # Where the process that passed them on was killed, those of this step never come, but later ones do.
        if rows and (step in rows or max(rows) > step or is_late):
            return rows[min(rows, key=lambda logged: abs(logged - step))]
        if is_late:
            raise ValueError(f"{config.out} has no {metric} at {uri}: see that MLflow can be written")
        time.sleep(_POLL_S)


def run_trial(plan: Plan, choices: Mapping[str, Any]) -> None:
    """The function that Ray Tune runs for a trial.

    Population based training gives it another trial's checkpoint, as a pointer, with new choices: it then goes on from
    a copy of that checkpoint in a folder of a new generation.
    """
    trial = tune.get_context().get_trial_id()
    config, history = _start(plan, choices, trial, tune.get_checkpoint())
    for point in points(plan, config, history[-1].step if history else 0):
        history.append(point)
        save_history(config.out, choices, history)
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"run": config.out, "history": [dataclasses.asdict(seen) for seen in history]}
            (Path(folder) / _POINTER).write_text(json.dumps(pointer))
            tune.report(
                {"metric": point.value, "report": len(history), "samples": point.samples, "run": config.out},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )
    if history and not plan.is_population:
        checkpoints.retain(config.out, plan.base.execution.keep_checkpoints, {best_of(plan, history).step})


def best_of(plan: Plan, history: list[Point]) -> Point:
    """The best point of a trial that has any."""
    sign = -1 if plan.metric.startswith("loss/") else 1
    return max(history, key=lambda point: sign * point.value)


def _start(plan: Plan, choices: Mapping[str, Any], trial: str, given: Any) -> tuple[TrainConfig, list[Point]]:
    """The run to make or to go on with, and what is known of it."""
    if given is None:
        config = trial_config(plan, choices, trial)
        return config, []
    with given.as_directory() as folder:
        pointer = json.loads((Path(folder) / _POINTER).read_text())
    history = [Point(**point) for point in pointer["history"]]
    own = storage.child_uri(plan.base.out, trial)
    if pointer["run"] == own or pointer["run"].startswith(f"{own}-"):
        generation = int(pointer["run"].removeprefix(own).removeprefix("-") or 0)
        config = trial_config(plan, choices, trial, generation)
        if load_choices(config.out) == dict(choices):
            return config, history
    config = trial_config(plan, choices, trial, _next_generation(plan, trial))
    adopt(history[-1].checkpoint, config.out)
    return config, history


def _next_generation(plan: Plan, trial: str) -> int:
    filesystem, folder = storage.open_uri(plan.base.out)
    generation = 1
    while storage.is_folder(filesystem, storage.join(folder, f"{trial}-{generation}")):
        generation += 1
    return generation


def adopt(checkpoint: str, run: str) -> None:
    """Copy a checkpoint into a new run, its manifest last, so that the run goes on from it."""
    filesystem, source = storage.open_uri(checkpoint)
    target = storage.join(storage.open_uri(run)[1], "checkpoints", checkpoint.rsplit("/", 1)[-1])
    files = storage.list_files(filesystem, source)
    for info in sorted(files, key=lambda info: info.base_name == checkpoints.FILE_NAME):
        commit.write_file(filesystem, storage.join(target, info.base_name), storage.read_bytes(filesystem, info.path))


def save_history(run: str, choices: Mapping[str, Any], history: list[Point]) -> None:
    """Keep what is known of a trial beside its run, where it can be read without Ray."""
    filesystem, folder = storage.open_uri(run)
    body = {"choices": dict(choices), "points": [dataclasses.asdict(point) for point in history]}
    commit.write_file(filesystem, storage.join(folder, _TRIAL_FILE), json.dumps(body, indent=1).encode())


def _read(run: str) -> dict[str, Any]:
    filesystem, folder = storage.open_uri(run)
    path = storage.join(folder, _TRIAL_FILE)
    return dict(json.loads(storage.read_bytes(filesystem, path))) if storage.is_file(filesystem, path) else {}


def load_choices(run: str) -> dict[str, Any]:
    """The choices a run was made with; empty where it has none."""
    return dict(_read(run).get("choices", {}))


def load_history(run: str) -> list[Point]:
    """What is known of a trial, in order; empty before its first checkpoint."""
    return [Point(**point) for point in _read(run).get("points", [])]

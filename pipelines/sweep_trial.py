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
from typing import Any, NamedTuple

from ray import tune

from pipelines import checkpoints, commit, evaluate, run_file, storage, train
from pipelines.config import TrainConfig
from pipelines.ray_session import RayError
from pipelines.sweep_history import Point, load_choices, load_failure, save_history
from pipelines.sweep_space import Dimension, chosen_settings, with_settings

_POLL_S = 1.0
_LOGGED_WITHIN_S = 120.0
_POINTER = "pointer.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All a trial is told, besides its choices.

    Attributes:
        base: the run that trials vary; its `out` is the folder of all trials.
        dimensions: what is varied.
        metric: that decides: loss/total, or one of the evaluation such as mask/AP or keypoints/AP.
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


def trial_config(plan: Plan, choices: Mapping[str, Any], trial: str, generation: int = 0) -> TrainConfig:
    """The run of a trial, in a folder of its own, its length in steps.

    Raises:
        ValueError: a length in epochs of data that cannot be read.
    """
    config = with_settings(plan.base, chosen_settings(plan.dimensions, choices))
    name = f"{trial}-{generation}" if generation else trial
    if config.optim.epochs:
        # Steps follow from the data and from the batch, which may be varied.
        config = dataclasses.replace(config, optim=train.resolve(dataclasses.replace(config, out=name))[0].optim)
    every = math.ceil(config.optim.steps / plan.reports)
    # A trial's own retention knows neither who goes on from its checkpoints nor which one is being measured.
    execution = dataclasses.replace(
        config.execution, checkpoint_every=every, report_every=min(config.execution.report_every, every),
        keep_checkpoints=0,
    )  # fmt: skip
    return dataclasses.replace(config, out=storage.child_uri(plan.base.out, name), execution=execution)


def points(plan: Plan, config: TrainConfig, known: int, parent: str = "") -> Iterator[Point]:
    """Train, and yield each new checkpoint with its metric, the last one at the end.

    Args:
        plan: of the sweep.
        config: the trial's run.
        known: step from which on checkpoints are news.
        parent: MLflow run of the sweep.

    Raises:
        ValueError: the training or the measurement failed.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            train.run(config, parent=parent)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="training")
    thread.start()
    while True:
        is_over = not thread.is_alive()
        steps = checkpoints.steps(config.out)
        if steps and steps[-1] >= config.optim.steps:
            # A trial may be ended as soon as it reports its last step: by then its training must have ended well.
            thread.join()
            is_over = True
        if failures:
            raise failures[0]
        # One after the other, also where training is faster than measuring: trials are compared at the same pictures.
        fresh = [step for step in steps if step > known]
        if fresh:
            known = fresh[0]
            found = checkpoints.at_step(config.out, known)
            value = measure(plan, config, found)
            yield Point(known, known * config.optim.batch, value, found.uri, is_over and known == steps[-1])
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
    metrics = {"box": found.box, "mask": found.mask, "keypoints": found.keypoints}.get(kind)
    numbers = metrics.numbers() if metrics else {}
    if name not in numbers:
        raise ValueError(
            f"{checkpoint.uri} has no metric {plan.metric!r}: choose what its detector finds: box/AP, mask/AP, "
            "keypoints/AP, ... or loss/total"
        )
    return numbers[name]


def _logged(config: TrainConfig, metric: str, step: int) -> float:
    """A metric of the training itself, logged at a step or next to it.

    Unlike a `Tracker`, reading it leaves a finished run finished.

    Raises:
        ValueError: it was not logged, though some time was given.
    """
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- takes seconds

    uri, run_id = run_file.tracking_of(config.out)
    if not run_id:
        raise ValueError(
            f"{config.out} is not tracked at {uri}: see that MLflow can be written, and repeat the command"
        )
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


class Attempt(NamedTuple):
    """One start of a sweep, as its trials know it.

    Attributes:
        id: of its own.
        parent: MLflow run of the sweep; empty where it is not tracked.
    """

    id: str
    parent: str


def run_trial(plan: Plan, attempt: Attempt, choices: Mapping[str, Any]) -> None:
    """The function that Ray Tune runs for a trial.

    Population based training gives it another trial's checkpoint, as a pointer, with new choices: it then goes on from
    a copy of that checkpoint in a folder of a new generation.

    Raises:
        ValueError: the training or the measurement failed.
    """
    trial = tune.get_context().get_trial_id()
    config, history = _start(plan, choices, trial, tune.get_checkpoint())
    _raise_again(config.out, attempt)
    try:
        for point in points(plan, config, history[-1].step if history else 0, attempt.parent):
            history.append(point)
            save_history(config.out, choices, history)
            with tempfile.TemporaryDirectory() as folder:
                pointer = {"run": config.out, "history": [dataclasses.asdict(seen) for seen in history]}
                (Path(folder) / _POINTER).write_text(json.dumps(pointer))
                tune.report(
                    {"metric": point.value, "report": len(history), "samples": point.samples, "run": config.out},
                    checkpoint=tune.Checkpoint.from_directory(folder),
                )
    except RayError:
        raise  # a cluster that lost machines may get them back
    except ValueError as error:
        save_history(config.out, choices, history, {"attempt": attempt.id, "text": str(error)})
        raise
    if history and not history[-1].is_last:
        history[-1] = dataclasses.replace(history[-1], is_last=True)
        save_history(config.out, choices, history)
    if history and not plan.is_population:
        checkpoints.retain(config.out, plan.base.execution.keep_checkpoints, {best_of(plan, history).step})


def _raise_again(run: str, attempt: Attempt) -> None:
    """Ray Tune tries every failed trial again; what the training itself gave up on would only cost that time again."""
    failure = load_failure(run)
    if failure.get("attempt") == attempt.id:
        raise ValueError(failure["text"])


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
    name = storage.name_of(pointer["run"])
    is_own = name == trial or name.startswith(f"{trial}-")
    if is_own and pointer["run"] == storage.child_uri(plan.base.out, name):
        generation = int(name.removeprefix(trial).removeprefix("-") or 0)
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
    target = storage.join(storage.open_uri(run)[1], "checkpoints", storage.name_of(checkpoint))
    files = storage.list_files(filesystem, source)
    for info in sorted(files, key=lambda info: info.base_name == checkpoints.FILE_NAME):
        commit.write_file(filesystem, storage.join(target, info.base_name), storage.read_bytes(filesystem, info.path))

"""The tune command: many trainings that differ in a few settings, by Ray Tune, and what came of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines import commit, storage, sweep_tracking
from pipelines.config import TrainConfig
from pipelines.ray_session import ray_session
from pipelines.sweep_floors import with_floors
from pipelines.sweep_history import finished_trials
from pipelines.sweep_results import SweepResult, Trial, finish, load_trial
from pipelines.sweep_runner import Search, Watch, concurrency, fit, record_of, require_dashboard
from pipelines.sweep_search import Algorithm, Scheduler
from pipelines.sweep_trial import Attempt, Plan, trial_config
from pipelines.tune_config import TuneConfig, plan_of, settled

_SWEEP_FILE = "sweep.json"
_KIND = "sweep"
_FORMAT_VERSION = 1
Say = Callable[[str], None]


class SweepConflictError(ValueError):
    """The output folder holds another sweep."""


class Estimate(NamedTuple):
    """What a sweep may cost.

    Attributes:
        trials: how many there are.
        pictures: of all trials to their last steps.
        hours: of one worker for these; 0 where its speed is not known.
    """

    trials: int
    pictures: int
    hours: float


def _longest(plan: Plan) -> TrainConfig:
    """The trial that sees the most pictures."""
    sizes = {"optim.steps", "optim.epochs", "optim.batch", "train", "ratio", "holdout"}
    options = [
        one.ends() if any(sizes & one.settings(choice).keys() for choice in one.ends()) else one.ends()[:1]
        for one in plan.dimensions
    ]
    names = [one.name for one in plan.dimensions]
    runs = [
        trial_config(plan, dict(zip(names, choices, strict=True)), "longest") for choices in itertools.product(*options)
    ]
    return max(runs, key=lambda run: run.optim.steps * run.optim.batch)


def estimate(config: TuneConfig, plan: Plan) -> Estimate:
    """An upper bound: no trial is stopped early, and each is as long as the longest."""
    count = config.trials
    if config.algorithm is Algorithm.GRID:
        count = math.prod(len(dimension.ends()) for dimension in plan.dimensions)
    run = _longest(plan)
    pictures = count * run.optim.steps * run.optim.batch
    return Estimate(count, pictures, pictures / config.pictures_per_s / 3600 if config.pictures_per_s else 0.0)


def _claim(config: TuneConfig, plan: Plan) -> None:
    """Make the folder this sweep's, or find that it is already.

    Raises:
        SweepConflictError: it holds another sweep, or something else.
    """
    identity = {
        "base": {**plan.base.identity(), "train": list(plan.base.train), "val": plan.base.val},
        "dimensions": [repr(dimension) for dimension in plan.dimensions],
        "metric": config.metric,
        "algorithm": config.algorithm.value if config.algorithm else "",
        "scheduler": config.scheduler.value if config.scheduler else "",
        "trials": config.trials,
        "reports": config.reports,
    }
    filesystem, folder = storage.open_uri(config.out)
    path = storage.join(folder, _SWEEP_FILE)
    data = commit.sealed(_KIND, _FORMAT_VERSION, {"identity": identity})
    if not storage.is_file(filesystem, path):
        if storage.is_folder(filesystem, folder) and storage.list_files(filesystem, folder):
            raise SweepConflictError(f"{config.out} holds other files and no sweep: choose another --out")
        commit.write_file(filesystem, path, data, exclusive=True)
    elif storage.read_bytes(filesystem, path) != data:
        raise SweepConflictError(
            f"{config.out} holds a sweep with other settings: repeat its command to go on with it, or choose another "
            "--out"
        )


def run(config: TuneConfig, name: str, say: Say) -> SweepResult:
    """Run all trials that are not finished yet, and write what came of them.

    Args:
        config: the sweep.
        name: of a named sweep; empty takes `search` alone.
        say: takes lines about the sweep for people.

    Raises:
        ValueError: names, values, data or the cluster do not fit; the message says what to do.
    """
    config = with_floors(settled(config, name), say)
    plan = plan_of(config, name)
    cost = estimate(config, plan)
    say(
        f"at most {cost.trials} trials, {cost.pictures} pictures in all, before any is stopped early"
        + (f": {cost.hours:.1f} hours of one worker" if cost.hours else " (how long that takes follows)")
    )
    _claim(config, plan)
    settings = {"sweep": name or "search", **dataclasses.asdict(config)}
    tracker = sweep_tracking.open_run(plan.base.tracking_uri, config.out, f"sweep {name}".strip(), settings)
    status = "FAILED"
    try:
        trials = [_trial(plan, one) for one in _fit(config, plan, cost, tracker.run_id, say)]
        result = finish(config.out, plan, config.mode, trials)
        sweep_tracking.record(tracker, config.metric, result)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    return result


def _fit(config: TuneConfig, plan: Plan, cost: Estimate, parent: str, say: Say) -> list[Any]:
    """Ray Tune's results of all trials."""
    search = Search(
        config.algorithm or Algorithm.RANDOM,
        config.scheduler or Scheduler.NONE,
        config.mode,
        config.trials,
        config.seed,
    )
    longest = _longest(plan).optim
    with ray_session(config.address or None, dashboard=True):
        require_dashboard()
        at_once = concurrency(plan, config.max_concurrent)
        say(f"{at_once} at the same time, each with {config.workers} workers")
        watch = Watch(
            metric=plan.metric,
            say=say,
            speed=functools.partial(sweep_tracking.speed, plan.base.tracking_uri, parent),
            pictures=cost.pictures,
            at_once=at_once,
            finished=finished_trials(plan.base.out),
            place=record_of(config.out),
        )
        attempt = Attempt(uuid.uuid4().hex, parent)
        return fit(plan, search, longest.steps * longest.batch, config.out, at_once, attempt, watch)


def _trial(plan: Plan, found: Any) -> Trial:
    """A trial as Ray Tune tells of it, with what it left in its folder."""
    trial_id = str(found.metrics.get("trial_id") or found.path.rsplit("/", 1)[-1])
    run = str(found.metrics.get("run") or storage.child_uri(plan.base.out, trial_id))
    error = (str(found.error).strip().splitlines() or ["unknown"])[-1] if found.error else ""
    return load_trial(trial_id, run, found.config or {}, error)

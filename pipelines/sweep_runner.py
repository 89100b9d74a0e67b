"""Ray Tune around the trials of a sweep: starts them, as many as fit, and goes on where it was killed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ray
from ray import tune

from pipelines import storage
from pipelines.config import ExecutionConfig
from pipelines.ray_session import RayError, require_cpus, require_gpus
from pipelines.sweep_search import Algorithm, Rungs, Scheduler, scheduler_of, searcher, space
from pipelines.sweep_trial import Plan, run_trial

_RAY_NAME = "ray"
Say = Callable[[str], None]


class Search(NamedTuple):
    """How trials are chosen and stopped.

    Attributes:
        algorithm: makes the choices.
        scheduler: stops trials early.
        mode: max or min of the metric.
        trials: how many; a grid takes all combinations.
        seed: of the choices.
    """

    algorithm: Algorithm
    scheduler: Scheduler
    mode: str
    trials: int
    seed: int


def concurrency(execution: ExecutionConfig, limit: int, resources: Mapping[str, float]) -> int:
    """How many trials run at the same time.

    One worker's worth of the cluster is left for measuring, where trials do not need all of it.

    Args:
        execution: of each trial.
        limit: that the user set; 0 for none.
        resources: of the cluster.

    Raises:
        RayError: not even one trial fits.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    each = execution.workers * execution.cpus_per_worker
    require_cpus(each + (0 if execution.gpu else 1), f"a trial of {execution.workers} workers, and measuring,")
    fits = int((cpus - 1) // each) if not execution.gpu else int(cpus // each)
    if execution.gpu:
        require_gpus(execution.workers, f"a trial of {execution.workers} workers of one GPU")
        fits = min(fits, max(int((gpus - 1) // execution.workers), 1))
    return max(min(fits, limit or fits), 1)


def require_dashboard() -> None:
    """Refuse a Ray on which stopped trials would hold their workers for ever.

    Raises:
        RayError: it runs without a dashboard.
    """
    # Without it, trials that are stopped early would never give their workers back (Ray asks it which are left).
    if not ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url:
        raise RayError("a sweep needs Ray with its dashboard: start it with ray[default] and --include-dashboard=true")


class _Narrator(tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Says what each trial reports, in place of Ray Tune's own tables."""

    def __init__(self, metric: str, say: Say) -> None:
        self._metric, self._say = metric, say

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A checkpoint was measured."""
        self._say(f"{trial.trial_id}: {self._metric} {result['metric']:.4g} after {result['samples']} pictures")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial reached its last step, or was stopped early."""
        done = sum(one.is_finished() for one in trials)
        self._say(f"{trial.trial_id}: ended; {done} of {len(trials)} trials begun have")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial failed; it may be tried again."""
        self._say(f"{trial.trial_id}: failed")


def fit(plan: Plan, search: Search, longest: int, out: str, at_once: int, say: Say) -> list[Any]:
    """Run all trials that are not finished yet.

    Args:
        plan: of each trial.
        search: how trials are chosen and stopped.
        longest: pictures that the longest trial sees.
        out: folder or URI of the sweep.
        at_once: trials at the same time.
        say: takes a line for people on each report.

    Returns:
        A result of Ray Tune for each trial.
    """
    # Before Ray Tune reads them: our own lines instead of its tables, and no second set of logs.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

    def trial(choices: dict[str, Any]) -> None:
        run_trial(plan, choices)

    # The trial's own process only waits: what computes are the workers of its training.
    trainable = tune.with_resources(trial, {"CPU": 0.01})
    place = f"{storage.canonical_uri(out)}/{_RAY_NAME}"
    choices = space(plan.dimensions, search.algorithm)
    if tune.Tuner.can_restore(place):
        say("going on with the trials that are not finished")
        return list(tune.Tuner.restore(place, trainable, resume_errored=True, param_space=choices).fit())
    rungs = Rungs(max(longest // plan.reports, 1), longest, plan.reports)
    tuner = tune.Tuner(
        trainable,
        param_space=choices,
        tune_config=tune.TuneConfig(
            metric="metric",
            mode=search.mode,
            num_samples=1 if search.algorithm is Algorithm.GRID else search.trials,
            search_alg=searcher(search.algorithm, search.mode, search.seed, at_once),
            scheduler=scheduler_of(search.scheduler, plan.dimensions, rungs),
            max_concurrent_trials=at_once,
        ),
        run_config=tune.RunConfig(
            name=_RAY_NAME,
            storage_path=storage.canonical_uri(out),
            verbose=0,
            callbacks=[_Narrator(plan.metric, say)],
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    )
    return list(tuner.fit())

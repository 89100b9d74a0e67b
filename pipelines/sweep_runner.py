"""Ray Tune around the trials of a sweep: starts them, as many as fit, and goes on where it was killed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.error import TuneError

from pipelines import storage, sweep_state
from pipelines.ray_session import RayError, Share, require_workers, room_for
from pipelines.sweep_leaks import Leaks, idle_groups, remove
from pipelines.sweep_search import Algorithm, Rungs, Scheduler, scheduler_of, searcher, space
from pipelines.sweep_trial import Attempt, Plan, run_trial

_RAY_NAME = "ray"
_ASK_EVERY_S = 15.0
# The trial's own process only waits: what computes are the workers of its training. Any share of a CPU would keep a
# worker from starting; so it runs, as drivers do, beside the head's own processes, wherever that has CPUs or not.
_TRIAL_RESOURCES = {"CPU": 0, "node:__internal_head__": 0.001}
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


class SweepError(ValueError):
    """Ray Tune ended a sweep; the message is one line."""


def concurrency(plan: Plan, limit: int) -> int:
    """How many trials run at the same time on the connected cluster.

    Room to measure is left, where trials do not need all of it: a CPU, or a GPU where measuring takes one.

    Args:
        plan: of the trials.
        limit: that the user set; 0 for none.

    Raises:
        RayError: not even one trial fits.
    """
    execution = plan.base.execution
    workers, each = execution.workers, Share(execution.cpus_per_worker, int(execution.gpu))
    measuring = [Share(1, each.gpus)] if plan.is_measured else []
    what = f"a trial of {workers} workers" + (" of one GPU" if each.gpus else "")
    loaders = [Share(1, 0)] * (workers * execution.loader_actors)
    if each.gpus:
        # Where trials need every GPU, a checkpoint is measured once its trial is over.
        require_workers(workers, each, what, besides=loaders)
    else:
        what += ", and measuring," if plan.is_measured else ""
        require_workers(workers, each, what, besides=[*measuring, *loaders])
    fits = room_for(each, measuring) // workers
    while fits > 1 and room_for(each, [*measuring, *loaders * fits]) < fits * workers:
        fits -= 1
    fits = max(fits, 1)
    return min(fits, limit or fits)


def require_dashboard() -> None:
    """Refuse a Ray on which stopped trials would hold their workers for ever.

    Raises:
        RayError: it runs without a dashboard.
    """
    # Without it, trials that are stopped early would never give their workers back (Ray asks it which are left).
    if not ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url:
        raise RayError("a sweep needs Ray with its dashboard: start it with ray[default] and --include-dashboard=true")


class Watch(tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Says what each trial reports, in place of Ray Tune's own tables, and how long all of them may take.

    Args:
        metric: that decides.
        say: takes a line for people.
        speed: pictures a second of a trial, asked until it is known.
        pictures: of all trials.
        at_once: trials at the same time.
        finished: trials that Ray Tune must know when it goes on from its record.
        place: of that record.
    """

    def __init__(
        self, *, metric: str, say: Say, speed: Callable[[], float], pictures: int, at_once: int,
        finished: Collection[str], place: str,
    ) -> None:  # fmt: skip
        """Keep them."""
        self.say, self.finished, self._place = say, finished, place
        self._metric, self._speed, self._pictures, self._at_once = metric, speed, pictures, at_once
        self._asked = time.monotonic()
        self._leaks = Leaks()

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune writes callbacks into its record, where nothing is needed of this one: each start brings its own."""
        return tune.Callback, ()

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Before anything is started: Ray Tune says nothing where it could not read its record, and begins anew."""
        sweep_state.require_all(self._place, self.finished, [trial.trial_id for trial in trials])
        self.finished = ()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Ray Tune waits for something to happen."""
        self._leaks.look()
        if self._pictures and time.monotonic() - self._asked > _ASK_EVERY_S:
            speed = self._speed()
            self._asked = time.monotonic()
            if speed:
                hours = self._pictures / speed / self._at_once / 3600
                self.say(f"{speed:.3g} pictures a second and trial: all of them take at most {hours:.1f} hours")
                self._pictures = 0  # said once

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A checkpoint was measured."""
        self.say(f"{trial.trial_id}: {self._metric} {result['metric']:.4g} after {result['samples']} pictures")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial reached its last step, or was stopped early."""
        done = sum(one.is_finished() for one in trials)
        self.say(f"{trial.trial_id}: ended; {done} of {len(trials)} trials begun have")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial failed; it may be tried again."""
        self.say(f"{trial.trial_id}: failed")


def record_of(out: str) -> str:
    """Where Ray Tune keeps its record of the sweep in a folder."""
    return storage.child_uri(storage.canonical_uri(out), _RAY_NAME)


def fit(plan: Plan, search: Search, longest: int, out: str, at_once: int, attempt: Attempt, watch: Watch) -> list[Any]:
    """Run all trials that are not finished yet.

    Args:
        plan: of each trial.
        search: how trials are chosen and stopped.
        longest: pictures that the longest trial sees.
        out: folder or URI of the sweep.
        at_once: trials at the same time.
        attempt: this start of the sweep.
        watch: tells people about it.

    Returns:
        A result of Ray Tune for each trial.

    Raises:
        SweepError: Ray Tune failed.
        SweepStateError: its record lacks finished trials.
        KeyboardInterrupt: from the terminal; the same sweep can be gone on with.
    """
    # Before Ray Tune reads them: our own lines instead of its tables, no second set of logs, and an interrupt that ends
    # the command instead of making it look finished.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"

    def trial(choices: dict[str, Any]) -> None:
        run_trial(plan, attempt, choices)

    trainable = tune.with_resources(trial, _TRIAL_RESOURCES)
    if sweep_state.can_go_on(record_of(out), watch.finished):
        watch.say("going on with the trials that are not finished")
        tuner = _restored(plan, search, out, at_once, trainable, watch)
    else:
        tuner = _new(plan, search, longest, out, at_once, trainable, watch)
    try:
        found = list(tuner.fit())
        remove(idle_groups())  # no trial runs any more
        return found
    except (TuneError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise SweepError(f"Ray Tune ended the sweep ({reason}): the same command goes on where it stopped") from error


def _restored(plan: Plan, search: Search, out: str, at_once: int, trainable: Any, watch: Watch) -> Any:
    choices = space(plan.dimensions, search.algorithm)
    tuner = tune.Tuner.restore(record_of(out), trainable, resume_errored=True, param_space=choices)
    # Its record holds these as they were at the first start, when the cluster may have been another.
    local = tuner._local_tuner
    local._tune_config.max_concurrent_trials = local._tune_config.search_alg.max_concurrent = at_once
    local._run_config.callbacks = [watch]
    return tuner


def _new(plan: Plan, search: Search, longest: int, out: str, at_once: int, trainable: Any, watch: Watch) -> Any:
    rungs = Rungs(max(longest // plan.reports, 1), longest, plan.reports)
    return tune.Tuner(
        trainable,
        param_space=space(plan.dimensions, search.algorithm),
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
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    )

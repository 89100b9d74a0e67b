"""Our dimensions, algorithms and schedulers in Ray Tune's terms.

Trials are compared by the pictures they have seen, which stays true over restarts and between batches; Ray's own count
of reports starts anew with every restart.
"""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from pipelines.sweep_space import Dimension, Range

_REDUCTION = 3  # ASHA and HyperBand go on with the best third


class Algorithm(enum.Enum):
    """How the choices of a trial are made."""

    RANDOM = "random"
    GRID = "grid"  # every combination once
    OPTUNA = "optuna"  # tree-structured Parzen estimator; needs maskray[optuna]


class Scheduler(enum.Enum):
    """Which trials are stopped before their last step."""

    NONE = "none"
    ASHA = "asha"  # all but the best third at each rung, without waiting for the others
    HYPERBAND = "hyperband"  # the same in brackets that wait for each other
    MEDIAN = "median"  # those below the median of the others' means
    PBT = "pbt"  # none; the worst quarter goes on from copies of the best, with changed settings


class Rungs(NamedTuple):
    """Where trials are compared.

    Attributes:
        first: pictures of the first report.
        last: pictures of the longest trial.
        reports: of a trial.
    """

    first: int
    last: int
    reports: int


def space(dimensions: Sequence[Dimension], algorithm: Algorithm) -> dict[str, Any]:
    """The search space by name.

    Raises:
        ValueError: a grid over a range.
    """
    return {dimension.name: _domain(dimension, algorithm) for dimension in dimensions}


def _domain(dimension: Dimension, algorithm: Algorithm) -> Any:
    if not isinstance(dimension, Range):
        choices = list(dimension.ends())
        return tune.grid_search(choices) if algorithm is Algorithm.GRID else tune.choice(choices)
    if algorithm is Algorithm.GRID:
        raise ValueError(f"a grid needs values, {dimension.name} is a range: search it by choice(...)")
    if dimension.whole:
        return tune.randint(int(dimension.low), int(dimension.high))
    return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)


class _Variants(BasicVariantGenerator):  # type: ignore[misc]  # Ray has no types
    """Ray Tune's own, but how many run at once is this start's affair, not that of the one it goes on from."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state({name: value for name, value in state.items() if name != "max_concurrent"})


def searcher(algorithm: Algorithm, mode: str, seed: int, at_once: int) -> Any:
    """Ray Tune's search algorithm.

    Raises:
        ValueError: optuna is not installed.
    """
    if algorithm is not Algorithm.OPTUNA:
        return _Variants(random_state=seed, max_concurrent=at_once)
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("the algorithm optuna needs the package optuna: install maskray[optuna], or use random")
    from ray.tune.search.optuna import OptunaSearch  # noqa: PLC0415 -- an extra

    return ConcurrencyLimiter(OptunaSearch(metric="metric", mode=mode, seed=seed), max_concurrent=at_once)


def scheduler_of(scheduler: Scheduler, dimensions: Sequence[Dimension], rungs: Rungs) -> Any:
    """Ray Tune's scheduler; metric and mode are the sweep's."""
    if scheduler is Scheduler.ASHA:
        return AsyncHyperBandScheduler(
            time_attr="samples", grace_period=rungs.first, max_t=rungs.last, reduction_factor=_REDUCTION
        )
    if scheduler is Scheduler.HYPERBAND:
        return HyperBandScheduler(time_attr="report", max_t=rungs.reports, reduction_factor=_REDUCTION)
    if scheduler is Scheduler.MEDIAN:
        return MedianStoppingRule(time_attr="samples", grace_period=rungs.first)
    if scheduler is Scheduler.PBT:
        return PopulationBasedTraining(
            time_attr="samples",
            perturbation_interval=rungs.first,
            hyperparam_mutations={dimension.name: _mutation(dimension) for dimension in dimensions},
            custom_explore_fn=_clamp(dimensions),
            synch=False,
        )
    return FIFOScheduler()


# What a copy of another trial's weights and optimiser cannot be continued with, and what its history is counted in.
_FIXED = ("detector.", "execution.", "optim.algorithm", "optim.batch", "optim.ema_decay", "optim.epochs",
          "optim.steps", "precision", "seed", "train", "val")  # fmt: skip


def require_mutable(dimensions: Sequence[Dimension]) -> None:
    """Refuse dimensions that cannot change while a trial runs, as population based training changes them.

    Raises:
        ValueError: there is one.
    """
    for dimension in dimensions:
        for choice in dimension.ends():
            for name in dimension.settings(choice):
                if name.startswith(_FIXED):
                    raise ValueError(
                        f"pbt changes settings while a trial runs, and {name} cannot change then: leave it out of the "
                        "search, or use another scheduler"
                    )


def _clamp(dimensions: Sequence[Dimension]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Ray Tune multiplies what it mutates, and would leave the range."""
    bounds = {one.name: one.ends() for one in dimensions if isinstance(one, Range)}

    def clamp(choices: dict[str, Any]) -> dict[str, Any]:
        return {
            name: min(max(value, bounds[name][0]), bounds[name][1]) if name in bounds else value
            for name, value in choices.items()
        }

    return clamp


def _mutation(dimension: Dimension) -> Any:
    return list(dimension.ends()) if not isinstance(dimension, Range) else _domain(dimension, Algorithm.RANDOM)

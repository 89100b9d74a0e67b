"""Dimensions, algorithms and schedulers in Ray Tune's terms."""

import importlib.util
import random

import numpy as np
import pytest
from ray.tune import schedulers

from pipelines.sweep_search import Algorithm, Rungs, Scheduler, scheduler_of, searcher, space
from pipelines.sweep_space import Options, Range, Variants

RATE = Range("optim.learning_rate", 1e-4, 1e-1, log=True)
STEPS = Range("optim.steps", 3, 6, whole=True)
BATCH = Options("optim.batch", (4, 8))
LENGTH = Variants("length", {"1x": {}, "2x": {}})
RUNGS = Rungs(100, 900, 9)


def test_choices_stay_inside_the_bounds():
    random.seed(0)
    np.random.seed(0)
    found = space((RATE, STEPS, BATCH, LENGTH), Algorithm.RANDOM)
    drawn = {name: [domain.sample() for _ in range(200)] for name, domain in found.items()}
    assert 1e-4 <= min(drawn["optim.learning_rate"]) < 1e-3
    assert 1e-2 < max(drawn["optim.learning_rate"]) <= 1e-1
    assert (set(drawn["optim.steps"]), set(drawn["optim.batch"])) == ({3, 4, 5}, {4, 8})
    assert set(drawn["length"]) == {"1x", "2x"}


def test_a_grid_takes_values_alone():
    assert space((BATCH,), Algorithm.GRID) == {"optim.batch": {"grid_search": [4, 8]}}
    with pytest.raises(ValueError, match=r"a grid needs values, optim.learning_rate is a range: search it by choice"):
        space((RATE,), Algorithm.GRID)


def test_trials_are_compared_by_pictures_and_never_by_reports_of_one_attempt():
    kinds = {
        Scheduler.NONE: schedulers.FIFOScheduler,
        Scheduler.ASHA: schedulers.AsyncHyperBandScheduler,
        Scheduler.HYPERBAND: schedulers.HyperBandScheduler,
        Scheduler.MEDIAN: schedulers.MedianStoppingRule,
        Scheduler.PBT: schedulers.PopulationBasedTraining,
    }
    assert set(kinds) == set(Scheduler)
    for scheduler, kind in kinds.items():
        made = scheduler_of(scheduler, (RATE, BATCH, LENGTH), RUNGS)
        assert type(made) is kind
        assert getattr(made, "_time_attr", "samples") in ("samples", "report")


def test_optuna_is_an_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package optuna: install maskray\[optuna\], or use random"):
        searcher(Algorithm.OPTUNA, "max", 0, 1)


def test_optuna_draws_inside_the_bounds():
    pytest.importorskip("optuna")
    search = searcher(Algorithm.OPTUNA, "max", 0, 1).searcher
    search.set_search_properties("metric", "max", space((RATE, BATCH), Algorithm.OPTUNA))
    drawn = search.suggest("first")
    assert 1e-4 <= drawn["optim.learning_rate"] <= 1e-1
    assert drawn["optim.batch"] in (4, 8)

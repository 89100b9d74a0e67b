"""Dimensions, algorithms and schedulers in Ray Tune's terms."""

import importlib.util
import random

import numpy as np
import pytest
from ray.tune import schedulers
from ray.tune.schedulers import pbt

from pipelines.sweep_search import Algorithm, Rungs, Scheduler, require_mutable, scheduler_of, searcher, space
from pipelines.sweep_space import Options, Range, Variants

RATE = Range("optim.learning_rate", 1e-4, 1e-1, log=True)
STEPS = Range("optim.steps", 3, 6, whole=True)
WARMUP = Range("optim.warmup_steps", 3, 6, whole=True)
FLIP = Options("augment.flip", (0.0, 0.5))
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


def test_mutations_stay_inside_the_bounds():
    made = scheduler_of(Scheduler.PBT, (RATE, WARMUP, FLIP), RUNGS)
    given = {"optim.learning_rate": 1e-1, "optim.warmup_steps": 3, "augment.flip": 0.5}
    random.seed(0)
    np.random.seed(0)
    for _ in range(100):
        given, _ = pbt._explore(
            given, made._hyperparam_mutations, made._resample_probability, made._perturbation_factors,
            made._custom_explore_fn,
        )  # fmt: skip
        assert 1e-4 <= given["optim.learning_rate"] <= 1e-1
        assert given["optim.warmup_steps"] in (3, 4, 5)
        assert given["augment.flip"] in (0.0, 0.5)


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        (BATCH, "optim.batch cannot change then"),
        (STEPS, "optim.steps cannot change then"),
        (Variants("row", {"a": {}, "b": {"detector.mask.kind": "fcn"}}), "detector.mask.kind cannot change then"),
    ],
)
def test_what_a_running_trial_cannot_change_is_not_mutated(dimension, message):
    with pytest.raises(ValueError, match=message):
        require_mutable((RATE, dimension))
    require_mutable((RATE, FLIP))


def test_how_many_run_at_once_is_this_starts_affair(tmp_path):
    before, now = (searcher(Algorithm.RANDOM, "max", 0, at_once) for at_once in (1, 4))
    before.save_to_dir(str(tmp_path), "session")
    now.restore_from_dir(str(tmp_path))
    assert now.max_concurrent == 4

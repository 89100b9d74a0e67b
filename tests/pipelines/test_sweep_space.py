"""What a sweep varies, read from the command line and laid over runs."""

import pytest

from pipelines.config import TrainConfig
from pipelines.optim import Schedule
from pipelines.presets import preset
from pipelines.sweep_space import (
    Options,
    Range,
    Variants,
    check,
    chosen_settings,
    parse_dimension,
    parse_setting,
    with_settings,
)

BASE = preset("small_mask_rcnn_r18_fpn")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("optim.learning_rate=loguniform(1e-3,1e-1)", Range("optim.learning_rate", 1e-3, 1e-1, log=True)),
        ("augment.flip=uniform(0, 0.5)", Range("augment.flip", 0, 0.5)),
        ("optim.steps=randint(10,20)", Range("optim.steps", 10, 20, whole=True)),
        ("optim.batch=choice(4, 8)", Options("optim.batch", (4, 8))),
        ("optim.schedule=choice(step,cosine)", Options("optim.schedule", ("step", "cosine"))),
        ("optim.milestones=choice([1,2],[])", Options("optim.milestones", ([1, 2], []))),
        ("detector.mask.enabled=choice(true,false)", Options("detector.mask.enabled", (True, False))),
    ],
)
def test_dimensions_are_read(text, wanted):
    assert parse_dimension(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.batch", "cannot read 'optim.batch': search by NAME=KIND"),
        ("optim.batch=normal(0,1)", "KIND one of uniform, loguniform, randint, choice"),
        ("optim.batch=uniform(1)", "uniform takes two numbers"),
        ("optim.batch=uniform(a,b)", "uniform takes two numbers"),
        ("optim.batch=uniform(true,2)", "uniform takes two numbers"),
        ("optim.batch=choice()", "optim.batch has no values to choose from"),
        ("optim.batch=uniform(2,1)", "is searched from 2 to 1"),
        ("optim.batch=uniform(0,1e999)", "is searched from 0 to inf"),
        ("optim.batch=loguniform(0,1)", "logarithmic scale, wanted > 0"),
        ("__import__('os').system('true')=uniform(0,1)", "cannot read"),
    ],
)
def test_dimensions_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_dimension(text)


def test_settings_are_read():
    assert parse_setting("optim.steps=40") == ("optim.steps", 40)
    assert parse_setting("optim.schedule=cosine") == ("optim.schedule", "cosine")
    with pytest.raises(ValueError, match="cannot read 'steps': set by NAME=VALUE"):
        parse_setting("steps")


def test_settings_are_laid_over_a_run_together():
    # One after the other, the first of these would fail: a batch of 3 has no half for each worker.
    made = with_settings(BASE, {"optim.batch": 3, "execution.workers": 3, "optim.schedule": "step"})
    assert (made.optim.batch, made.execution.workers, made.optim.schedule) == (3, 3, Schedule.STEP)
    assert with_settings(BASE, {}) == BASE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim.lr": 1}, "there is no setting 'optim.lr': 'lr' is none of algorithm, learning_rate"),
        ({"optimizer.lr": 1}, "'optimizer' is none of train, val"),
        ({"seed.x": 1}, "'seed' is none of train, val"),
    ],
)
def test_names_that_are_no_settings(settings, message):
    with pytest.raises(KeyError, match=message):
        with_settings(BASE, settings)


def test_variants_set_what_belongs_together():
    dimensions = (Variants("length", {"1x": {"optim.steps": 5}, "2x": {"optim.steps": 10, "seed": 3}}),
                  Options("optim.batch", (4, 8)))  # fmt: skip
    settings = chosen_settings(dimensions, {"length": "2x", "optim.batch": 8})
    assert settings == {"optim.steps": 10, "seed": 3, "optim.batch": 8}


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ((), "needs something to vary"),
        ((Options("seed", (1,)), Options("seed", (2,))), "seed is varied twice"),
        ((Range("optim.learning_rate", -1.0, 1.0),), r"optim.learning_rate=-1.0 cannot be run: .*must be > 0"),
        ((Options("optim.batch", (8, "many")),), "optim.batch=many cannot be run: .* is int, got 'many'"),
        ((Options("detector.features", ("fpn", "c4")),), "detector.features=c4 cannot be run: box.num_fcs"),
        ((Options("optim.bach", (8,)),), "optim.bach=8 cannot be run: there is no setting"),
    ],
)
def test_sweeps_that_cannot_be_run_are_refused_before_the_first_trial(dimensions, message):
    with pytest.raises(ValueError, match=message):
        check(TrainConfig(), dimensions)
    check(BASE, (Range("optim.learning_rate", 1e-4, 1e-2, log=True), Options("optim.batch", (4, 8))))

"""Order, best run and page of trials given by hand."""

import dataclasses

import pytest

from pipelines import config_file
from pipelines.presets import preset
from pipelines.sweep_history import Point
from pipelines.sweep_results import Trial, best_first, finish
from pipelines.sweep_space import Options, Range, Variants
from pipelines.sweep_trial import Plan, trial_config

DIMENSIONS = (
    Range("optim.learning_rate", 1e-4, 1e-2, log=True),
    Options("optim.batch", (4, 8)),
    Variants("length", {"1x": {"optim.steps": 400}, "2x": {"optim.steps": 800}}),
)


def trial(name, *values, error="", whole=True, **choices):
    points = tuple(
        Point(10 * at, 40 * at, value, f"c/{at}", whole and at == len(values)) for at, value in enumerate(values, 1)
    )
    made = {"optim.learning_rate": 1e-3, "optim.batch": 4, "length": "1x", **choices}
    return Trial(name, f"runs/{name}", made, points, error)


TRIALS = [
    trial("low", 0.1, 0.2),
    trial("high", 0.1, 0.5, length="2x", **{"optim.learning_rate": 4e-3}),
    trial("broken", error="worker 0 failed"),
    trial("stopped", 0.9, whole=False),
]


@pytest.fixture
def plan(tmp_path):
    base = dataclasses.replace(preset("small_mask_rcnn_r18_fpn"), train=("/data",), out=str(tmp_path / "trials"))
    return Plan(base, DIMENSIONS, "mask/AP", 4, False)


def test_the_best_is_first_and_failures_last():
    assert [t.id for t in best_first(TRIALS, "max")] == ["high", "low", "stopped", "broken"]
    assert [t.id for t in best_first(TRIALS, "min")] == ["low", "high", "stopped", "broken"]


def test_trials_that_were_stopped_early_compete_where_none_reached_its_end():
    early = [trial("a", 0.2, whole=False), trial("b", 0.9, whole=False), trial("c", error="x")]
    assert [t.id for t in best_first(early, "max")] == ["b", "a", "c"]


def test_the_best_run_is_a_file_for_train(plan, tmp_path):
    result = finish(str(tmp_path), plan, "max", TRIALS)
    config = config_file.load(result.best)
    wanted = trial_config(plan, TRIALS[1].choices, "high")
    assert config == dataclasses.replace(wanted, out="")
    assert (config.optim.learning_rate, config.optim.steps) == (4e-3, 800)


def test_the_page_shows_trials_settings_and_curves(plan, tmp_path):
    text = (tmp_path / "report.html").read_text() if finish(str(tmp_path), plan, "max", TRIALS).page else ""
    assert text.index(">high<") < text.index(">low<") < text.index(">stopped<") < text.index(">broken<")
    assert "worker 0 failed" in text
    assert "the 2 that reached their own last step" in text
    assert text.count("<svg") == 2
    assert "high: optim.learning_rate 0.004, optim.batch 4, length 2x, mask/AP 0.5" in text


def test_a_sweep_without_a_success_has_no_best(plan, tmp_path):
    result = finish(str(tmp_path), plan, "max", TRIALS[2:3])
    assert result.best == ""
    assert "No values yet" in (tmp_path / "report.html").read_text()


def test_a_trial_is_a_run_of_its_own_with_as_many_checkpoints_as_reports(plan):
    config = trial_config(plan, TRIALS[1].choices, "high")
    assert config.out == f"{plan.base.out}/high"
    assert config.execution.checkpoint_every == 200
    # Any of them may still be measured, or be continued by another trial.
    assert config.execution.keep_checkpoints == 0
    assert trial_config(plan, TRIALS[1].choices, "high", 2).out == f"{plan.base.out}/high-2"

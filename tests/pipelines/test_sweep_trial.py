"""A trial without Ray: its training in this process, on tiny pictures."""

import dataclasses
import json
import types

import pytest

from pipelines import checkpoints, loop, run_file, sweep_trial, train
from pipelines.sweep_space import Range
from pipelines.sweep_trial import Plan, Point
from tests.pipelines import tiny_run

RATE = Range("optim.learning_rate", 1e-3, 1e-1, log=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture
def plan(data, tmp_path):
    base = dataclasses.replace(tiny_run.config(data, tmp_path / "trials"), train=(data.uri,))
    return Plan(base, (RATE,), "mask/AP", 3, False)


@pytest.fixture
def trained(monkeypatch):
    """Trains in this process; the metric of a checkpoint is its step."""

    def run(config):
        loop.fit(tiny_run.job(config), tiny_run.CPU, lambda row: None)
        checkpoints.retain(config.out, config.execution.keep_checkpoints, ())  # as the run's evaluator does

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(sweep_trial, "measure", lambda plan, config, checkpoint: float(checkpoint.step))
    monkeypatch.setattr(sweep_trial, "_POLL_S", 0.01)


def test_a_trial_reports_up_to_its_last_step(plan, trained):
    config = sweep_trial.trial_config(plan, {RATE.name: 0.01}, "a")
    found = list(sweep_trial.points(plan, config, 0))
    steps = [point.step for point in found]
    assert set(steps) <= {2, 4, 6}
    assert steps == sorted(set(steps))
    assert found[-1] == Point(6, 24, 6.0, f"{plan.base.out}/a/checkpoints/step-00000006")
    assert list(sweep_trial.points(plan, config, 6)) == []


@pytest.mark.parametrize(("is_population", "kept"), [(True, [1, 2, 3, 4, 5, 6]), (False, [5, 6])])
def test_what_others_go_on_from_is_there_until_the_sweep_is_over(plan, trained, monkeypatch, is_population, kept):
    """A trial that is copied may be steps ahead by the time its copy starts."""
    base = dataclasses.replace(plan.base, execution=dataclasses.replace(plan.base.execution, keep_checkpoints=2))
    plan = dataclasses.replace(plan, base=base, reports=6, is_population=is_population)
    there = []

    def report(values, checkpoint):
        there.append(checkpoints.steps(values["run"]))

    monkeypatch.setattr(sweep_trial.tune, "get_context", lambda: types.SimpleNamespace(get_trial_id=lambda: "a"))
    monkeypatch.setattr(sweep_trial.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(sweep_trial.tune, "report", report)
    sweep_trial.run_trial(plan, {RATE.name: 0.01})
    assert all(steps == list(range(1, len(steps) + 1)) for steps in there)
    assert checkpoints.steps(f"{base.out}/a") == kept


def test_what_ends_a_training_ends_its_trial(plan, monkeypatch):
    def run(config):
        raise loop.TrainingError("loss is not finite")

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(sweep_trial, "_POLL_S", 0.01)
    with pytest.raises(loop.TrainingError, match="loss is not finite"):
        list(sweep_trial.points(plan, sweep_trial.trial_config(plan, {RATE.name: 0.01}, "a"), 0))


class Given:
    """A checkpoint as Ray Tune gives it back."""

    def __init__(self, folder, run, history):
        pointer = {"run": run, "history": [dataclasses.asdict(point) for point in history]}
        folder.mkdir()
        (folder / "pointer.json").write_text(json.dumps(pointer))
        self.folder = folder

    def as_directory(self):
        return self

    def __enter__(self):
        return self.folder

    def __exit__(self, *_):
        return None


def test_a_trial_that_was_stopped_goes_on_in_its_own_run(plan, tmp_path):
    choices = {RATE.name: 0.01}
    config, history = sweep_trial._start(plan, choices, "a", None)
    assert (config.out, history) == (f"{plan.base.out}/a", [])
    seen = [Point(2, 8, 0.5, "c")]
    sweep_trial.save_history(config.out, choices, seen)
    again, history = sweep_trial._start(plan, choices, "a", Given(tmp_path / "g", config.out, seen))
    assert (again, history) == (config, seen)
    assert sweep_trial.load_history(config.out) == seen


def test_a_trial_goes_on_from_a_better_ones_checkpoint_with_new_settings(plan, trained, tmp_path):
    donor = sweep_trial.trial_config(plan, {RATE.name: 0.01}, "donor")
    list(sweep_trial.points(plan, donor, 0))
    seen = [Point(4, 16, 4.0, f"{donor.out}/checkpoints/step-00000004")]
    given = Given(tmp_path / "g", donor.out, seen)
    config, history = sweep_trial._start(plan, {RATE.name: 0.02}, "poor", given)
    assert (config.out, config.optim.learning_rate, history) == (f"{plan.base.out}/poor-1", 0.02, seen)
    assert checkpoints.latest(config.out).step == 4
    assert [point.step for point in sweep_trial.points(plan, config, 4)] == [6]
    # Once more, and the first generation stays as it was.
    assert sweep_trial._start(plan, {RATE.name: 0.03}, "poor", given)[0].out == f"{plan.base.out}/poor-2"


def test_a_logged_metric_may_come_late_but_must_come(plan, monkeypatch):
    answers = [{2: 3.0}, {2: 3.0}, {2: 3.0, 4: 2.5}]

    class Client:
        def __init__(self, tracking_uri):
            assert tracking_uri == "sqlite:///x.db"

        def get_metric_history(self, run_id, metric):
            rows = answers.pop(0) if len(answers) > 1 else answers[0]
            return [types.SimpleNamespace(step=step, value=value) for step, value in rows.items()]

    monkeypatch.setattr("mlflow.tracking.MlflowClient", Client)
    monkeypatch.setattr(run_file, "tracking_of", lambda run: ("sqlite:///x.db", "id"))
    monkeypatch.setattr(sweep_trial, "_POLL_S", 0.01)
    assert sweep_trial._logged(plan.base, "loss/total", 2) == 3.0
    assert sweep_trial._logged(plan.base, "loss/total", 4) == 2.5
    monkeypatch.setattr(sweep_trial, "_LOGGED_WITHIN_S", 0.1)
    assert sweep_trial._logged(plan.base, "loss/total", 3) in (3.0, 2.5)
    assert sweep_trial._logged(plan.base, "loss/total", 6) == 2.5
    answers[:] = [{}]
    with pytest.raises(ValueError, match="has no loss/total at sqlite"):
        sweep_trial._logged(plan.base, "loss/total", 6)


def test_an_unknown_metric_names_those_there_are(plan, monkeypatch):
    class Found:
        box = mask = None

    monkeypatch.setattr(sweep_trial.evaluate, "run", lambda config: Found)
    checkpoint = type("C", (), {"step": 1, "uri": "c"})
    with pytest.raises(ValueError, match="there is no metric 'mask/APx': choose box/AP, mask/AP"):
        sweep_trial.measure(
            dataclasses.replace(plan, metric="mask/APx"), dataclasses.replace(plan.base, val="v"), checkpoint
        )

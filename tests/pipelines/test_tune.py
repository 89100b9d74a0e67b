"""Sweeps: what is refused before Ray starts, what they cost, and small ones on local Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import cli, sweep_runner, tune
from pipelines.config import ExecutionConfig
from pipelines.ray_session import RayError
from pipelines.sweep_search import Algorithm
from pipelines.tune import TuneConfig
from tests.pipelines import tiny_run

ROOT = Path(__file__).parents[2]
SEARCH = "optim.learning_rate=loguniform(1e-4,1e-2)"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data") / "d").uri


def config(data, out, **changes):
    settings = {"search": (SEARCH,), "trials": 2, "reports": 2, "metric": "loss/total"}
    settings |= {"set": ("optim.steps=4", "optim.batch=2", "optim.warmup_steps=1")}
    return TuneConfig(**{"train": (data,), "out": str(out), **settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials must be >= 1, got 0"),
        ({"max_concurrent": -1}, "max_concurrent must be >= 0, got -1"),
        ({"metric": "AP"}, "metric is 'AP', wanted one of mask/AP, mask/AP50"),
        ({"metric": "mask/AP"}, "the metric mask/AP needs --val"),
        ({"out": ""}, "a sweep needs --out: give a folder"),
        ({"train": ()}, "a sweep needs --train: give prepared data sets"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(**{"train": ("d",), "out": "o", "metric": "loss/total", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": ()}, "a sweep needs something to vary"),
        ({"search": ("optim.lr=uniform(0,1)",)}, "optim.lr=0 cannot be run: there is no setting 'optim.lr'"),
        ({"preset": "resnet"}, "unknown preset 'resnet'"),
        ({"set": ("optim.steps=zero",)}, "is int, got 'zero'"),
        ({"train": ("/nowhere",)}, "nowhere"),
        ({"algorithm": Algorithm.GRID}, "a grid needs values"),
    ],
)
def test_sweeps_that_are_refused_before_ray_starts(data, tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tune.run(config(data, tmp_path / "s", **changes), "", lambda line: None)


def test_a_sweep_in_an_object_store_needs_a_tracking_server(data):
    with pytest.raises(ValueError, match="s3://bucket/sweep cannot hold the sweep's database: give --tracking-uri"):
        tune.plan_of(config(data, "s3://bucket/sweep"), "")


def test_the_cost_is_that_of_the_longest_trials(data, tmp_path):
    plan = tune.plan_of(config(data, tmp_path, search=("optim.steps=choice(4,10)", "optim.batch=choice(2,3)")), "")
    asked = config(data, tmp_path, trials=5, pictures_per_s=0.5)
    assert tune.estimate(asked, plan) == (5, 5 * 30, pytest.approx(150 / 0.5 / 3600))
    grid = config(data, tmp_path, algorithm=Algorithm.GRID)
    assert tune.estimate(grid, plan).trials == 4


@pytest.mark.parametrize(
    ("execution", "limit", "resources", "wanted"),
    [
        ({}, 0, {"CPU": 2}, 1),
        ({}, 0, {"CPU": 9}, 8),
        ({}, 3, {"CPU": 9}, 3),
        ({"workers": 2, "cpus_per_worker": 2}, 0, {"CPU": 9}, 2),
        ({"gpu": True}, 0, {"CPU": 32, "GPU": 8}, 7),
        ({"gpu": True, "workers": 4}, 0, {"CPU": 32, "GPU": 4}, 1),
        ({"gpu": True, "workers": 4}, 0, {"CPU": 32, "GPU": 16}, 3),
        ({"gpu": True, "cpus_per_worker": 8}, 0, {"CPU": 32, "GPU": 8}, 4),
    ],
)
def test_as_many_trials_as_the_cluster_holds(monkeypatch, execution, limit, resources, wanted):
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    assert sweep_runner.concurrency(ExecutionConfig(**execution), limit, resources) == wanted


def test_a_cluster_too_small_for_one_trial(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(RayError, match="a trial of 2 workers, and measuring, needs 3 CPUs"):
        sweep_runner.concurrency(ExecutionConfig(workers=2), 0, {"CPU": 2})


def test_an_unknown_sweep_lists_those_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", "everything"])
    assert end.value.code == 2
    assert "tune needs a sweep, got 'everything': one of length, schedules" in capsys.readouterr().err


def test_a_folder_is_one_sweeps(data, tmp_path):
    first = config(data, tmp_path / "s")
    tune._claim(first, tune.plan_of(first, ""))
    tune._claim(first, tune.plan_of(first, ""))
    other = config(data, tmp_path / "s", trials=3)
    with pytest.raises(tune.SweepConflictError, match="holds a sweep with other settings"):
        tune._claim(other, tune.plan_of(other, ""))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "notes.txt").touch()
    with pytest.raises(tune.SweepConflictError, match="holds other files and no sweep"):
        tune._claim(config(data, tmp_path / "t"), tune.plan_of(first, ""))


def command(data, out, *more):
    return [sys.executable, "-m", "pipelines", "tune", "--search", SEARCH, "--train", data, "--out", str(out),
            "--metric", "loss/total", "--set", "optim.steps=4", "optim.batch=2", "optim.warmup_steps=1",
            "--reports", "2", *more]  # fmt: skip


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.ray
def test_a_sweep_ends_with_a_table_a_page_and_the_best_run(data, tmp_path):
    out = tmp_path / "s"
    done = subprocess.run(
        command(data, out, "--trials", "2", "--scheduler", "none"),
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("at most 2 trials, 16 pictures in all")
    assert lines[-1] == f"best: maskray train --config {out}/best.json --out ..."
    trials = [json.loads(file.read_text()) for file in (out / "trials").glob("*/trial.json")]
    assert [len(trial["points"]) for trial in trials] == [2, 2]
    best = min(trials, key=lambda trial: trial["points"][-1]["value"])
    chosen = json.loads((out / "best.json").read_text())["optim"]["learning_rate"]
    assert chosen == best["choices"]["optim.learning_rate"]
    assert (out / "report.html").is_file()
    runs = _runs(out)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}


def _runs(out):
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    return client.search_runs([one.experiment_id for one in client.search_experiments()])


@pytest.mark.ray
@pytest.mark.soak
def test_ten_kills_of_the_driver_rerun_no_finished_trial(data, tmp_path):
    out, kills = tmp_path / "s", 0
    trials, finished = 8, {}
    for attempt in range(40):
        process = subprocess.Popen(
            command(data, out, "--trials", str(trials), "--scheduler", "none"), env=ENVIRONMENT, cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        begun, seen = time.monotonic(), _progress(out)
        while process.poll() is None and time.monotonic() - begun < 300:
            # A kill at a different place each time, after something was done.
            if kills < 10 and _progress(out) > seen and time.monotonic() - begun > 3 * (attempt % 4):
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.5)
        process.wait()
        for file in (out / "trials").glob("*/trial.json"):
            points = json.loads(file.read_text())["points"]
            if len(points) == 2:
                # A finished trial is never trained again: its last checkpoint stays the same file.
                last = Path(points[-1]["checkpoint"]) / "checkpoint.json"
                assert finished.setdefault(file, last.stat().st_mtime_ns) == last.stat().st_mtime_ns
        if process.returncode == 0:
            break
    assert (kills, process.returncode, len(finished)) == (10, 0, trials)


def _progress(out):
    return len(list((out / "trials").glob("*/checkpoints/*/checkpoint.json")))


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "pbt"])
def test_schedulers_end_with_all_resources_given_back(data, tmp_path, scheduler):
    out = tmp_path / "s"
    words = command(data, out, "--trials", "4", "--scheduler", scheduler, "--set", "optim.steps=9", "optim.batch=2")
    done = subprocess.run(
        words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "best.json").is_file()
    if scheduler == "pbt":
        histories = [json.loads(file.read_text())["points"] for file in (out / "trials").glob("*/trial.json")]
        assert all([point["step"] for point in history] == [5, 9] for history in histories)

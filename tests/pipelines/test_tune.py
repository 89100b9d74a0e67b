"""Sweeps: what is refused before Ray starts, what they cost, and small ones on local Ray."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import ray
from ray.tune.error import TuneError
from ray.util import placement_group_table

from pipelines import cli, prepare, prepare_config, shapes, sweep_runner, tune
from pipelines.presets import PRESETS, preset
from pipelines.ray_session import RayError, ray_session
from pipelines.sweep_runner import Watch
from pipelines.sweep_search import Algorithm, Scheduler
from pipelines.sweep_space import with_settings
from pipelines.sweep_state import SweepStateError
from pipelines.sweep_trial import Plan
from pipelines.sweeps import SWEEPS
from pipelines.tune_config import TuneConfig, plan_of, settled
from tests.pipelines import tiny_run

ROOT = Path(__file__).parents[2]
IN_EPOCHS = next(name for name in PRESETS if preset(name).optim.epochs and preset(name).optim.milestones)
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
        ({"set": ("optim.steps=4", "optim.epochs=2")}, "optim.steps and optim.epochs are both set"),
        (
            {"scheduler": Scheduler.PBT, "search": ("optim.batch=choice(2,4)",)},
            "pbt changes settings while a trial runs, and optim.batch cannot change then",
        ),
        (
            {"metric": "keypoints/AP", "val": "v"},
            r"the metric keypoints/AP needs classes of 17 keypoints, the data have \[2\]",
        ),
        (
            {"metric": "mask/AP", "val": "v", "search": ("detector.mask.enabled=choice(true,false)",)},
            "detector.mask.enabled=False finds no mask, and the metric is mask/AP: choose another --metric",
        ),
        (
            {
                "search": ("detector.keypoint.enabled=choice(true,false)",),
                "set": ("detector.keypoint.num_keypoints=1", "detector.keypoint.flip_pairs=[]"),
            },
            r"detector.keypoint.enabled=True learns 1 keypoints, the data have \[2\]",
        ),
    ],
)
def test_sweeps_that_are_refused_before_ray_starts(data, tmp_path, changes, message):
    changes = {**changes, "val": data} if "val" in changes else changes
    with pytest.raises((ValueError, TypeError), match=message):
        tune.run(config(data, tmp_path / "s", **changes), "", lambda line: None)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "metric", "algorithm", "scheduler"),
    [
        ("", "mask/AP", Algorithm.RANDOM, Scheduler.ASHA),
        ("schedules", "mask/AP", Algorithm.RANDOM, Scheduler.ASHA),
        ("table_2a", "mask/AP", Algorithm.GRID, Scheduler.NONE),
        ("table_3", "box/AP", Algorithm.GRID, Scheduler.NONE),
        ("table_5", "box/AP", Algorithm.GRID, Scheduler.NONE),
        ("table_6", "keypoints/AP", Algorithm.GRID, Scheduler.NONE),
        ("table_9", "keypoints/AP", Algorithm.GRID, Scheduler.NONE),
    ],
)
def test_a_named_sweep_knows_how_it_is_searched(name, metric, algorithm, scheduler):
    made = settled(TuneConfig(train=("d",), val="v", out="o"), name)
    assert (made.metric, made.algorithm, made.scheduler) == (metric, algorithm, scheduler)
    asked = TuneConfig(train=("d",), out="o", metric="loss/total", algorithm=Algorithm.OPTUNA, scheduler=Scheduler.PBT)
    assert settled(asked, name) == asked
    with pytest.raises(ValueError, match=f"the metric {metric} needs --val"):
        settled(TuneConfig(train=("d",), out="o"), name)


def lengths(data, out, name="", **changes):
    """Steps of the first and of the last choice of each dimension of a sweep over a preset that counts epochs."""
    plan = plan_of(config(data, out, metric="loss/total", **changes), name)
    dimensions = {one.name: (one.ends()[0], one.ends()[-1]) for one in plan.dimensions}
    trials = [{key: ends[at] for key, ends in dimensions.items()} for at in (0, 1)]
    return [tune.trial_config(plan, trial, "t").optim for trial in trials]


def test_sweeps_count_in_steps_also_where_the_preset_counts_epochs(data, tmp_path):
    optim = preset(IN_EPOCHS).optim
    base = {"preset": IN_EPOCHS, "set": ("optim.batch=3", "optim.warmup_steps=1", "optim.reference_batch=0")}
    epochs, pictures = optim.epochs, 9
    once, thrice = lengths(data, tmp_path, "length", search=(), **base)
    assert (once.steps, thrice.steps) == (epochs * pictures // 3, 3 * epochs * pictures // 3)
    assert once.epochs == 0
    assert thrice.milestones == tuple(3 * step for step in once.milestones) != ()
    # Another batch makes another number of steps of the same epochs.
    small, large = lengths(data, tmp_path, search=("optim.batch=choice(3,9)",), **base)
    assert (small.steps, large.steps) == (epochs * 3, epochs)
    # A number of steps is what it says, its milestones at the same shares.
    of_steps = {**base, "set": (*base["set"], "optim.steps=120")}
    fixed, _ = lengths(data, tmp_path, search=(SEARCH,), **of_steps)
    assert fixed.steps == 120
    assert fixed.milestones == tuple(round(120 * epoch / epochs) for epoch in optim.milestones)
    searched = lengths(data, tmp_path, search=("optim.steps=choice(40,80)",), **base)
    assert [optim.steps for optim in searched] == [40, 80]


def test_a_sweep_in_an_object_store_needs_a_tracking_server(data):
    with pytest.raises(ValueError, match="s3://bucket/sweep cannot hold the sweep's database: give --tracking-uri"):
        plan_of(config(data, "s3://bucket/sweep"), "")


def test_the_cost_is_that_of_the_longest_trials(data, tmp_path):
    plan = plan_of(config(data, tmp_path, search=("optim.steps=choice(4,10)", "optim.batch=choice(2,3)")), "")
    asked = config(data, tmp_path, trials=5, pictures_per_s=0.5)
    assert tune.estimate(asked, plan) == (5, 5 * 30, pytest.approx(150 / 0.5 / 3600))
    grid = config(data, tmp_path, algorithm=Algorithm.GRID)
    assert tune.estimate(grid, plan).trials == 4


def test_the_cost_looks_at_every_variant(data, tmp_path):
    # Only the second and later rows of this table set a length.
    plan = plan_of(config(data, tmp_path, search=(), metric="loss/total"), "table_8")
    assert tune._longest(plan).optim.steps == 8


def on_machines(monkeypatch, *machines):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": of_one} for of_one in machines])
    monkeypatch.setattr("pipelines.ray_session.autoscales", lambda: False)
    names = {name for of_one in machines for name in of_one}
    monkeypatch.setattr("ray.cluster_resources", lambda: {n: sum(m.get(n, 0) for m in machines) for n in names})


def planned(metric="mask/AP", **execution):
    base = preset("small_mask_rcnn_r18_fpn")
    return Plan(
        with_settings(base, {f"execution.{name}": value for name, value in execution.items()}), (), metric, 1, False
    )


@pytest.mark.parametrize(
    ("plan", "limit", "machines", "wanted"),
    [
        ({}, 0, [{"CPU": 2}], 1),
        ({"metric": "loss/total"}, 0, [{"CPU": 2}], 2),
        ({}, 0, [{"CPU": 9}], 8),
        ({}, 3, [{"CPU": 9}], 3),
        ({}, 0, [{"CPU": 0}, {"CPU": 3}, {"CPU": 3}], 5),
        ({"workers": 2, "cpus_per_worker": 2}, 0, [{"CPU": 9}], 2),
        # Three CPUs of a machine hold one worker of two, whatever all of them add up to.
        ({"cpus_per_worker": 2}, 0, [{"CPU": 3}, {"CPU": 3}, {"CPU": 3}], 3),
        ({"gpu": True}, 0, [{"CPU": 32, "GPU": 8}], 7),
        ({"gpu": True, "workers": 4}, 0, [{"CPU": 32, "GPU": 4}], 1),
        ({"gpu": True, "workers": 4}, 0, [{"CPU": 32, "GPU": 16}], 3),
        ({"gpu": True, "cpus_per_worker": 8}, 0, [{"CPU": 32, "GPU": 8}], 3),
        ({"metric": "loss/total", "workers": 2, "loader_actors": 1}, 0, [{"CPU": 8}], 2),
        ({"metric": "loss/total", "workers": 2, "loader_actors": 3}, 0, [{"CPU": 8}], 1),
        ({"gpu": True, "loader_actors": 4}, 0, [{"CPU": 8, "GPU": 8}, {"CPU": 16}], 4),
    ],
)
def test_as_many_trials_as_the_machines_hold(monkeypatch, plan, limit, machines, wanted):
    on_machines(monkeypatch, *machines)
    assert sweep_runner.concurrency(planned(**plan), limit) == wanted


@pytest.mark.parametrize(
    ("plan", "machines", "message"),
    [
        (
            {"workers": 2},
            [{"CPU": 2}],
            "a trial of 2 workers, and measuring, does not fit this Ray cluster, which has room for 1",
        ),
        (
            {"cpus_per_worker": 2},
            [{"CPU": 1}] * 4,
            "a trial of 1 workers, and measuring, does not fit this Ray cluster",
        ),
        (
            {"metric": "loss/total", "loader_actors": 2},
            [{"CPU": 2}],
            "a trial of 1 workers does not fit this Ray cluster",
        ),
        (
            {"gpu": True},
            [{"CPU": 8}],
            "a trial of 1 workers of one GPU does not fit this Ray cluster, which has room for 0",
        ),
    ],
)
def test_a_cluster_too_small_for_one_trial(monkeypatch, plan, machines, message):
    on_machines(monkeypatch, *machines)
    with pytest.raises(RayError, match=message):
        sweep_runner.concurrency(planned(**plan), 0)


def test_the_time_is_told_from_the_first_steps(monkeypatch):
    said, speeds = [], [0.0, 4.0, 4.0]
    watch = Watch(metric="mask/AP", say=said.append, speed=lambda: speeds.pop(0), pictures=14_400 * 4, at_once=2,
                  finished=(), place="p")  # fmt: skip
    monkeypatch.setattr(sweep_runner, "_ASK_EVERY_S", -1.0)
    for _ in range(3):
        watch.on_step_end(0, [])
    assert said == ["4 pictures a second and trial: all of them take at most 2.0 hours"]
    assert speeds == [4.0]


def test_finished_trials_that_ray_forgot_are_not_trained_again():
    def watch():
        return Watch(metric="m", say=print, speed=float, pictures=0, at_once=1, finished={"a_1"}, place="s/ray")

    with pytest.raises(
        SweepStateError, match=r"the record of the sweep at s/ray is damaged: 1 finished trials \(a_1\)"
    ):
        watch().on_step_begin(0, [])
    known = watch()
    known.on_step_begin(0, [types.SimpleNamespace(trial_id="a_1")])
    known.on_step_begin(1, [])  # it looks once


def test_what_ray_tune_raises_is_one_line_and_the_sweep_goes_on(data, tmp_path, monkeypatch):
    class Failing:
        def fit(self):
            raise TuneError("Traceback ...\nthe trials did not complete")

    monkeypatch.setattr(sweep_runner, "_new", lambda *_: Failing())
    settings = config(data, tmp_path / "s")
    search = sweep_runner.Search(Algorithm.RANDOM, Scheduler.NONE, "max", 2, 0)
    watch = Watch(metric="m", say=print, speed=float, pictures=0, at_once=1, finished=(), place="p")
    with pytest.raises(sweep_runner.SweepError, match=r"ended the sweep \(the trials did not complete\): the same"):
        sweep_runner.fit(plan_of(settings, ""), search, 8, str(tmp_path / "s"), 1, None, watch)


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, "KILLED"), (SweepStateError, "FAILED")])
def test_a_sweep_that_is_interrupted_ends_its_run_as_killed(data, tmp_path, monkeypatch, raised, status):
    def ended(*_):
        raise raised

    monkeypatch.setattr(tune, "_fit", ended)
    out = tmp_path / "s"
    with pytest.raises(raised):
        tune.run(config(data, out), "", print)
    (run,) = _runs(out)
    assert run.info.status == status


def test_an_unknown_sweep_lists_those_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", "everything"])
    assert end.value.code == 2
    assert "tune needs a sweep, got 'everything': one of length, schedules" in capsys.readouterr().err


def test_a_folder_is_one_sweeps(data, tmp_path):
    first = config(data, tmp_path / "s")
    tune._claim(first, plan_of(first, ""))
    tune._claim(first, plan_of(first, ""))
    other = config(data, tmp_path / "s", trials=3)
    with pytest.raises(tune.SweepConflictError, match="holds a sweep with other settings"):
        tune._claim(other, plan_of(other, ""))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "notes.txt").touch()
    with pytest.raises(tune.SweepConflictError, match="holds other files and no sweep"):
        tune._claim(config(data, tmp_path / "t"), plan_of(first, ""))


def command(data, out, *more, metric="loss/total"):
    return [sys.executable, "-m", "pipelines", "tune", "--search", SEARCH, "--train", data, "--out", str(out),
            "--metric", metric, "--set", "optim.steps=4", "optim.batch=2", "optim.warmup_steps=1",
            "--reports", "2", *more]  # fmt: skip


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.ray
def test_a_sweep_ends_with_a_table_a_page_and_the_best_run(data, tmp_path):
    out = tmp_path / "s"
    done = subprocess.run(
        command(data, out, "--trials", "2", "--scheduler", "none", "--val", data, metric="box/AP"),
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("at most 2 trials, 16 pictures in all")
    assert lines[-1] == f"best: maskray train --config {out}/best.json --out ..."
    trials = [json.loads(file.read_text()) for file in (out / "trials").glob("*/trial.json")]
    assert [len(trial["points"]) for trial in trials] == [2, 2]
    assert all(-1 <= point["value"] <= 1 for trial in trials for point in trial["points"])
    best = max(trials, key=lambda trial: trial["points"][-1]["value"])
    chosen = json.loads((out / "best.json").read_text())["optim"]["learning_rate"]
    values = {trial["choices"]["optim.learning_rate"]: trial["points"][-1]["value"] for trial in trials}
    assert values[chosen] == best["points"][-1]["value"]
    assert (out / "report.html").is_file()
    runs = _runs(out)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    # The same command again changes nothing: no trial, and no second run of the sweep.
    again = subprocess.run(
        command(data, out, "--trials", "2", "--scheduler", "none", "--val", data, metric="box/AP"),
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.splitlines()[-1] == lines[-1]
    assert {run.info.run_id for run in _runs(out)} == {run.info.run_id for run in runs}


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
    words = command(data, out, "--trials", "4", "--scheduler", scheduler, "--set", "optim.steps=12", "optim.batch=2",
                    "--reports", "4")  # fmt: skip
    done = subprocess.run(
        words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "best.json").is_file()
    if scheduler == "pbt":
        histories = [json.loads(file.read_text())["points"] for file in (out / "trials").glob("*/trial.json")]
        assert all([point["step"] for point in history] == [3, 6, 9, 12] for history in histories)


@pytest.mark.ray
@pytest.mark.soak
def test_trials_stopped_early_leave_nothing_on_a_cluster_that_stays(data, tmp_path):
    asked = config(
        data, tmp_path / "s", trials=4, max_concurrent=2, scheduler=Scheduler.ASHA,
        set=("optim.steps=12", "optim.batch=2", "optim.warmup_steps=1"), reports=4,
    )  # fmt: skip
    with ray_session(num_cpus=3, dashboard=True):
        tune.run(asked, "", print)
        end = time.monotonic() + 120
        while ray.available_resources().get("CPU") != 3 and time.monotonic() < end:
            time.sleep(1)
        assert ray.available_resources()["CPU"] == 3
        assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


SMALL = ("optim.steps=2", "optim.batch=2", "optim.warmup_steps=1", "detector.picture.short_edge_px=32",
         "detector.picture.long_edge_px=48")  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Generated pictures whose shapes have the 17 keypoints of persons: a labelled set and another."""
    folder = tmp_path_factory.mktemp("people")
    shapes.generate(shapes.ShapesConfig(train=8, val=4, unlabelled=0, size_px=64, keypoints=True), folder / "raw")
    with ray_session(num_cpus=1):
        for split in ("train", "val"):
            prepare.run(
                prepare_config.PrepareCoco(
                    images=str(folder / "raw" / f"{split}2017"), out=str(folder / split),
                    annotations=str(folder / "raw" / "annotations" / f"instances_{split}2017.json"),
                )
            )  # fmt: skip
    return folder


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.parametrize("name", SWEEPS)
def test_every_named_sweep_runs_on_two_cores(people, tmp_path, name):
    train = (str(people / "train"), *([str(people / "val")] if name in ("distillation", "score_floors") else ()))
    with ray_session(num_cpus=2, dashboard=True):
        result = tune.run(
            TuneConfig(
                train=train, val=str(people / "val"), out=str(tmp_path / "s"), set=SMALL, trials=2, reports=1,
            ),
            name,
            print,
        )  # fmt: skip
    assert [trial.error for trial in result.trials] == [""] * len(result.trials)
    assert all(len(trial.points) == 1 and trial.is_whole for trial in result.trials)
    assert len(result.trials) == tune.estimate(settled(TuneConfig(train=train, val="v", out="o", trials=2), name),
                                               plan_of(TuneConfig(train=train, val=train[0], out=str(tmp_path / "t")),
                                                       name)).trials  # fmt: skip

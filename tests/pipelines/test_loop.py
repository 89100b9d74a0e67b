"""Training on the CPU without Ray: it learns, it resumes bit for bit, two workers are one, and NaN ends it."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from model.config import DetectorConfig, Norm, PictureConfig
from model.detector import loss_names
from model.settings import override, to_dict
from pipelines import checkpoints, commit, loop, train, train_feed
from pipelines.config import EvaluationConfig, Precision
from pipelines.loop import Job, Supervisor, TrainingError, fit
from pipelines.optim import Algorithm
from pipelines.run_file import RunConflictError
from tests.pipelines import tiny_run, tiny_shards
from tests.pipelines.killed_runs import random_times
from tests.pipelines.tiny_run import CPU


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of 6 steps that nothing disturbed: its folder and what it reported."""
    out, rows = tmp_path_factory.mktemp("whole"), []
    fit(tiny_run.job(tiny_run.config(data, out)), CPU, rows.append)
    return out, rows


class StoppedError(Exception):
    pass


def stop_at(step):
    def emit(row):
        if row["step"] == step:
            raise StoppedError

    return emit


def folders(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir()) if (out / "checkpoints").exists() else []


def test_the_loss_goes_down(data, tmp_path):
    rows = []
    steps = {"steps": 15, "learning_rate": 3e-3, "algorithm": Algorithm.ADAMW}
    config = tiny_run.config(data, tmp_path, optim=steps, execution={"checkpoint_every": 100})
    fit(tiny_run.job(config), CPU, rows.append)
    losses = [row["loss/total"] for row in rows]
    assert len(losses) == 15
    assert np.mean(losses[-4:]) < 0.75 * np.mean(losses[:2])
    assert folders(tmp_path) == ["step-00000015"]


def test_what_a_run_reports(whole):
    _, rows = whole
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        losses = [row[f"loss/{name}"] for name in loss_names(DetectorConfig())]
        assert all(np.isfinite(losses))
        assert row["loss/total"] == pytest.approx(sum(losses))
        assert row["epoch"] == pytest.approx(row["step"] * 4 / 9)
        assert row["pictures_per_s"] > 0
        assert 0 <= row["data_wait_share"] <= 1
    warm = [row["learning_rate"] for row in rows[:3]]
    assert warm[0] == pytest.approx(0.002)
    assert warm[0] < warm[1] < warm[2]


def test_reports_and_checkpoints_come_when_they_are_due(data, whole, tmp_path):
    rows = []
    config = tiny_run.config(data, tmp_path, execution={"report_every": 4, "checkpoint_every": 5})
    fit(tiny_run.job(config), CPU, rows.append)
    assert [row["step"] for row in rows] == [4, 5, 6]
    assert folders(tmp_path) == ["step-00000005", "step-00000006"]
    out, every = whole
    assert folders(out) == ["step-00000002", "step-00000004", "step-00000006"]
    # The mean of what a run that reports every step reported; and when it reports changes nothing else.
    assert rows[0]["loss/cls"] == pytest.approx(np.mean([row["loss/cls"] for row in every[:4]]), rel=1e-5)
    assert checkpoints.load(str(tmp_path)).hash == checkpoints.load(str(out)).hash


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_an_interrupted_run_ends_where_the_whole_one_does(data, whole, tmp_path, step):
    job = tiny_run.job(tiny_run.config(data, tmp_path))
    with pytest.raises(StoppedError):
        fit(job, CPU, stop_at(step))
    assert folders(tmp_path) == [f"step-{done:08d}" for done in (2, 4) if done < step]
    rows = []
    fit(job, CPU, rows.append)
    first = max([done for done in (2, 4) if done < step], default=0)
    assert [row["step"] for row in rows] == list(range(first + 1, 7))
    out, every = whole
    for row, other in zip(rows, every[first:], strict=True):
        assert {k: v for k, v in row.items() if "/" in k} == {k: v for k, v in other.items() if "/" in k}
    # The hash covers weights, norm statistics and the optimiser, bit for bit.
    assert checkpoints.load(str(tmp_path)).hash == checkpoints.load(str(out)).hash


RECIPES = {
    "average": ({"ema_decay": 0.9}, {}, {}),
    "float16": ({}, {"precision": Precision.FP16}, {}),
    "parts": ({}, {}, {"accumulate": 2}),
    "deterministic": ({}, {"deterministic": True}, {}),
    "adamw-bf16-average": ({"algorithm": Algorithm.ADAMW, "ema_decay": 0.99}, {"precision": Precision.BF16}, {}),
}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_an_interrupted_run_of_any_recipe_resumes_exactly(data, tmp_path, recipe):
    optim, changes, execution = RECIPES[recipe]
    optim = {"steps": 4, **optim}
    jobs = [
        tiny_run.job(tiny_run.config(data, tmp_path / name, optim=optim, execution=execution, **changes))
        for name in "ab"
    ]
    fit(jobs[0], CPU, lambda row: None)
    with pytest.raises(StoppedError):
        fit(jobs[1], CPU, stop_at(3))
    fit(jobs[1], CPU, lambda row: None)
    assert checkpoints.load(str(tmp_path / "a")).hash == checkpoints.load(str(tmp_path / "b")).hash


class Asks(Supervisor):
    """Asks to stop at a step, and keeps what it is told."""

    def __init__(self, stop_at=None):
        self.now, self.stop, self.saved, self.phases = 0, stop_at, [], []

    def at(self, step, phase):
        self.now = step
        self.phases.append((step, phase))

    def committed(self, step):
        self.saved.append(step)

    def stop_asked(self):
        return self.stop is not None and self.now >= self.stop


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_asked_to_stop_finishes_its_step_and_saves_and_resumes_exactly(data, whole, tmp_path, step):
    job = tiny_run.job(tiny_run.config(data, tmp_path))
    asks = Asks(step)
    assert fit(job, CPU, lambda row: None, asks) == step
    assert asks.saved == [*range(2, step, 2), step]
    assert fit(job, CPU, lambda row: None) == 6
    assert checkpoints.load(str(tmp_path)).hash == checkpoints.load(str(whole[0])).hash


def test_a_supervisor_is_told_where_the_worker_is(data, tmp_path):
    asks = Asks()
    fit(tiny_run.job(tiny_run.config(data, tmp_path, optim={"steps": 2})), CPU, lambda row: None, asks)
    assert [step for step, _ in asks.phases] == sorted(step for step, _ in asks.phases)
    assert {phase for _, phase in asks.phases} == {"data", "compute", "report", "checkpoint"}
    assert asks.saved == [2]


def test_checkpoints_that_are_measured_are_made(data, tmp_path):
    config = tiny_run.config(data, tmp_path, evaluation=EvaluationConfig(every=5), execution={"checkpoint_every": 4})
    fit(tiny_run.job(config), CPU, lambda row: None)
    assert folders(tmp_path) == ["step-00000004", "step-00000005", "step-00000006"]


def poison(monkeypatch, *steps, rank=0):
    """Pictures of some steps hold a number that is none."""
    parts = train_feed.Feed.parts
    given = []

    def poisoned(feed):
        given.append(feed)
        for part in parts(feed):
            is_bad = len(given) in steps and feed._batches._worker == rank
            yield tiny_run.poisoned_part(part) if is_bad else part

    monkeypatch.setattr(train_feed.Feed, "parts", poisoned)


def test_steps_that_are_not_finite_may_be_left_out(data, tmp_path, monkeypatch):
    poison(monkeypatch, 2, 4, 5)
    config = tiny_run.config(data, tmp_path, optim={"max_skipped": 2}, execution={"report_every": 3})
    rows = []
    assert fit(tiny_run.job(config), CPU, rows.append) == 6
    assert [(row["step"], row["skipped_steps"]) for row in rows] == [(2, 1), (3, 0), (4, 1), (6, 1)]
    assert "loss/total" not in rows[2]  # no good step in it
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    written = sorted(path.name for path in (tmp_path / "skipped").iterdir())
    assert written == [f"step-0000000{step}-worker-0.json" for step in (2, 4, 5)]
    for value in checkpoints.load_detector(checkpoints.load(str(tmp_path))).state_dict().values():
        assert value.isfinite().all()


def test_too_many_in_a_row_end_the_run(data, tmp_path, monkeypatch):
    poison(monkeypatch, 3, 4, 5)
    config = tiny_run.config(data, tmp_path, optim={"max_skipped": 2})
    with pytest.raises(TrainingError, match=r"a loss of worker 0 is not finite at step 5 \(its .*skipped 6 goes on"):
        fit(tiny_run.job(config), CPU, lambda row: None)
    assert folders(tmp_path) == ["step-00000002", "step-00000004"]
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, max_skipped=6))
    monkeypatch.undo()
    assert fit(tiny_run.job(config), CPU, lambda row: None) == 6


@pytest.mark.parametrize("broken", range(1, 10))
def test_a_store_that_fails_at_any_write_costs_nothing_that_was_committed(data, whole, tmp_path, monkeypatch, broken):
    """Two checkpoints of four files each; the run goes on exactly when the store is well again."""
    write, count = commit.write_file, []

    def failing(filesystem, path, content, **options):
        count.append(path)
        if len(count) >= broken:
            raise OSError(28, "No space left on device")
        write(filesystem, path, content, **options)

    monkeypatch.setattr("pipelines.checkpoint_writer.RETRIES_S", ())
    monkeypatch.setattr(commit, "write_file", failing)
    job = tiny_run.job(tiny_run.config(data, tmp_path))
    with pytest.raises(OSError, match=r"the checkpoint of step \d could not be written to .*No space left.*free space"):
        fit(job, CPU, lambda row: None)
    monkeypatch.undo()
    assert checkpoints.steps(str(tmp_path)) == [2, 4][: (broken - 1) // 4]
    fit(job, CPU, lambda row: None)
    assert checkpoints.load(str(tmp_path)).hash == checkpoints.load(str(whole[0])).hash


def test_a_short_outage_of_the_store_is_sat_out(data, tmp_path, monkeypatch):
    write, failures = commit.write_file, [OSError(5, "Input/output error")] * 2

    def failing(filesystem, path, content, **options):
        if failures:
            raise failures.pop()
        write(filesystem, path, content, **options)

    monkeypatch.setattr("pipelines.checkpoint_writer.RETRIES_S", (0.0, 0.01))
    monkeypatch.setattr(commit, "write_file", failing)
    assert fit(tiny_run.job(tiny_run.config(data, tmp_path, optim={"steps": 2})), CPU, lambda row: None) == 2
    assert folders(tmp_path) == ["step-00000002"]


def test_steps_go_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    begun, release, write = threading.Event(), threading.Event(), checkpoints.write

    def slow(run, made):
        begun.set()
        assert release.wait(20)
        return write(run, made)

    monkeypatch.setattr(checkpoints, "write", slow)
    rows = []

    def emit(row):
        rows.append(row["step"])
        if row["step"] == 4:  # the checkpoint of step 2 is still being written; that of step 4 waits for it
            assert begun.is_set()
            release.set()

    assert fit(tiny_run.job(tiny_run.config(data, tmp_path)), CPU, emit) == 6
    assert rows == [1, 2, 3, 4, 5, 6]
    assert folders(tmp_path) == ["step-00000002", "step-00000004", "step-00000006"]


def test_a_run_interrupted_twice_with_adamw(data, tmp_path):
    optim = {"algorithm": Algorithm.ADAMW, "learning_rate": 1e-3}
    jobs = [tiny_run.job(tiny_run.config(data, tmp_path / name, Norm.GROUP, optim)) for name in ("a", "b")]
    fit(jobs[0], CPU, lambda row: None)
    for step in (3, 5):
        with pytest.raises(StoppedError):
            fit(jobs[1], CPU, stop_at(step))
    fit(jobs[1], CPU, lambda row: None)
    made = [checkpoints.load(str(tmp_path / name)) for name in ("a", "b")]
    assert made[0].hash == made[1].hash


def test_a_finished_run_does_nothing_more(data, whole):
    out, _ = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    fit(tiny_run.job(tiny_run.config(data, out)), CPU, stop_at(6))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_seed_decides(data, whole, tmp_path):
    config = tiny_run.config(data, tmp_path, seed=1, optim={"steps": 1})
    fit(tiny_run.job(config), CPU, lambda row: None)
    first = checkpoints.load_detector(checkpoints.load(f"{whole[0]}/checkpoints/step-00000002"))
    other = checkpoints.load_detector(checkpoints.load(str(tmp_path)))
    assert not torch.equal(first.rpn.head.convs[0].weight, other.rpn.head.convs[0].weight)


def test_training_starts_from_the_given_weights(data, whole, tmp_path):
    start = checkpoints.load(f"{whole[0]}/checkpoints/step-00000004")
    config = tiny_run.config(data, tmp_path, init=start.uri, optim={"steps": 1, "learning_rate": 1e-30})
    fit(tiny_run.job(config), CPU, lambda row: None)
    made, given = (checkpoints.load_detector(checkpoints.load(uri)) for uri in (str(tmp_path), start.uri))
    for (name, one), other in zip(made.named_parameters(), given.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_stage_wise_training_takes_the_proposals_of_another_detector(data, whole, tmp_path):
    start = checkpoints.load(f"{whole[0]}/checkpoints/step-00000004")
    config = tiny_run.config(data, tmp_path, rpn_from=start.uri, optim={"steps": 2})
    resolved = train.resolve(config)[0]
    assert resolved.detector.separate_rpn
    rows = []
    fit(tiny_run.job(resolved), CPU, rows.append)
    assert {name for name in rows[0] if name.startswith("loss/")} == {"loss/total", "loss/cls", "loss/box", "loss/mask"}
    made = checkpoints.load_detector(checkpoints.load(str(tmp_path))).state_dict()
    given = checkpoints.load_detector(start).state_dict()
    for name, value in given.items():
        if name.startswith("rpn."):
            assert torch.equal(made[name], value), name
        elif name.startswith("pyramid."):
            assert torch.equal(made[f"rpn_{name}"], value), name
    other = {"picture": PictureConfig(short_edge_px=64, long_edge_px=96, mean=(1.0, 2.0, 3.0))}
    with pytest.raises(RunConflictError, match=r"takes pictures with mean .*: choose --rpn-from"):
        train.resolve(dataclasses.replace(config, detector=tiny_run.detector_config(**other)))


def test_two_training_sets_share_each_batch(data, tmp_path):
    rows = [[tiny_shards.record(100 + k, [tiny_shards.thing(k, (4, 6, 30, 28))]) for k in range(3)]]
    extra = tiny_shards.write_dataset(tmp_path / "extra", rows)
    batches = train_feed.build_batches(tiny_run.config((data, extra), tmp_path, ratio=(3, 1)), CPU)
    assert [(batches[s].image_ids >= 100).sum().item() for s in range(4)] == [1] * 4
    batches = train_feed.build_batches(tiny_run.config((extra, data), tmp_path), CPU)  # 3 to 9 pictures
    assert [(batches[s].image_ids >= 100).sum().item() for s in range(4)] == [1] * 4


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    optim = {"learning_rate": 1e18, "warmup_steps": 0, "clip_norm": 0.0, "steps": 9}
    config = tiny_run.config(data, tmp_path, Norm.FROZEN, optim)
    rows = []
    with pytest.raises(
        TrainingError, match=r"(a loss of worker 0|a gradient) is not finite at step (\d) .*lower optim\.learning_rate"
    ) as caught:
        fit(tiny_run.job(config), CPU, rows.append)
    step = len(rows) + 1
    assert f"at step {step} " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(int(name[-8:]) < step for name in folders(tmp_path))
    written = json.loads((tmp_path / "skipped" / f"step-{step:08d}-worker-0.json").read_text())
    assert written["image_ids"] == train_feed.build_batches(config, CPU)[step - 1].image_ids.tolist()
    assert set(written["losses"]) == set(loss_names(DetectorConfig()))


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path):
    """The loss of a step is that of the weights before it."""
    optim = {"learning_rate": 3e38, "warmup_steps": 0, "clip_norm": 0.0, "steps": 1}
    config = tiny_run.config(data, tmp_path, Norm.FROZEN, optim)
    with pytest.raises(TrainingError, match="a weight is not finite at step 1: lower optim"):
        fit(tiny_run.job(config), CPU, lambda row: None)
    assert folders(tmp_path) == []


def test_a_job_survives_plain_values(data, tmp_path):
    job = Job(tiny_run.config(data, tmp_path, precision=Precision.BF16), tiny_shards.CLASSES)
    raw = {"config": to_dict(job.config), "classes": [dataclasses.asdict(info) for info in job.classes]}
    assert Job.from_dict(raw) == job


# Two checkpoints of four files (weights, optimiser, held-out ids, manifest): every fault point of each write, and some
# moments of which nobody chose the place.
FILES = 4
POINTS = [[write, point] for write in range(1, 2 * FILES + 1) for point in commit.FAULT_POINTS]
SOME = [POINTS[at] for at in (0, 7, 18, 27, 38)]


def killed_runs(data, folder, points):
    command = [sys.executable, "-m", "tests.pipelines.killed_runs", data.uri, str(folder), json.dumps(points)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "points", [pytest.param(SOME, id="some"), pytest.param([*POINTS, *random_times(14, 0.5, 2.5)], id="all",
                                                           marks=pytest.mark.soak)]
)  # fmt: skip
def test_a_run_killed_in_a_save_or_anywhere_resumes_exactly(data, tmp_path, points):
    whole = tiny_run.config(data, tmp_path / "whole", optim={"steps": 4})
    fit(tiny_run.job(whole), CPU, lambda row: None)
    wanted = checkpoints.load(whole.out).hash
    found = killed_runs(data, tmp_path, points)
    assert [point for point, *_ in found] == points
    for point, status, left, ended, step, hash_, temps in found:
        assert status == -signal.SIGKILL or len(point) == 1, point
        # A checkpoint is there once its manifest, the last file, has its name.
        manifests = (
            [(point[0] - (point[1] not in ("after_rename", "after_folder_fsync"))) // FILES] if point[1:] else [0, 1, 2]
        )
        assert left in [[2, 4][:count] for count in manifests], point
        assert (ended, step, hash_) == (0, 4, wanted), point
        assert temps == [], point


def distance(one, other):
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def two_workers(folder, work, *arguments):
    """What two gloo processes were left with."""
    mp.spawn(tiny_run.as_one_of_two, (work, str(folder), *arguments), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Three steps of two workers: the run, what each worker was left with, and the folder.

    A step's losses are means over what was sampled in a batch. Here every picture gives the same number of samples,
    one of them positive, so that the mean over two halves is the mean over the whole.
    """
    folder = tmp_path_factory.mktemp("two")
    data = tiny_run.dataset(folder / "data", stride=3)
    optim = {"steps": 3, "warmup_steps": 0, "learning_rate": 0.01}
    config = tiny_run.config(data, folder / "run", Norm.FROZEN, optim, {"workers": 2, "checkpoint_every": 2})
    config = override(override(config, "detector.box.samples", 8), "detector.box.positive_share", 0.125)
    return config, two_workers(folder, tiny_run.fit_and_keep, config), folder


def weights_at(out, step):
    return checkpoints.load_detector(checkpoints.load(f"{out}/checkpoints/step-{step:08d}")).state_dict()


def test_two_workers_have_the_same_weights_and_save_them_once(of_two):
    config, (left, right), folder = of_two
    saved = weights_at(config.out, 3)
    assert left["state"].keys() == right["state"].keys() == saved.keys()
    for name, value in left["state"].items():
        assert torch.equal(value, right["state"][name]), name
        assert torch.equal(value, saved[name]), name
    assert folders(folder / "run") == ["step-00000002", "step-00000003"]
    assert [row["step"] for row in left["rows"]] == [1, 2, 3]
    assert right["rows"] == []
    assert (left["saves"], right["saves"]) == ([2, 3], [])


def test_two_workers_are_one(of_two, tmp_path):
    config, (left, _), _ = of_two
    rows = []
    fit(tiny_run.job(dataclasses.replace(config, out=str(tmp_path))), CPU, rows.append)
    for row, other in zip(left["rows"], rows, strict=True):
        for name in loss_names(DetectorConfig()):
            assert row[f"loss/{name}"] == pytest.approx(other[f"loss/{name}"], rel=2e-3, abs=1e-5), (name, row["step"])
    for step in (2, 3):
        one, two = weights_at(tmp_path, step), weights_at(config.out, step)
        start = tiny_run.build(Norm.FROZEN).state_dict()
        assert distance(one, two) < 1e-3 * distance(one, start)


def test_one_worker_goes_on_from_a_checkpoint_of_two(of_two, tmp_path):
    config, _, folder = of_two
    target = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(folder / "run" / "checkpoints" / "step-00000002", target)
    rows = []
    fit(tiny_run.job(dataclasses.replace(config, out=str(tmp_path))), CPU, rows.append)
    assert [row["step"] for row in rows] == [3]
    one, two = weights_at(tmp_path, 3), weights_at(config.out, 3)
    assert distance(one, two) < 1e-3 * distance(one, weights_at(config.out, 2))


def test_a_compiled_run_is_one_graph_a_shape_and_learns_the_same(data, tmp_path, monkeypatch):
    """Pictures of one aspect, with masks of any number of bytes: nothing is traced a second time."""
    monkeypatch.setattr(loop, "_BACKEND", "aot_eager")
    monkeypatch.setattr("pipelines.loading._MIN_MASK_BYTES", 1)
    square = tiny_run.dataset(tmp_path / "square", stride=3)
    lost = []
    for compile_ in (False, True):
        settings = {"optim": {"steps": 4, "batch": 2}, "execution": {"compile": compile_}}
        config, rows = tiny_run.config(square, tmp_path / str(compile_), Norm.GROUP, **settings), []
        sizes = {
            len(batch.targets.masks.data) for batch in map(train_feed.build_batches(config, CPU).__getitem__, range(4))
        }
        assert len(sizes) > 1
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        fit(tiny_run.job(config), CPU, rows.append)
        lost.append([row["loss/total"] for row in rows])
    assert lost[1] == pytest.approx(lost[0], rel=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_what_cannot_be_compiled_is_an_error(data, tmp_path, monkeypatch):
    """Not a return to plain execution that nobody notices."""
    monkeypatch.setattr(loop, "_BACKEND", "aot_eager")

    def losses(self, images, targets):
        print("a graph break")
        return {"none": images.pixels.float().mean()}

    monkeypatch.setattr("model.detector.Detector.losses", losses)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        fit(tiny_run.job(tiny_run.config(data, tmp_path, execution={"compile": True})), CPU, lambda row: None)


def test_norms_over_all_workers_see_the_whole_batch(data, tmp_path):
    """On CPUs too: the statistics are those of one worker that has the batch to itself."""
    config = tiny_run.config(
        tiny_run.dataset(tmp_path / "square", stride=3), tmp_path / "one", Norm.SYNC, optim={"steps": 1}
    )
    made = fit_and_state(config)
    other = dataclasses.replace(config, out=str(tmp_path / "two"))
    other = dataclasses.replace(other, execution=dataclasses.replace(other.execution, workers=2))
    left, right = two_workers(tmp_path, tiny_run.fit_and_keep, other)
    name = next(key for key in made if key.endswith("running_var"))
    assert torch.equal(left["state"][name], right["state"][name])
    torch.testing.assert_close(left["state"][name], made[name])


def fit_and_state(config):
    fit(tiny_run.job(config), CPU, lambda row: None)
    return checkpoints.load_detector(checkpoints.load(config.out)).state_dict()


def test_workers_agree_to_leave_out_a_step_that_only_one_could_not_do(data, tmp_path):
    config = tiny_run.config(data, tmp_path / "run", optim={"steps": 3, "max_skipped": 1}, execution={"workers": 2})
    left, right = two_workers(tmp_path, tiny_run.fit_with_a_bad_picture, config, 2)
    assert right == []
    assert [(row["step"], row["skipped_steps"]) for row in left] == [(1, 0), (2, 1), (3, 0)]
    # Only the worker whose pictures they were names them, and the weights saved are those of good steps.
    assert [path.name for path in (tmp_path / "run" / "skipped").iterdir()] == ["step-00000002-worker-1.json"]
    written = json.loads((tmp_path / "run" / "skipped" / "step-00000002-worker-1.json").read_text())
    share = train_feed.build_batches(config, train_feed.Place(1, 2, torch.device("cpu")))[1]
    assert written["image_ids"] == share.image_ids.tolist()
    for value in checkpoints.load_detector(checkpoints.load(config.out)).state_dict().values():
        assert value.isfinite().all()


def test_workers_agree_to_leave_out_a_step_whose_gradient_only_one_spoilt(data, tmp_path):
    """Every loss is finite; whose gradient it was cannot be told, so both name their pictures."""
    config = tiny_run.config(data, tmp_path / "run", optim={"steps": 3, "max_skipped": 1}, execution={"workers": 2})
    left, right = two_workers(tmp_path, tiny_run.fit_with_a_bad_gradient, config, 2)
    assert right == []
    assert [(row["step"], row["skipped_steps"]) for row in left] == [(1, 0), (2, 1), (3, 0)]
    names = sorted(path.name for path in (tmp_path / "run" / "skipped").iterdir())
    assert names == [f"step-00000002-worker-{rank}.json" for rank in (0, 1)]
    for value in checkpoints.load_detector(checkpoints.load(config.out)).state_dict().values():
        assert value.isfinite().all()


@pytest.mark.soak
def test_workers_agree_to_stop(data, tmp_path):
    settings = {"optim": {"steps": 3, "max_skipped": 0}, "execution": {"workers": 2}}
    config = tiny_run.config(data, tmp_path / "run", **settings)
    told = two_workers(tmp_path, tiny_run.fit_with_a_bad_picture, config, 2)
    assert told[0] == told[1]
    assert told[0].startswith("TrainingError: a loss of worker 1 is not finite at step 2 (its pictures: ")
    assert folders(tmp_path / "run") == []


def test_a_replica_that_drifts_apart_is_found_before_it_is_saved(data, tmp_path):
    execution = {"workers": 2, "checkpoint_every": 2}
    config = tiny_run.config(data, tmp_path / "run", execution=execution)
    told = two_workers(tmp_path, tiny_run.fit_on_a_machine_that_computes_wrongly, config, 3)
    assert told[0] == told[1]
    assert told[0].startswith(
        "TrainingError: the weights of worker 1 are not those of the others at step 4: its machine"
    )
    assert folders(tmp_path / "run") == ["step-00000002"]

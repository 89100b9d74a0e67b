"""Ray Train around the loop: who dies, hangs or errs, and what becomes of the run."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import ray

from pipelines import checkpoints, launch
from pipelines.config import EvaluationConfig
from pipelines.elastic import Elastic
from pipelines.inbox import Failure
from pipelines.loop import TrainingError
from pipelines.ray_session import RayError, ray_session
from pipelines.train_feed import LoaderKilledError
from pipelines.train_worker import Wire, failure_of
from pipelines.validation import Measurements
from tests.pipelines import tiny_run, tiny_shards

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def local_ray():
    with ray_session(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"))


class Rows:
    """A tracker that keeps what it is given, and does things at steps."""

    def __init__(self, *acts):
        self.rows, self.files, self._acts = [], [], list(acts)

    def file(self, folder, name, content):
        self.files.append(f"{folder}/{name}")

    def metrics(self, values, step):
        self.rows.append((step, values))
        if self._acts and step >= self._acts[0][0]:
            self._acts.pop(0)[1]()

    def steps(self):
        return [step for step, values in self.rows if "pictures_per_s" in values]


def workers():
    """Process ids of the training workers of this machine that descend from this process."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
            parents[int(stat.parent.name)] = int(rest[1])
            # Linux cuts the name of a process to 15 letters.
            if name.startswith("ray::RayTrain") or b"RayTrainWorker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue

    def is_mine(pid):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return sorted(pid for pid in found if is_mine(pid))


def send(which, kind):
    def act():
        os.kill(random.Random(0).choice(workers()) if which == "worker" else os.getpid(), kind)

    return act


def soaked(few, many):
    """A few every day, in `make soak` the rest."""
    return [*few, *(pytest.param(*one if isinstance(one, tuple) else (one,), marks=pytest.mark.soak) for one in many)]


def run_of(data, out, steps=12, execution=None, optim=None, **changes):
    settings = {"workers": 2, "checkpoint_every": 3, "keep_checkpoints": 2, **(execution or {})}
    return tiny_run.config(data, out, optim={"steps": steps, **(optim or {})}, execution=settings, **changes)


def attempts(out):
    return len([path for path in (out / "ray").iterdir() if path.name.startswith("attempt-")])


@pytest.fixture(scope="module")
def whole(local_ray, data, tmp_path_factory):
    """Two workers that nothing disturbed, measured on the way."""
    out = tmp_path_factory.mktemp("whole")
    val = tiny_run.dataset(out / "val", (3,))
    config = run_of(data, out / "run", val=val.uri, evaluation=EvaluationConfig(every=6))
    rows = Rows()
    assert launch.launch(config, tiny_shards.CLASSES, rows) == 12
    return out / "run", rows


def test_workers_report_and_checkpoints_are_measured_and_cleared(whole):
    out, rows = whole
    assert rows.steps() == list(range(1, 13))
    measured = [(step, values) for step, values in rows.rows if "val/mask/AP" in values]
    assert [step for step, _ in measured] == [6, 12]
    assert {name for name in rows.files if name.endswith(".html")} == {
        f"figures/step-{step:08d}/precision-recall.html" for step in (6, 12)
    }
    found = Measurements(str(out), "mask/AP")
    assert sorted(found.values) == [6, 12]
    assert set(checkpoints.steps(str(out))) == {9, 12, found.best}
    assert attempts(out) == 1


@pytest.mark.parametrize(
    ("killed", "stopped"), soaked([(5, 8)], [(kill, stop) for kill in range(1, 11) for stop in (kill, 11)])
)
def test_a_worker_killed_and_a_worker_stopped_cost_nothing(whole, data, tmp_path, capfd, killed, stopped):
    """The stopped one is named; both runs' weights are those of the run that nothing disturbed, bit for bit."""
    rows = Rows((killed, send("worker", signal.SIGKILL)), (stopped, send("worker", signal.SIGSTOP)))
    config = run_of(data, tmp_path, execution={"hang_timeout_s": 8.0})
    assert launch.launch(config, tiny_shards.CLASSES, rows) == 12
    assert attempts(tmp_path) == 3
    assert checkpoints.load(str(tmp_path)).hash == checkpoints.load(str(whole[0])).hash
    told = capfd.readouterr().err
    assert re.search(r"worker \d died: .*; the workers start again from step \d", told)
    is_late = "start again from step 12" in told  # on a busy machine the signal may come when all steps are done
    silent = r"worker \d \(process \d+ on .*\) was silent for .* s at step \d+, in its \w+ phase: it was"
    assert is_late or re.search(silent, told)


@pytest.mark.parametrize("at", soaked([2], range(1, 11)))
def test_a_request_to_end_saves_what_there_is(local_ray, data, tmp_path, at):
    config = run_of(data, tmp_path, 1000, execution={"checkpoint_every": 1000})
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        launch.launch(config, tiny_shards.CLASSES, Rows((at, send("driver", signal.SIGTERM))))
    assert at <= checkpoints.load(str(tmp_path)).step < 1000


DRIVER = """
import sys
from pipelines import launch
from pipelines.dataset import Dataset
from tests.pipelines import test_launch, tiny_shards
launch.launch(test_launch.run_of(Dataset(sys.argv[1]), sys.argv[2]), tiny_shards.CLASSES, test_launch.Rows())
"""


@pytest.mark.parametrize("step", soaked([3], [3, 6, 9]))
def test_the_command_itself_killed_goes_on_when_it_is_given_again(whole, data, tmp_path, step):
    """Two workers and the Ray of their own end with it; the second time gives the bits of the undisturbed run."""
    command = [sys.executable, "-c", DRIVER, data.uri, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 300
        while step not in checkpoints.steps(str(tmp_path)) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    assert checkpoints.load(str(tmp_path)).step < 12
    subprocess.run(command, env=environment, check=True, timeout=300, stderr=subprocess.DEVNULL)
    assert checkpoints.load(str(tmp_path)).hash == checkpoints.load(str(whole[0])).hash


def test_what_will_fail_again_is_not_tried_again(local_ray, tmp_path):
    data = tiny_run.dataset(tmp_path / "data")
    shard = next((tmp_path / "data").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"worker \d failed: DatasetError: .*arrow"):
        launch.launch(run_of(data, tmp_path / "run"), tiny_shards.CLASSES, Rows())
    assert attempts(tmp_path / "run") == 1


@pytest.mark.soak
def test_measuring_ends_a_run_that_gets_no_better(local_ray, data, tmp_path):
    val = tiny_run.dataset(tmp_path / "val", (3,))
    evaluation = EvaluationConfig(every=2, patience=1, metric="mask/AR1")
    config = run_of(data, tmp_path / "run", 400, val=val.uri, evaluation=evaluation)
    steps = launch.launch(config, tiny_shards.CLASSES, Rows())
    assert steps < 400
    found = Measurements(config.out, "mask/AR1")
    assert found.since_best >= 1
    assert {found.best, steps} <= set(checkpoints.steps(config.out))


@pytest.mark.parametrize(
    ("execution", "match"),
    [
        ({"workers": 3}, "training with 3 workers of 1 CPU each does not fit .* room for 2: its machines are 1 x"),
        ({"workers": 2, "cpus_per_worker": 2}, "2 workers of 2 CPUs each does not fit .* room for 1: .*2 CPUs, 0 GPUs"),
        ({"workers": 4, "min_workers": 3}, "training with 3 workers"),
        (
            {"workers": 2, "evaluation": 1},
            "2 workers of 1 CPU each, and 1 GPU for measuring and loading, .* room for 0: .*0 GPUs",
        ),
        ({"workers": 1, "gpu": True}, "1 workers of 1 CPU and 1 GPU each .* room for 0: .* ask for fewer or smaller"),
    ],
)
def test_what_does_not_fit_fails_at_once(local_ray, data, tmp_path, execution, match):
    started = time.monotonic()
    evaluation = EvaluationConfig(every=2, gpu=bool(execution.pop("evaluation", 0)))
    config = run_of(data, tmp_path, execution=execution, val=data.uri, evaluation=evaluation)
    with pytest.raises(RayError, match=match):
        launch.launch(config, tiny_shards.CLASSES, Rows())
    assert time.monotonic() - started < 2


def test_an_elastic_run_takes_what_there_is(local_ray, data, tmp_path):
    config = run_of(data, tmp_path, 2, {"workers": 3, "min_workers": 1})
    assert Elastic(config).workers(0.0, threading.Event()) == 2


def test_workers_that_others_leave_no_place_are_asked_for_in_smaller_number(local_ray, data, tmp_path, monkeypatch):
    """One of two cores is at work for somebody else: two workers never start, one does."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    placed = ray.util.placement_group([{"CPU": 1}])
    ray.get(placed.ready())
    try:
        config = run_of(data, tmp_path, 2, {"workers": 2, "min_workers": 1})
        assert launch.launch(config, tiny_shards.CLASSES, Rows()) == 2
    finally:
        ray.util.remove_placement_group(placed)
    assert attempts(tmp_path) == 2


def test_a_request_to_end_is_heard_while_machines_are_waited_for(local_ray, data, tmp_path):
    config = run_of(data, tmp_path, execution={"workers": 3, "wait_for_nodes_s": 60.0})
    threading.Timer(1.0, send("driver", signal.SIGTERM)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        launch.launch(config, tiny_shards.CLASSES, Rows())
    assert time.monotonic() - started < 20


# What needs no Ray.


class Cluster:
    """One machine of eight cores of which some are free, and a clock."""

    def __init__(self, monkeypatch):
        self.free, self.now = 8.0, 0.0
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": self.free})
        monkeypatch.setattr("pipelines.elastic.time.monotonic", lambda: self.now)


def test_the_number_of_workers_follows_what_is_free(data, tmp_path, monkeypatch):
    """Down to what is free; up again once it is; each try that found no place doubles the pause before the next."""
    cluster, ended = Cluster(monkeypatch), threading.Event()
    config = run_of(data, tmp_path, optim={"batch": 8}, execution={"workers": 8, "min_workers": 2})
    elastic = Elastic(config)
    assert elastic.workers(0.0, ended) == 8
    cluster.free = 5.0
    assert elastic.found_no_place(8)
    assert elastic.workers(0.0, ended) == 5
    cluster.free, cluster.now = 0.0, 61.0
    assert not elastic.may_grow(5)
    cluster.free, cluster.now = 2.0, 100.0
    assert not elastic.may_grow(5)  # it looked a moment ago
    cluster.now = 130.0
    assert elastic.may_grow(5)
    assert elastic.workers(0.0, ended) == 7
    assert elastic.found_no_place(7)  # somebody else was faster
    cluster.now += 61.0
    assert not elastic.may_grow(2)
    cluster.now += 60.0
    assert elastic.may_grow(2)
    cluster.free = 0.0
    assert elastic.found_no_place(4)
    assert elastic.workers(0.0, ended) == 2
    assert not elastic.found_no_place(2)


@pytest.mark.parametrize(("loaders", "wanted"), [(0, 8), (1, 4), (2, 2), (3, 2)])
def test_workers_leave_room_for_those_that_load_for_them(data, tmp_path, monkeypatch, loaders, wanted):
    """Each worker that starts brings its loaders, and only those."""
    cluster, ended = Cluster(monkeypatch), threading.Event()
    execution = {"workers": 8, "min_workers": 2, "loader_actors": loaders}
    elastic = Elastic(run_of(data, tmp_path, optim={"batch": 8}, execution=execution))
    assert elastic.workers(0.0, ended) == wanted
    cluster.free, cluster.now = float(loaders), 61.0  # one short of another worker with its loaders
    assert not elastic.may_grow(1)


def test_watching_survives_a_cluster_that_does_not_answer(monkeypatch):
    asked, terminated = [], threading.Event()

    class Deaf:
        def may_grow(self, workers):
            terminated.set()
            raise ConnectionError("no answer")

    follower = types.SimpleNamespace(asked="", started=True, ask_to_stop=asked.append)
    watch = launch._Watch(follower, terminated, Deaf(), 1)
    watch.start()
    deadline = time.monotonic() + 10
    while not asked and time.monotonic() < deadline:
        time.sleep(0.05)
    watch.end()
    assert asked[0] == "terminated"


def test_a_slow_answer_is_no_reason_to_stop_beating(monkeypatch):
    """The driver would take the silence for a dead worker."""
    beats, over = [], threading.Event()

    def answer(beat, timeout):
        if len(beats) < 3:
            raise ray.exceptions.GetTimeoutError("slow")
        over.set()
        return True

    context = types.SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.setattr(ray, "get", answer)
    inbox = types.SimpleNamespace(beat=types.SimpleNamespace(remote=beats.append))
    wire = Wire(inbox, 3)
    assert over.wait(10)
    wire.at(7, "data")
    wire.close()
    assert (beats[-1].rank, beats[-1].step, beats[-1].phase) == (3, 7, "done")
    assert wire.stop_asked()


def note(restarts, *failures):
    for failure in failures:
        restarts.note(failure)


def test_failures_count_only_without_a_checkpoint_in_between(data, tmp_path, monkeypatch, capsys):
    config = run_of(data, tmp_path, execution={"max_failures": 2})
    known = [0]
    monkeypatch.setattr(checkpoints, "steps", lambda run: known)
    restarts, died = launch._Restarts(config), Failure(0, "worker 1 died: gone", False)
    for step in (0, 0, 3, 3, 6, 9, 12, 12):
        known[:] = [step]
        restarts.note(died)
    with pytest.raises(TrainingError, match=r"worker 1 died: gone .*; the last checkpoint is that of step 12"):
        restarts.note(died)
    assert capsys.readouterr().err.count("the workers start again from step") == 8


def test_an_error_that_came_back_is_not_tried_a_third_time(data, tmp_path):
    restarts = launch._Restarts(run_of(data, tmp_path, execution={"max_failures": 9}))
    failure = Failure(0, "worker 0 failed: RuntimeError: sizes differ", False)
    note(restarts, failure, Failure(0, "worker 0 failed: RuntimeError: reset by peer", False), failure)
    with pytest.raises(TrainingError, match=r"sizes differ \(twice, from the same checkpoint\)$"):
        restarts.note(failure)


@pytest.mark.parametrize(
    ("error", "text", "certain"),
    [
        (TrainingError("a loss is not finite"), "a loss is not finite", True),
        (ValueError("wrong"), "worker 3 failed: ValueError: wrong", True),
        (KeyError("x"), "worker 3 failed: KeyError: 'x'", True),
        (OSError(5, "Input/output\nerror"), "worker 3 failed: OSError: [Errno 5] Input/output error", False),
        (RuntimeError("connection reset"), "worker 3 failed: RuntimeError: connection reset", False),
        (
            LoaderKilledError("DataLoader worker (pid 7) is killed by signal: Killed. It was building one of: 7"),
            "worker 3 lost a loader process",
            False,
        ),
        (
            MemoryError(
                "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback:\n  File\nMemoryError: big"
            ),
            "worker 3 failed: MemoryError: big",
            True,
        ),
        (RuntimeError(), "worker 3 failed: RuntimeError: no reason given", False),
    ],
)
def test_which_errors_are_certain_to_come_back(error, text, certain):
    failure = failure_of(error, 3)
    assert failure.text.startswith(text)
    assert failure.certain is certain
    assert "\n" not in failure.text


def test_termination_is_noticed_and_its_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with launch._termination() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before
    seen = []

    def elsewhere():
        with launch._termination() as asked:
            seen.append(asked.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]

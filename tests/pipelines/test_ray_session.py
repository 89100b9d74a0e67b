import json
import threading
import time
import types

import pytest
import ray

from pipelines import ray_session as ray_session_module
from pipelines.ray_session import RayError, Share, ray_session, require_cpus, require_workers, room_for

pytestmark = pytest.mark.ray


def test_a_session_shuts_down_what_it_started_and_nothing_else():
    assert not ray.is_initialized()
    with ray_session(num_cpus=1):
        with ray_session():
            assert ray.is_initialized()
        assert ray.is_initialized()
        require_cpus(1, "a task")
        with pytest.raises(RayError, match="training needs 9 CPUs and this Ray cluster has 1: ask for fewer"):
            require_cpus(9, "training")
    assert not ray.is_initialized()


def test_no_cluster_at_an_address(monkeypatch):
    # As Ray does at once where nothing runs; here another test's or user's Ray may well be running.
    def nothing_there(**_):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to")

    monkeypatch.setattr(ray, "init", nothing_there)
    with (
        pytest.raises(RayError, match=r"cannot use Ray at auto: Could not find any .*leave the address out"),
        ray_session("auto"),
    ):
        pass


@pytest.mark.parametrize("late", [0, 2, 3])
def test_a_busy_machine_gets_more_time_to_start(monkeypatch, late):
    tries = []

    def start(**settings):
        tries.append(settings)
        if len(tries) <= late:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if late < 3:
        with ray_session(num_cpus=1):
            assert len(tries) == late + 1
        return
    with (
        pytest.raises(RayError, match=r"Ray did not start on this machine in 3 tries .*: it is too busy"),
        ray_session(),
    ):
        pass


MACHINES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 3.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"Alive": True, "Resources": {"CPU": 3.0}},
]


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0, 14), (2, 0, 6), (3, 0, 4), (4, 0, 2), (9, 0, 0), (1, 1, 2), (5, 1, 1)]
)
def test_room_is_counted_machine_by_machine(monkeypatch, cpus, gpus, room):
    """Their cores do not add up to one worker that no machine can hold."""
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    assert room_for(Share(cpus, gpus)) == room


@pytest.mark.parametrize(
    ("besides", "room"),
    [((0, 0), 6), ((1, 0), 6), ((2, 0), 5), ((1, 1), 5), ((0, 1), 6), ((9, 0), 0), ((1, 3), 0), ((8, 2), 2)],
)
def test_what_is_measured_beside_the_workers_takes_its_part(monkeypatch, besides, room):
    """Where it costs the fewest workers of two cores; where it fits nowhere there is no room."""
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    assert room_for(Share(2, 0), [Share(*besides)]) == room


def test_several_tasks_beside_the_workers_are_spread(monkeypatch):
    """The odd core of each small machine first, then those of the large one."""
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    assert [room_for(Share(2, 0), [Share(1, 0)] * count) for count in (0, 1, 2, 3, 4, 14, 15)] == [6, 6, 6, 5, 5, 0, 0]


def test_waiting_for_machines_ends_when_it_is_told_to(monkeypatch):
    monkeypatch.setattr(ray, "nodes", list)
    ended, started = threading.Event(), time.monotonic()
    threading.Timer(0.2, ended.set).start()
    require_workers(1, Share(1, 0), "training", wait_s=60, ended=ended)
    assert time.monotonic() - started < 5


@pytest.fixture
def cluster_that_grows(monkeypatch):
    """Requests made of the cluster; it has a machine more at every look while one is open."""
    asked, machines = [], [{"Alive": True, "Resources": {"CPU": 0.0}}]

    def nodes():
        if asked and asked[-1]:
            machines.append({"Alive": True, "Resources": {"CPU": 2.0}})
        return machines[:3]

    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(n["Resources"]["CPU"] for n in nodes())})
    monkeypatch.setattr(ray_session_module, "autoscales", lambda: True)
    monkeypatch.setattr(ray_session_module, "request_resources", lambda *, bundles: asked.append(bundles))
    monkeypatch.setattr(ray_session_module, "_GROW_WITHIN_S", 1.0)
    return asked


def test_a_cluster_that_grows_is_asked_for_machines_and_waited_for(cluster_that_grows, capsys):
    require_cpus(3, "preparing data")
    require_workers(2, Share(2, 0), "training with 2 workers")
    assert cluster_that_grows == [[{"CPU": 1}] * 3, []]
    assert capsys.readouterr().err.startswith("preparing data: the cluster was asked for machines 0 s ago")


def test_a_cluster_that_does_not_grow_enough(cluster_that_grows):
    with pytest.raises(RayError, match="training does not fit this Ray cluster, which has room for 2"):
        require_workers(3, Share(2, 0), "training")
    assert cluster_that_grows == [[{"CPU": 2}] * 3, []]


@pytest.mark.parametrize(
    ("active", "grows"),
    [({}, False), ({f"node_{'ad984b39' * 7}": 1}, False), ({"head": 1}, True), ({"head": 1, "gpu": 2}, True)],
)
def test_which_clusters_grow(monkeypatch, active, grows):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    state = types.SimpleNamespace(get_cluster_config=lambda: None)
    monkeypatch.setattr("ray._private.state.state", state)
    status = json.dumps({"autoscaler_report": {"active_nodes": active}})
    monkeypatch.setattr(ray_session_module, "_internal_kv_get", lambda key: status)
    assert ray_session_module.autoscales() is grows
    monkeypatch.setattr(ray_session_module, "_internal_kv_get", lambda key: None)
    assert not ray_session_module.autoscales()


def test_a_request_without_room_says_what_there_is(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    monkeypatch.setattr(ray_session_module, "autoscales", lambda: False)
    require_workers(2, Share(4, 1), "training")
    with pytest.raises(RayError) as caught:
        require_workers(3, Share(4, 1), "training with 3 workers")
    assert str(caught.value) == (
        "training with 3 workers does not fit this Ray cluster, which has room for 2: its machines are "
        "1 x (8 CPUs, 2 GPUs); 2 x (3 CPUs, 0 GPUs); ask for fewer or smaller workers, or add machines"
    )


def test_a_cluster_that_grows_is_waited_for(monkeypatch):
    monkeypatch.setattr(ray_session_module, "autoscales", lambda: False)
    answers = [[], [], MACHINES, MACHINES]
    monkeypatch.setattr(ray, "nodes", lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    monkeypatch.setattr("pipelines.ray_session.threading.Event.wait", lambda self, seconds: None)
    require_workers(4, Share(3, 0), "training", wait_s=60)
    monkeypatch.setattr(ray, "nodes", list)
    with pytest.raises(RayError, match="room for 0: its machines are none;"):
        require_workers(1, Share(1, 0), "training", wait_s=0.01)

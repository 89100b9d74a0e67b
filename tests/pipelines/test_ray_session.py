import threading
import time

import pytest
import ray

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
    assert room_for(Share(2, 0), Share(*besides)) == room


def test_waiting_for_machines_ends_when_it_is_told_to(monkeypatch):
    monkeypatch.setattr(ray, "nodes", list)
    ended, started = threading.Event(), time.monotonic()
    threading.Timer(0.2, ended.set).start()
    require_workers(1, Share(1, 0), "training", wait_s=60, ended=ended)
    assert time.monotonic() - started < 5


def test_a_request_without_room_says_what_there_is(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: MACHINES)
    require_workers(2, Share(4, 1), "training")
    with pytest.raises(RayError) as caught:
        require_workers(3, Share(4, 1), "training with 3 workers")
    assert str(caught.value) == (
        "training with 3 workers does not fit this Ray cluster, which has room for 2: its machines are "
        "1 x (8 CPUs, 2 GPUs); 2 x (3 CPUs, 0 GPUs); ask for fewer or smaller workers, or add machines"
    )


def test_a_cluster_that_grows_is_waited_for(monkeypatch):
    answers = [[], [], MACHINES, MACHINES]
    monkeypatch.setattr(ray, "nodes", lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    monkeypatch.setattr("pipelines.ray_session.threading.Event.wait", lambda self, seconds: None)
    require_workers(4, Share(3, 0), "training", wait_s=60)
    monkeypatch.setattr(ray, "nodes", list)
    with pytest.raises(RayError, match="room for 0: its machines are none;"):
        require_workers(1, Share(1, 0), "training", wait_s=0.01)

"""Groups that nobody works in, on local Ray."""

import time

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipelines import sweep_leaks
from pipelines.ray_session import ray_session


@ray.remote(num_cpus=1)
class Worker:
    def work(self):
        return 1


@pytest.mark.ray
def test_what_is_left_is_given_back_and_what_is_used_is_not(monkeypatch):
    monkeypatch.setattr(sweep_leaks, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(sweep_leaks, "_IDLE_S", 0.2)
    with ray_session(num_cpus=2, dashboard=True):
        used, left = (placement_group([{"CPU": 1}]) for _ in range(2))
        ray.get([used.ready(), left.ready()])
        worker = Worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(used)).remote()
        ray.get(worker.work.remote())
        # Another Ray on this machine, such as another user's.
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"192.0.2.1:1", "192.0.2.1:2"})
        leaks, end = sweep_leaks.Leaks(), time.monotonic() + 60
        while not leaks.look() and time.monotonic() < end:
            time.sleep(0.3)
        states = {key: group["state"] for key, group in placement_group_table().items()}
        assert states == {used.id.hex(): "CREATED", left.id.hex(): "REMOVED"}
        assert sweep_leaks.idle_groups() == []
        monkeypatch.undo()  # Ray keeps what it found until it is shut down

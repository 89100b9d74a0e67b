import pytest
import ray

from pipelines.ray_session import RayError, ray_session, require_cpus

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

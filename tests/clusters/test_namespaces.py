import pytest

from tests.clusters import namespaces

pytestmark = [pytest.mark.ray, pytest.mark.soak]


def test_a_cluster_loses_a_machine_and_takes_it_back(tmp_path):
    namespaces.require()
    env = namespaces.environment(token="a" * 64)
    with namespaces.machines(3, tmp_path) as nodes, namespaces.ray_cluster(nodes, env, cpus=1):
        head, last = nodes[0], nodes[2]
        last.kill()
        namespaces.wait_for(lambda: namespaces.alive(head, env) == 2, 60, lambda: head.read("ray.txt"))
        namespaces.join(last, head, env, cpus=1)
        namespaces.wait_for(lambda: namespaces.alive(head, env) == 3, 60, lambda: last.read("ray.txt"))
        assert namespaces.alive(head, env | {"RAY_AUTH_TOKEN": "b" * 64}) == 0

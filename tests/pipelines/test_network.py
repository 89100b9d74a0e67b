import socket

from pipelines import network
from pipelines.network import TorchOnNodeAddress, _Backend, interface_of


def test_an_interface_is_found_by_its_address():
    name = interface_of("127.0.0.1")
    assert name in [name for _, name in socket.if_nameindex()]
    assert interface_of("203.0.113.7") == ""  # reserved for documentation: nobody has it


def test_the_process_group_is_built_after_the_choice(monkeypatch):
    """Each worker chooses before any of them connects."""
    assert TorchOnNodeAddress().backend_cls is _Backend
    order = []

    class Group:
        def execute(self, function):
            order.append(function.__name__)

    monkeypatch.setattr(_Backend.__mro__[1], "on_start", lambda self, group, config: order.append("connect"))
    _Backend().on_start(Group(), TorchOnNodeAddress())
    assert order == ["_choose_interface", "connect"]


def test_a_choice_of_the_user_is_left_alone(monkeypatch):
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    network._choose_interface()
    assert network.os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert network.os.environ["NCCL_SOCKET_IFNAME"] == interface_of("127.0.0.1")

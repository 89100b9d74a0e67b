"""Process groups on the address by which Ray knows a machine, not on the one its host name happens to have."""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str:
    """Name of the network interface that has an IPv4 address; empty where none of this machine has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def _choose_interface() -> None:
    name = interface_of(ray.util.get_node_ip_address())
    for variable in _VARIABLES:
        if name and not os.environ.get(variable):
            os.environ[variable] = name


class _Backend(_TorchBackend):  # type: ignore[misc]
    """Ray Train's, after each worker has chosen its interface."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Choose, then connect."""
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class TorchOnNodeAddress(TorchConfig):  # type: ignore[misc]
    """Gloo and NCCL take the interface that has the Ray node's address.

    Where a machine's name stands for a loopback address, as on Debian, gloo would otherwise offer that to the others.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that chooses."""
        return _Backend

"""What one node of a cluster is: versions, devices, network and storage, as `maskray doctor` compares them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model.ops import extension
from pipelines import commit, storage
from pipelines.network import interface_of


class NodeFacts(NamedTuple):
    """Measured on a node, by a process of the cluster.

    Attributes:
        host: its name.
        address: its IP address in the cluster.
        versions: of Python, torch, Ray and maskray.
        operators: of the compiled operators: "cpu", "cpu and cuda", or why they do not load.
        gpus: devices of the machine, whether Ray knows them or not.
        interface: network interface that has the address; empty where none has.
        shm_bytes: size of /dev/shm.
        shared: empty where the shared place could be written and read, else why not.
    """

    host: str
    address: str
    versions: Mapping[str, str]
    operators: str
    gpus: int
    interface: str
    shm_bytes: int
    shared: str


def _version(package: str, absent: str = "missing") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return absent


def _operators() -> str:
    try:
        return "cpu and cuda" if extension.has_cuda() else "cpu"
    except (ImportError, OSError, RuntimeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]


def _gpus() -> int:
    # Not torch's count: a process without GPUs of its own sees none.
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _shm_bytes() -> int:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return status.f_frsize * status.f_blocks


def check_shared(place: str, name: str, driver_file: str) -> str:
    """Write a file of one's own below the shared place and read the driver's; empty, or why that failed.

    Args:
        place: folder or URI that every node should share.
        name: of the file to write.
        driver_file: a file that the driver wrote there before.
    """
    try:
        filesystem, folder = storage.open_uri(place)
        commit.write_file(filesystem, storage.join(folder, name), name.encode())
        if not storage.is_file(filesystem, storage.join(folder, driver_file)):
            return "it is another place than the driver's"
    except (OSError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def measure(address: str, place: str = "", name: str = "", driver_file: str = "") -> dict[str, Any]:
    """The facts of this node, as plain values.

    Args:
        address: the node's own in the cluster.
        place: shared place to try; empty for none.
        name: see `check_shared`.
        driver_file: see `check_shared`.
    """
    return NodeFacts(
        host=socket.gethostname(),
        address=address,
        versions={
            "Python": platform.python_version(),
            "torch": _version("torch"),
            "Ray": _version("ray"),
            "maskray": _version("maskray", "not installed"),
        },
        operators=_operators(),
        gpus=_gpus(),
        interface=interface_of(address),
        shm_bytes=_shm_bytes(),
        shared=check_shared(place, name, driver_file) if place else "",
    )._asdict()

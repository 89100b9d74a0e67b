"""Ray for a `with` block: the one that runs already, a cluster by address, or a local one of our own."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import ray


class RayError(ValueError):
    """Ray cannot be reached or is too small; the message is one line that says what to do."""


@contextmanager
def ray_session(
    address: str | None = None,
    num_cpus: int | None = None,
    object_store_memory: int | None = None,
    *,
    dashboard: bool = False,
) -> Iterator[None]:
    """Use Ray inside the block, and shut down what this call started.

    Where the process is connected already, that connection is used and left as it is.

    Args:
        address: of a cluster ("auto", "host:6379"); None takes the environment's RAY_ADDRESS, as in a
            submitted job, and otherwise starts Ray on this machine alone.
        num_cpus: CPUs of a local Ray; None takes all of the machine's.
        object_store_memory: bytes of a local Ray's object store; None leaves it to Ray.
        dashboard: a local Ray has its dashboard, on the loopback.

    Raises:
        RayError: no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _native_notices_hidden():
            if address and address != "local":
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    object_store_memory=object_store_memory,
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RayError(
            f"cannot use Ray at {address or 'this machine'}: {reason}; start one, or leave the address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _native_notices_hidden() -> Iterator[None]:
    """Keep Ray's C++ layer from writing its internal notices to the terminal; what fails is raised in Python.

    The layer reads its level once, while Ray starts, and then says so itself: that line is hidden as well, and shown
    only where the start fails.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        try:
            os.dup2(hidden.fileno(), 2)
            yield
        except BaseException:
            hidden.seek(0)
            os.write(kept, hidden.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def require_cpus(number: float, what: str) -> None:
    """Refuse work that the connected cluster can never start, which Ray itself would wait for without end.

    Args:
        number: CPUs wanted at the same time.
        what: that wants them, for the message.

    Raises:
        RayError: the cluster has fewer.
    """
    _require("CPU", number, what)


def require_gpus(number: float, what: str) -> None:
    """The same for GPUs.

    Raises:
        RayError: the cluster has fewer.
    """
    _require("GPU", number, what)


def _require(kind: str, number: float, what: str) -> None:
    have = float(ray.cluster_resources().get(kind, 0.0))
    if have < number:
        raise RayError(
            f"{what} needs {number:g} {kind}s and this Ray cluster has {have:g}: ask for fewer workers, or add nodes"
        )


class Share(NamedTuple):
    """What a worker or task takes of one machine."""

    cpus: float
    gpus: float


def _fit(node: Mapping[str, float], each: Share) -> float:
    """How many such shares a machine holds; infinite where they are nothing."""
    wanted = (("CPU", each.cpus), ("GPU", each.gpus))
    return min((node.get(kind, 0.0) // need for kind, need in wanted if need), default=math.inf)


def room_for(each: Share, besides: Share = Share(0, 0)) -> int:  # noqa: B008 -- a value
    """How many workers the machines of the connected cluster hold in all, each whole on one.

    Args:
        each: of a worker.
        besides: is kept free for one task, where it costs the fewest workers; no room at all where that fits nowhere.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if each == Share(0, 0):
        return sys.maxsize
    if besides == Share(0, 0):
        return int(sum(_fit(node, each) for node in nodes))
    losses = []
    for node in (node for node in nodes if _fit(node, besides) >= 1):
        left = {"CPU": node.get("CPU", 0.0) - besides.cpus, "GPU": node.get("GPU", 0.0) - besides.gpus}
        losses.append(_fit(node, each) - _fit(left, each))
    return int(sum(_fit(node, each) for node in nodes) - min(losses)) if losses else 0


def require_workers(
    count: int,
    each: Share,
    what: str,
    wait_s: float = 0.0,
    besides: Share = Share(0, 0),  # noqa: B008 -- a value
    ended: threading.Event | None = None,
) -> None:
    """Refuse workers that the connected cluster has no room for, which Ray would wait for without end.

    Args:
        count: workers at the same time.
        each: of a worker.
        what: wants them, for the message.
        wait_s: seconds to wait for machines that are being added.
        besides: for one task at the same time.
        ended: ends the waiting when it is set.

    Raises:
        RayError: there is not enough room, and why.
    """
    deadline, ended = time.monotonic() + wait_s, ended or threading.Event()
    while room_for(each, besides) < count and not ended.is_set():
        if time.monotonic() >= deadline:
            machines = [node for node in ray.nodes() if node["Alive"]]
            rows = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in machines]
            have = "; ".join(f"{rows.count(row)} x ({row[0]:g} CPUs, {row[1]:g} GPUs)" for row in dict.fromkeys(rows))
            raise RayError(
                f"{what} does not fit this Ray cluster, which has room for {room_for(each, besides)}: its machines are "
                f"{have or 'none'}; ask for fewer or smaller workers, or add machines"
            )
        ended.wait(min(1.0, max(0.05, deadline - time.monotonic())))

"""Ray for a `with` block: the one that runs already, a cluster by address, or a local one of our own."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import ray
from ray.autoscaler.sdk import request_resources
from ray.experimental.internal_kv import _internal_kv_get

_GROW_WITHIN_S = 1200.0  # a cloud's machine comes within minutes, or there is none to be had
_SAY_EVERY_S = 60.0
_STARTS = 3
_STARTED_LATE = "timed out during startup"
_QUIET = {"logging_level": logging.ERROR, "log_to_driver": False}


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
        RayError: no cluster at the address, or a local Ray that does not start.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        with _native_notices_hidden():
            if address and address != "local":
                ray.init(address=address, **_QUIET)
            else:
                _start_here(num_cpus, object_store_memory, dashboard)
    except RayError:
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RayError(
            f"cannot use Ray at {address or 'this machine'}: {reason}; start one, or leave the address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _start_here(num_cpus: int | None, object_store_memory: int | None, dashboard: bool) -> None:
    """Start Ray on this machine; a busy one gets more than the half minute that Ray gives its processes to appear.

    Raises:
        RayError: they have not appeared in three times that.
    """
    for _ in range(_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=object_store_memory,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                **_QUIET,
            )
            return
        except Exception as error:  # of no type of its own
            if _STARTED_LATE not in str(error):
                raise
    raise RayError(
        f"Ray did not start on this machine in {_STARTS} tries of half a minute: it is too busy, or short of memory; "
        "stop other work, or use a cluster (--address)"
    )


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

    A cluster that adds machines by itself is asked for them, and waited for.

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
    def have() -> float:
        return float(ray.cluster_resources().get(kind, 0.0))

    missing = [{kind: 1.0}] * math.ceil(number)
    if have() < number and not _grown(missing, lambda: have() >= number, what, 0.0, threading.Event()):
        raise RayError(
            f"{what} needs {number:g} {kind}s and this Ray cluster has {have():g}: ask for fewer workers, or add nodes"
        )


def autoscales() -> bool:
    """Whether the connected cluster adds machines by itself: whether its autoscaler knows kinds of them to add."""
    if not ray.is_initialized():
        return False
    config = ray._private.state.state.get_cluster_config()  # of the second version, which Kubernetes has
    kinds = [group.name for group in config.node_group_configs] if config else []
    status = _internal_kv_get("__autoscaling_status")  # of the first, which the launcher starts
    if status:
        kinds += list((json.loads(status).get("autoscaler_report") or {}).get("active_nodes") or {})
    # One that only looks on calls each machine a kind of its own.
    return any(not re.fullmatch("node_[0-9a-f]{40,}", kind) for kind in kinds)


def _grown(
    bundles: list[dict[str, float]], is_enough: Callable[[], bool], what: str, wait_s: float, ended: threading.Event
) -> bool:
    """Wait for machines: those that somebody adds, or those that the cluster adds when it is asked.

    Args:
        bundles: wanted at the same time, each whole on one machine.
        is_enough: whether they fit.
        what: wants them, for people.
        wait_s: seconds to wait for machines that somebody adds.
        ended: ends the waiting when it is set.
    """
    grows = autoscales() and not ended.is_set()
    begun, said = time.monotonic(), float("-inf")
    end = begun + max(wait_s, _GROW_WITHIN_S if grows else 0.0)
    if grows:
        request_resources(bundles=bundles)
    try:
        while not is_enough() and not ended.is_set():
            now = time.monotonic()
            if now >= end:
                return False
            if grows and now - said >= _SAY_EVERY_S:
                said = now
                sys.stderr.write(
                    f"{what}: the cluster was asked for machines {now - begun:.0f} s ago, waiting for them\n"
                )
            ended.wait(min(1.0, max(0.05, end - now)))
        return True
    finally:
        if grows:
            # The machines are there, and stay while something runs on them or comes soon.
            request_resources(bundles=[])


class Share(NamedTuple):
    """What a worker or task takes of one machine."""

    cpus: float
    gpus: float


def _fit(node: Share, each: Share) -> float:
    """How many such shares a machine holds; infinite where they are nothing."""
    return min((have // need for have, need in zip(node, each, strict=True) if need), default=math.inf)


def room_for(each: Share, besides: Sequence[Share] = ()) -> int:
    """How many workers the machines of the connected cluster hold in all, each whole on one.

    Args:
        each: of a worker.
        besides: are kept free for other tasks, where they cost the fewest workers; no room where one fits nowhere.
    """
    if each == Share(0, 0):
        return sys.maxsize
    nodes = [
        Share(*(node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))) for node in ray.nodes() if node["Alive"]
    ]
    for share in besides:
        losses = {
            number: _fit(node, each) - _fit(_without(node, share), each)
            for number, node in enumerate(nodes)
            if _fit(node, share) >= 1
        }
        if not losses:
            return 0
        number = min(losses, key=lambda number: losses[number])
        nodes[number] = _without(nodes[number], share)
    return int(sum(_fit(node, each) for node in nodes))


def _without(node: Share, share: Share) -> Share:
    return Share(node.cpus - share.cpus, node.gpus - share.gpus)


def require_workers(
    count: int,
    each: Share,
    what: str,
    wait_s: float = 0.0,
    besides: Sequence[Share] = (),
    ended: threading.Event | None = None,
) -> None:
    """Refuse workers that the connected cluster has no room for, which Ray would wait for without end.

    Args:
        count: workers at the same time.
        each: of a worker.
        what: wants them, for the message.
        wait_s: seconds to wait for machines that are being added.
        besides: for other tasks at the same time.
        ended: ends the waiting when it is set.

    Raises:
        RayError: there is not enough room, and why.
    """
    ended = ended or threading.Event()
    shares = [*[each] * count, *besides]
    bundles = [{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})} for share in shares]
    if room_for(each, besides) < count and not _grown(
        bundles, lambda: room_for(each, besides) >= count, what, wait_s, ended
    ):
        machines = [node for node in ray.nodes() if node["Alive"]]
        rows = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in machines]
        have = "; ".join(f"{rows.count(row)} x ({row[0]:g} CPUs, {row[1]:g} GPUs)" for row in dict.fromkeys(rows))
        raise RayError(
            f"{what} does not fit this Ray cluster, which has room for {room_for(each, besides)}: its machines are "
            f"{have or 'none'}; ask for fewer or smaller workers, or add machines"
        )

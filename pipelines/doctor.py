"""The doctor command: whether a cluster can do what it is asked to, node by node, before hours depend on it."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines import cluster_access, commit, node_facts, storage
from pipelines.job_wheel import Operators
from pipelines.node_facts import NodeFacts
from pipelines.ray_session import ray_session

_PROBE_TIMEOUT_S = 120.0
_LEAST_STORE_BYTES = 200_000_000  # a few batches and checkpoints; Ray refuses less than 75 MB itself
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Check a cluster: address, token, versions, CPUs, GPUs, storage, network and memory of every node.

    Attributes:
        address: of the cluster: `auto` or host:port of Ray, or the dashboard's URL, where the check runs as a job;
            empty takes the job's own, or starts Ray on this machine.
        shared: folder or URI that every node must be able to write, such as the parent of data and runs.
        cpus: that the cluster must have at least.
        gpus: the same for GPUs.
        insecure: accept a cluster that asks for no token.
        wheel: of the job where the check runs as one; see `maskray submit`.
        operators: the same.
        python: the same.
    """

    address: str = ""
    shared: str = ""
    cpus: int = 1
    gpus: int = 0
    insecure: bool = False
    wheel: str = ""
    operators: Operators = Operators.WHEEL
    python: str = "python"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"doctor needs cpus >= 0 and gpus >= 0, got {self.cpus} and {self.gpus}")

    @property
    def is_remote(self) -> bool:
        """Whether the address is a dashboard's, so that a job has to look."""
        return "://" in self.address


class Finding(NamedTuple):
    """One check.

    Attributes:
        check: what was looked at.
        where: the node, or the cluster.
        found: what was seen.
        advice: what to do; empty where all is well.
    """

    check: str
    where: str
    found: str
    advice: str


def run(config: DoctorConfig) -> list[Finding]:
    """Check the cluster that this process can join.

    Raises:
        RayError: no cluster at the address.
    """
    with ray_session(config.address or None):
        return list(_check_all(config))


def _check_all(config: DoctorConfig) -> Iterator[Finding]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in alive}
    yield Finding("address", "cluster", f"{len(alive)} nodes", "")
    yield _dashboard_and_token(config)
    totals = ray.cluster_resources()
    yield from _amounts(totals, config)
    facts = _probe(alive, config.shared)
    for node in alive:
        found, name = facts[node["NodeID"]], names[node["NodeID"]]
        if isinstance(found, str):
            advice = "see that maskray, torch and Ray are installed there as elsewhere, and that nodes reach each other"
            yield Finding("answer", name, found, advice)
        else:
            yield from check_node(name, found, node["Resources"], len(alive), config)
    answered = {names[key]: found.versions for key, found in facts.items() if not isinstance(found, str)}
    if answered:
        yield from check_versions(answered)


def _dashboard_and_token(config: DoctorConfig) -> Finding:
    # Connected already: this only tells where the dashboard is.
    url = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url
    if not url:
        return Finding("token", "cluster", "Ray of this process alone, without a dashboard", "")
    try:
        cluster_access.check_closed(f"http://{url}", insecure=config.insecure)
    except cluster_access.AccessError as error:
        return Finding("token", "cluster", url, str(error))
    return Finding("token", "cluster", "open, as accepted" if config.insecure else "asked for", "")


def _amounts(totals: Mapping[str, float], config: DoctorConfig) -> Iterator[Finding]:
    for kind, wanted in (("CPU", config.cpus), ("GPU", config.gpus)):
        have = totals.get(kind, 0.0)
        advice = "" if have >= wanted else f"add nodes, or ask for fewer: {wanted} are wanted"
        yield Finding(f"{kind}s", "cluster", f"{have:g}", advice)


def _probe(alive: Sequence[Mapping[str, Any]], shared: str) -> dict[str, NodeFacts | str]:
    """Facts by node id, measured on every node at the same time; of a node that does not answer, why."""
    mark = f".maskray-doctor-{uuid.uuid4().hex[:12]}"
    driver_file = f"{mark}-driver"
    place = storage.canonical_uri(shared) if shared else ""
    unwritten = _write(place, driver_file) if place else ""
    measure = ray.remote(num_cpus=0, max_retries=0)(node_facts.measure)
    asked = {
        node["NodeID"]: measure.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(node["NodeManagerAddress"], place, f"{mark}-{node['NodeID'][:12]}", driver_file)
        for node in alive
    }
    # Each by itself: one node that is silent must not hide what the others say.
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PROBE_TIMEOUT_S)
    found: dict[str, NodeFacts | str] = {key: _answer(answer) for key, answer in asked.items()}
    if unwritten:
        found = {key: one if isinstance(one, str) else one._replace(shared=unwritten) for key, one in found.items()}
    elif place:
        _clean(place, mark)
    return found


def _answer(answer: Any) -> NodeFacts | str:
    """The facts of a node, or why there are none."""
    try:
        return NodeFacts(**ray.get(answer, timeout=0))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        return f"silent for {_PROBE_TIMEOUT_S:g} s"
    except ray.exceptions.RayError as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _write(place: str, name: str) -> str:
    """Write the driver's file into the shared place; empty, or why that failed."""
    try:
        filesystem, folder = storage.open_uri(place)
        commit.write_file(filesystem, storage.join(folder, name), b"driver")
    except (OSError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def _clean(place: str, mark: str) -> None:
    filesystem, folder = storage.open_uri(place)
    for info in storage.list_files(filesystem, folder):
        if info.base_name.startswith(mark):
            storage.delete_file(filesystem, info.path)


def check_node(
    name: str, found: NodeFacts, resources: Mapping[str, float], nodes: int, config: DoctorConfig
) -> Iterator[Finding]:
    """The checks of one node.

    Args:
        name: for the table.
        found: what was measured there.
        resources: what Ray offers there.
        nodes: of the cluster.
        config: what is wanted.
    """
    given = int(resources.get("GPU", 0))
    advice = ""
    if not found.operators.startswith("cpu"):
        advice = "install the same wheel of maskray on every node, or use its image"
    elif given and "cuda" not in found.operators:
        advice = "a node with GPUs needs the operators with CUDA: use the cuda image, or build with nvcc"
    yield Finding("operators", name, found.operators, advice)
    advice = "" if given == found.gpus else "start Ray there with --num-gpus, or see that the container has the GPUs"
    yield Finding("GPUs", name, f"{given} of {found.gpus}", advice)
    if config.shared:
        yield Finding("storage", name, found.shared or "written and read",
                      f"mount {config.shared} on every node, writable" if found.shared else "")  # fmt: skip
    yield _network(name, found, nodes)
    store = int(resources.get("object_store_memory", 0))
    advice = ""
    if store < _LEAST_STORE_BYTES:
        advice = f"start Ray with --object-store-memory of {_LEAST_STORE_BYTES / _GB:g} GB or more"
    elif found.shm_bytes < store:
        advice = "Ray would use the disk: give the container a larger /dev/shm (--shm-size, or a memory volume)"
    yield Finding("memory", name, f"object store {store / _GB:.1f} GB, /dev/shm {found.shm_bytes / _GB:.1f} GB", advice)


def _network(name: str, found: NodeFacts, nodes: int) -> Finding:
    advice = ""
    if not found.interface:
        advice = "no interface has the node's address: start Ray there with --node-ip-address"
    elif found.interface == "lo" and nodes > 1:
        advice = "others cannot reach a loopback: start Ray there with --node-ip-address of its network"
    return Finding("network", name, f"{found.interface or 'none'} has {found.address}", advice)


def check_versions(versions: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Whether all nodes run the same Python, torch, Ray and maskray.

    Args:
        versions: by package, of each node.
    """
    for package in next(iter(versions.values())):
        seen: dict[str, list[str]] = {}
        for node, of_node in versions.items():
            version = of_node[package]
            # Patches of Python may differ; pickles of its minor versions do not.
            seen.setdefault(".".join(version.split(".")[:2]) if package == "Python" else version, []).append(node)
        if len(seen) == 1 and "missing" not in seen:
            yield Finding("versions", "every node", f"{package} {next(iter(seen))}", "")
            continue
        listed = "; ".join(f"{version} on {', '.join(nodes)}" for version, nodes in seen.items())
        yield Finding("versions", "every node", f"{package} {listed}", f"use one image: {package} must be the same")

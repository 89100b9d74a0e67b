"""Machines on one machine: network namespaces with addresses of their own, each with its own processes and /tmp/ray.

Nothing is made in the machine's own network, so several of these may run side by side. Needs root and iproute2; see
`require`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD_PORT, DASHBOARD_PORT = 6379, 8265
_SUBNET = "10.77.0"
# Runs as the first process of a node: a network loopback name service, a /tmp/ray and a host name of its own.
_ENTER = """
set -e
mount --make-rprivate /
mount --bind "$1/hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mkdir -p /tmp/ray "$1/ray"
mount --bind "$1/ray" /tmp/ray
hostname "$2"
shift 2
exec "$@"
"""


def require() -> None:
    """Skip the calling test where namespaces cannot be made."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("network namespaces need root, iproute2 and util-linux")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("this machine does not allow network namespaces")


class Machine:
    """One namespaced machine.

    Attributes:
        name: of its network namespace.
        host: its host name.
        address: its IPv4 address.
    """

    def __init__(self, name: str, host: str, address: str, folder: Path) -> None:
        self.name, self.host, self.address = name, host, address
        self.folder = folder
        self._processes: list[subprocess.Popen[str]] = []

    def start(
        self, command: Sequence[str], env: Mapping[str, str], log: str = "log.txt", cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on this machine; its output goes to the file `log` of the machine's folder.

        Killing the process returned kills all that it started.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        enter = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child",
                 "--mount-proc", "sh", "-c", _ENTER, "enter", str(self.folder), self.host, *command]  # fmt: skip
        with (self.folder / log).open("a") as output:
            process = subprocess.Popen(
                enter, env=dict(env), stdout=output, stderr=subprocess.STDOUT, text=True, cwd=cwd or self.folder
            )
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str], env: Mapping[str, str], timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this machine to its end and return what it wrote."""
        log = f"run-{secrets.token_hex(4)}.txt"
        process = self.start(command, env, log)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{command} did not end in {timeout_s} s:\n{self.read(log)}") from None
        return subprocess.CompletedProcess(command, code, self.read(log))

    def read(self, log: str = "log.txt") -> str:
        """What was written to a log."""
        return (self.folder / log).read_text(errors="replace")

    def kill(self) -> None:
        """Pull the plug: SIGKILL to every process of this machine."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()


@contextlib.contextmanager
def machines(count: int, folder: Path) -> Iterator[list[Machine]]:
    """So many machines that reach each other, and nothing else, on one bridge; the first is often Ray's head.

    Args:
        count: of the machines.
        folder: for their logs and /tmp/ray; short, since sockets live there.
    """
    prefix = f"mr{secrets.token_hex(3)}"
    hub = f"{prefix}h"
    nodes = [Machine(f"{prefix}n{i}", f"node{i}", f"{_SUBNET}.{i}", folder / f"n{i}") for i in range(1, count + 1)]
    try:
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for number, node in enumerate(nodes, 1):
            _ip("netns", "add", node.name)
            _ip("-n", hub, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", node.name)
            _ip("-n", hub, "link", "set", f"v{number}", "master", "bridge", "up")
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            _ip("-n", node.name, "link", "set", "eth0", "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
            node.folder.mkdir(parents=True)
            # Without names, every connection waits for a name service that is not there.
            names = "".join(f"{other.address} {other.host}\n" for other in nodes)
            (node.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        for name in (*(node.name for node in nodes), hub):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def environment(token: str | None = None, **more: str) -> dict[str, str]:
    """The environment of a node: this checkout's code, one thread a process, and a token (or no authentication)."""
    kept = ("PATH", "LANG", "MASKRAY_TEST_DATA", "LD_LIBRARY_PATH")
    made = {name: os.environ[name] for name in kept if name in os.environ}
    made |= {
        "PATH": f"{Path(sys.executable).parent}:{made['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": "/nonexistent",  # nobody's own token or configuration
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token" if token else "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    return made | ({"RAY_AUTH_TOKEN": token} if token else {}) | more


def ray_command() -> list[str]:
    """Ray's command line in this Python."""
    return [sys.executable, "-m", "ray.scripts.scripts"]


@contextlib.contextmanager
def ray_cluster(
    nodes: Sequence[Machine], env: Mapping[str, str], cpus: int = 2, head_cpus: int | None = None
) -> Iterator[None]:
    """A Ray cluster over the machines, the first of them its head, with the dashboard on its address.

    Args:
        nodes: the machines.
        env: see `environment`.
        cpus: of each node.
        head_cpus: of the head, where it has another number.
    """
    head = nodes[0]
    common = ["--block", "--object-store-memory=100000000", "--disable-usage-stats"]
    head.start(
        [*ray_command(), "start", "--head", f"--port={HEAD_PORT}", f"--node-ip-address={head.address}",
         f"--dashboard-host={head.address}", f"--dashboard-port={DASHBOARD_PORT}",
         f"--num-cpus={cpus if head_cpus is None else head_cpus}", *common],
        env, "ray.txt",
    )  # fmt: skip
    try:
        wait_for(lambda: _answers(head, env), 60, lambda: head.read("ray.txt"))
        for node in nodes[1:]:
            join(node, head, env, cpus)
        wait_for(lambda: alive(head, env) == len(nodes), 60, lambda: nodes[-1].read("ray.txt"))
        yield
    finally:
        for node in reversed(nodes):
            node.kill()


def join(node: Machine, head: Machine, env: Mapping[str, str], cpus: int = 2) -> None:
    """Make a machine a node of the head's cluster, or do so again after it was killed."""
    node.start(
        [*ray_command(), "start", f"--address={head.address}:{HEAD_PORT}", f"--node-ip-address={node.address}",
         f"--num-cpus={cpus}", "--block", "--object-store-memory=100000000"],
        env, "ray.txt",
    )  # fmt: skip


_PING = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
print("alive", sum(node.state == 0 for node in nodes.values()))
"""


def alive(head: Machine, env: Mapping[str, str]) -> int:
    """Nodes of the cluster that live; 0 where its head does not answer."""
    done = head.run([sys.executable, "-c", _PING, f"{head.address}:{HEAD_PORT}"], env, 30)
    return int(done.stdout.rsplit("alive", 1)[1]) if "alive" in done.stdout else 0


def _answers(head: Machine, env: Mapping[str, str]) -> bool:
    # The dashboard is the last part to come up, and jobs and sweeps need it.
    header = {"Authorization": f"Bearer {env.get('RAY_AUTH_TOKEN', '')}"}
    code = (
        "import sys, urllib.request as u\n"
        f"r = u.Request('http://{head.address}:{DASHBOARD_PORT}/api/version', headers={header!r})\n"
        "print(u.urlopen(r, timeout=5).status)"
    )
    return "200" in head.run([sys.executable, "-c", code], env, 30).stdout.split()


def wait_for(is_true, timeout_s: float, explain) -> None:
    """Wait until a condition holds, looking at it once a second.

    Args:
        is_true: the condition.
        timeout_s: how long it may take.
        explain: called for the message where it does not come true.
    """
    end = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s:\n{explain()}")
        time.sleep(1)

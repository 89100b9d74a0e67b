"""Machines made of Linux namespaces: each with its own address, processes, host name and /tmp/ray, on one computer.

    with machines(3) as nodes:
        start_ray(nodes, cpus=1)
        done = nodes[0].run([sys.executable, "driver.py"], timeout_s=120)
        nodes[2].kill()

Needs root and iproute2; ask `missing()` and skip with its reason. Outside nothing changes but one bridge,
which goes when the block ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_TOOLS = ("ip", "unshare", "nsenter", "mount")
_RAY_PORT = 6379
# Every command of every machine knows it, so that the cluster is closed to others as a real one should be.
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
# As pid 1 of its namespace it holds the machine up; what it adopts is reaped because SIGCHLD is ignored.
_INIT = """
mount --bind "$1/ray" /tmp/ray && mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf
ip link set lo up && trap '' CHLD && : > "$1/up" && exec sleep infinity
"""


def missing() -> str:
    """Why machines cannot be made here; empty where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"network namespaces need {', '.join(absent)} (Debian: iproute2, util-linux)"
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """One machine: a network, process, mount and host-name namespace.

    Attributes:
        name: its host name.
        address: its IPv4 address.
        pid: on this computer, of the process that holds it up; all others of the machine die with it.
    """

    def __init__(self, name: str, address: str, folder: Path) -> None:
        """Start the machine, not yet connected."""
        self.name, self.address = name, address
        log = folder / "log"
        with log.open("w") as stream:
            self._shell = subprocess.Popen(
                ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child",
                 "sh", "-c", f"hostname {name} && {_INIT}", "sh", str(folder)],
                stderr=stream,
            )  # fmt: skip
        deadline = time.monotonic() + 10
        while not (folder / "up").exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not come up: {log.read_text()}")
            time.sleep(0.01)
        self.pid = int(Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text())

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: object
    ) -> subprocess.Popen[str]:
        """Start a command on the machine, in the working directory; takes the options of `Popen`."""
        # RAY_ADDRESS of this computer means nothing there.
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | _TOKEN
        return subprocess.Popen(
            ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", "--uts",
             "env", "-C", str(Path.cwd()), *command],
            env={**inherited, **(env or {})}, text=True, **options,
        )  # fmt: skip

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end, and keep what it wrote."""
        process = self.start(command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def kill(self) -> None:
        """Cut the power: every process of the machine dies at once, its address goes."""
        if self._shell.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._shell.wait(timeout=10)


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Machines on one bridge, with addresses 10.77.N.1, 10.77.N.2, ...; this computer is 10.77.N.254."""
    with ExitStack() as stack:
        number = _bridge(stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True)))
        addresses = {f"n{k}": f"10.77.{number}.{k}" for k in range(1, count + 1)}
        Path("/tmp/ray").mkdir(exist_ok=True)
        made = []
        for k, (name, address) in enumerate(addresses.items(), 1):
            machine = Machine(name, address, _files(folder / name, name, addresses))
            stack.callback(machine.kill)
            # The kernel may still hold the cable of a machine killed a moment ago.
            _connect(machine, f"mrb{number}", f"mrv{number}-{k}-{secrets.token_hex(2)}")
            made.append(machine)
        yield made


def start_ray(nodes: Sequence[Machine], cpus: int = 1, env: Mapping[str, str] | None = None) -> str:
    """Start a Ray cluster whose head is the first machine; its address."""
    address = f"{nodes[0].address}:{_RAY_PORT}"
    for node in nodes:
        start_ray_node(node, address, cpus, env)
    return address


def start_ray_node(node: Machine, address: str, cpus: int = 1, env: Mapping[str, str] | None = None) -> None:
    """Start Ray on one machine, as head where the cluster's address is the machine's own."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    where = [f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats",
             f"--node-ip-address={node.address}"]  # fmt: skip
    head = address == f"{node.address}:{_RAY_PORT}"
    # Jobs come from other machines too, and every request needs the token.
    dashboard = f"--dashboard-host={node.address}"
    where += ["--head", f"--port={_RAY_PORT}", dashboard] if head else [f"--address={address}"]
    for _ in range(3):
        done = node.run([*ray, "start", *where], env, timeout_s=120)
        if done.returncode == 0:
            return
        # Ray gives a node 30 s, which a busy computer may not keep. What it stops is this machine's alone.
        node.run([*ray, "stop", "--force"], env)
    raise RuntimeError(f"Ray did not start on {node.name}: {done.stdout}{done.stderr}")


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


def _bridge(stack: ExitStack) -> int:
    """A bridge of its own for each user at the same time; its number."""
    for number in range(1, 250):
        name = f"mrb{number}"
        if subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, check=False).returncode:
            continue  # another test's
        stack.callback(_ip, "link", "del", name)
        _ip("addr", "add", f"10.77.{number}.254/24", "dev", name)
        _ip("link", "set", name, "up")
        return number
    raise RuntimeError("no bridge can be made: is iproute2 allowed to?")


def _files(folder: Path, name: str, addresses: Mapping[str, str]) -> Path:
    (folder / "ray").mkdir(parents=True)
    # A machine often knows itself by a loopback address (Debian); the others by their own.
    rows = ["127.0.0.1 localhost", f"127.0.1.1 {name}"]
    rows += [f"{address} {other}" for other, address in addresses.items() if other != name]
    (folder / "hosts").write_text("\n".join(rows) + "\n")
    (folder / "resolv.conf").write_text("")  # no name server: a lookup must not wait for one
    return folder


def _connect(machine: Machine, bridge: str, cable: str) -> None:
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
    _ip("link", "set", cable, "master", bridge, "up")
    inside = ["nsenter", "--target", str(machine.pid), "--net", "ip"]
    for command in (["addr", "add", f"{machine.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        subprocess.run([*inside, *command], check=True, capture_output=True)

"""The cluster on one machine: it starts, asks for its token, and leaves nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.clusters.manifests import CLUSTERS

TOKEN = "c" * 64


def free_port():
    """A port that nobody listens on, above those of Ray's workers."""
    for port in range(20_000 + os.getpid() % 5000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def wait_for(is_true, timeout_s, explain):
    """Wait until a condition holds, looking at it once a second."""
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, explain()
        time.sleep(1)


def status(url, token=""):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def members(group):
    """Processes of a session, as the kernel lists them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


@pytest.mark.ray
@pytest.mark.soak
def test_a_local_cluster_needs_its_token_and_ends_without_a_trace(tmp_path):
    port = free_port()
    dashboard = port + 1
    env = {**os.environ, "RAY_AUTH_TOKEN": TOKEN, "MASKRAY_LOCAL_PORT": str(port),
           "MASKRAY_LOCAL_DASHBOARD_PORT": str(dashboard), "MASKRAY_LOCAL_OBJECT_STORE_BYTES": "100000000",
           "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    log = tmp_path / "log.txt"
    before = set(Path("/tmp").glob("mr-*"))
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", str(CLUSTERS / "local.sh"), "2", "1"],
            env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: "maskray submit" in log.read_text() or process.poll() is not None, 60, log.read_text)
        assert process.poll() is None, log.read_text()
        url = f"http://127.0.0.1:{dashboard}"
        assert (status(f"{url}/api/version"), status(f"{url}/api/version", TOKEN)) == (401, 200)
        count = (
            f"import ray, time\nray.init(address='127.0.0.1:{port}', log_to_driver=False)\n"
            "while len(ray.nodes()) < 3: time.sleep(0.5)\nprint('CPUS', ray.cluster_resources()['CPU'])"
        )
        seen = subprocess.run([sys.executable, "-c", count], env={**env, "RAY_AUTH_MODE": "token"},
                              capture_output=True, text=True, timeout=60, check=True).stdout  # fmt: skip
        assert "CPUS 2.0" in seen
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        wait_for(lambda: not members(process.pid), 30, lambda: str(members(process.pid)))
        assert set(Path("/tmp").glob("mr-*")) == before
    finally:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)

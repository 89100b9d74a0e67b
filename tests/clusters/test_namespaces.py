"""The machines that cluster tests stand on: they reach each other, and a killed one is gone with all it ran."""

import subprocess
import sys
import time

import pytest

from tests.clusters.namespaces import machines, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

_ECHO = "import socket; s = socket.create_server(('0.0.0.0', 5000)); print('ready', flush=True); s.accept()[0].recv(1)"
_CALL = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 2)"


def test_machines_are_apart_and_reach_each_other():
    with machines(2) as (one, two):
        assert one.run(["hostname"]).stdout == "n1\n"
        assert one.run(["ps", "ax", "-o", "pid,comm"]).stdout.split()[2:4] == ["1", "sleep"]
        server = two.start([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE)
        assert server.stdout.readline() == "ready\n"
        assert one.run([sys.executable, "-c", _CALL, "n2"]).returncode == 0
        server.wait(timeout=5)
        server = two.start([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE)
        assert server.stdout.readline() == "ready\n"
        two.kill()
        started = time.monotonic()
        assert server.wait(timeout=5) != 0
        assert time.monotonic() - started < 1
        assert one.run([sys.executable, "-c", _CALL, two.address]).returncode != 0

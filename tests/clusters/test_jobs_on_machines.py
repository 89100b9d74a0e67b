"""Jobs on a cluster of three machines, submitted from a fourth that is no part of it."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines import shapes
from pipelines.dataset import Dataset
from tests.clusters.namespaces import machines, missing, start_ray

pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]


class Index:
    """A package index that has nothing and keeps what it was asked for."""

    def __init__(self):
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server.server_address[1]


class Cluster:
    """Three machines with Ray, a client beside them, and a folder all of them share."""

    def __init__(self, nodes, folder, wheel):
        *self.nodes, self.client = nodes
        self.head, self.wheel, self.shared, self.index = self.nodes[0], wheel, folder, Index()
        gateway = re.sub(r"\d+$", "254", self.head.address)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": "",  # the code must come with the job
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder / "home"),
            "PIP_INDEX_URL": f"http://{gateway}:{self.index.port}/simple",
            "PIP_FIND_LINKS": "",
            "PIP_RETRIES": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        self.address = start_ray(self.nodes, 1, self.env)
        self.url = f"http://{self.head.address}:8265"

    def client_command(self, *words):
        root = str(Path(__file__).parents[2])
        return [sys.executable, "-m", "pipelines", *words], {**self.env, "PYTHONPATH": root}

    def maskray(self, *words, timeout_s=180):
        command, env = self.client_command(*words)
        return self.client.run(command, env, timeout_s)

    def submit(self, *words, options=()):
        return self.maskray("submit", "--address", self.url, "--wheel", str(self.wheel), *options, "--", *words)

    def start(self, *words):
        command, env = self.client_command("submit", "--address", self.url, "--wheel", str(self.wheel), "--", *words)
        return self.client.start(command, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def cluster(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with machines(4) as nodes:
        made = Cluster(nodes, folder, wheel)
        yield made
        made.index.server.shutdown()


@pytest.fixture(scope="module")
def raw(cluster):
    """Generated pictures in the shared folder."""
    shapes.generate(shapes.ShapesConfig(train=48, val=12, unlabelled=24), cluster.shared / "raw")
    return cluster.shared / "raw"


def prepare_words(raw, out, split="train"):
    annotations = raw / "annotations" / f"instances_{split}2017.json"
    return ["prepare", "coco", "--images", str(raw / f"{split}2017"), "--annotations", str(annotations),
            "--out", str(out), "--rows-per-shard", "4"]  # fmt: skip


def kill_when(process, node, is_time, timeout_s=120):
    """Cut a machine's power as soon as a condition holds, and wait for the process; what it wrote."""
    end = time.monotonic() + timeout_s
    while not is_time() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]
    assert is_time()
    node.kill()
    return process.communicate(timeout=timeout_s)[0]


def test_preparing_survives_the_loss_of_a_machine(cluster, raw):
    out = cluster.shared / "data" / "train"
    process = cluster.start(*prepare_words(raw, out))
    text = kill_when(process, cluster.nodes[2], lambda: any(out.glob("*.arrow")))
    assert process.returncode == 0, text
    assert text.rstrip().endswith("SUCCEEDED")
    dataset = Dataset(str(out))
    assert sorted(dataset.record(i).image_id for i in range(len(dataset))) == sorted(
        row["id"] for row in json.loads((raw / "annotations" / "instances_train2017.json").read_text())["images"]
    )
    assert cluster.index.asked == []

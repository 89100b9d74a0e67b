"""Jobs on a cluster of three machines, submitted from a fourth that is no part of it."""

import dataclasses
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from model.settings import override
from pipelines import checkpoints, prepare, prepare_config, shapes, train
from pipelines.dataset import Dataset
from pipelines.presets import preset
from pipelines.ray_session import ray_session
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
            "GLOO_SOCKET_IFNAME": "eth0",
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

    def maskray(self, *words, timeout_s=400):
        command, env = self.client_command(*words)
        return self.client.run(command, env, timeout_s)

    def submit(self, *words, options=()):
        return self.maskray("submit", "--address", self.url, "--wheel", str(self.wheel), *options, "--", *words)

    def start(self, *words):
        command, env = self.client_command("submit", "--address", self.url, "--wheel", str(self.wheel), "--", *words)
        return self.client.start(command, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@contextmanager
def cluster_of_three(folder, wheel):
    with machines(4) as nodes:
        made = Cluster(nodes, folder, wheel)
        try:
            yield made
        finally:
            made.index.server.shutdown()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that all machines share, with generated pictures."""
    folder = tmp_path_factory.mktemp("shared")
    shapes.generate(shapes.ShapesConfig(train=48, val=12, unlabelled=24), folder / "raw")
    return folder


@pytest.fixture
def cluster(shared, wheel):
    with cluster_of_three(shared, wheel) as made:
        yield made


def prepare_words(shared, split):
    annotations = shared / "raw" / "annotations" / f"instances_{split}2017.json"
    return ["prepare", "coco", "--images", str(shared / "raw" / f"{split}2017"), "--annotations", str(annotations),
            "--out", str(shared / "data" / split), "--rows-per-shard", "4"]  # fmt: skip


def survives(cluster, words, is_time, victim=lambda nodes: nodes[2], timeout_s=400):
    """Submit a command, cut the power of a machine when it is time, and see the job succeed; what it wrote."""
    process = cluster.start(*words)
    end = time.monotonic() + timeout_s
    while not is_time() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]
    assert is_time()
    victim(cluster.nodes).kill()
    text = process.communicate(timeout=timeout_s)[0]
    assert process.returncode == 0, text
    assert text.rstrip().endswith("SUCCEEDED"), text
    # All code came with the job, and pip asked nobody for anything.
    assert cluster.index.asked == []
    return text


def ids_in(shared, split):
    rows = json.loads((shared / "raw" / "annotations" / f"instances_{split}2017.json").read_text())["images"]
    return sorted(row["id"] for row in rows)


def test_preparing_survives_the_loss_of_a_machine(cluster, shared):
    out = shared / "data" / "train"
    survives(cluster, prepare_words(shared, "train"), lambda: any(out.glob("*.arrow")))
    dataset = Dataset(str(out))
    assert sorted(dataset.record(i).image_id for i in range(len(dataset))) == ids_in(shared, "train")


def prepared(shared):
    """The data sets of the shared folder, made here where no job made them."""
    with ray_session(num_cpus=1):
        for split in ("train", "val"):
            prepare.run(
                prepare_config.PrepareCoco(
                    images=str(shared / "raw" / f"{split}2017"),
                    annotations=str(shared / "raw" / "annotations" / f"instances_{split}2017.json"),
                    out=str(shared / "data" / split), rows_per_shard=4,
                )
            )  # fmt: skip
        pool = prepare_config.PrepareImages(
            images=str(shared / "raw" / "unlabeled2017"), out=str(shared / "data" / "pool"), rows_per_shard=4
        )
        prepare.run(pool)
    return shared / "data"


def with_worker(nodes, process="RayTrainWorker"):
    """A machine besides the head that runs such a process."""
    return next(node for node in nodes[1:] if process in node.run(["ps", "ax", "-o", "args"]).stdout)


SMALL = ["--optim.steps", "24", "--optim.batch", "4", "--optim.warmup-steps", "2", "--execution.checkpoint-every", "4"]


@pytest.mark.soak
def test_training_survives_the_loss_of_a_machine(cluster, shared):
    data, out = prepared(shared), shared / "run"
    words = ["train", "small_mask_rcnn_r18_fpn", "--train", str(data / "train"), "--out", str(out), *SMALL,
             "--execution.workers", "2", "--tracking-uri", f"sqlite:///{shared}/mlflow.db"]  # fmt: skip
    survives(cluster, words, lambda: checkpoints.latest(str(out)) is not None, with_worker)
    assert checkpoints.load(str(out)).step == 24


@pytest.mark.soak
def test_a_sweep_survives_the_loss_of_a_machine(cluster, shared):
    data, out = prepared(shared), shared / "sweep"
    words = ["tune", "--search", "optim.learning_rate=loguniform(1e-4,1e-2)", "--train", str(data / "train"),
             "--out", str(out), "--metric", "loss/total", "--trials", "3", "--reports", "2", "--scheduler", "none",
             "--set", "optim.steps=8", "optim.batch=2", "optim.warmup_steps=2"]  # fmt: skip
    survives(cluster, words, lambda: any(out.glob("trials/*/trial.json")))
    trials = [json.loads(file.read_text()) for file in out.glob("trials/*/trial.json")]
    assert [trial["points"][-1]["step"] for trial in trials] == [8, 8, 8]
    assert (out / "best.json").is_file()


@pytest.mark.soak
def test_labelling_and_distilling_survive_the_loss_of_a_machine(shared, wheel):
    data, labels, out = prepared(shared), shared / "labels", shared / "data" / "pseudo"
    config = dataclasses.replace(
        preset("small_mask_rcnn_r18_fpn"), train=(str(data / "train"),), out=str(shared / "teacher"),
        tracking_uri=f"sqlite:///{shared}/mlflow.db",
    )  # fmt: skip
    train.run(override(override(config, "optim.steps", 8), "optim.batch", 4))
    with cluster_of_three(shared, wheel) as cluster:
        words = ["predict", "--checkpoint", str(shared / "teacher"), "--data", str(data / "pool"), "--out", str(labels)]
        survives(cluster, words, lambda: any(labels.glob("*.arrow")))
    with cluster_of_three(shared, wheel) as cluster:
        words = ["distill", "--predictions", str(labels), "--pool", str(data / "pool"), "--labelled",
                 str(data / "train"), "--out", str(out), "--min-score", "0", "--keep-empty"]  # fmt: skip
        survives(cluster, words, lambda: any((shared / "data").glob("pseudo*")))
    assert sorted(Dataset(str(out)).record(i).image_id for i in range(len(Dataset(str(out))))) == sorted(
        Dataset(str(data / "pool")).record(i).image_id for i in range(len(Dataset(str(data / "pool"))))
    )


@pytest.mark.soak
def test_jobs_are_checked_detached_listed_stopped_and_refused(cluster, shared):
    done = cluster.maskray("doctor", "--address", cluster.url, "--shared", str(shared))
    assert "written and read" in done.stdout
    assert [line for line in done.stdout.splitlines() if "FAILED" in line and "memory" not in line] == []
    words = ["--", "train", "small_mask_rcnn_r18_fpn", "--train", str(prepared(shared) / "train"), "--out",
             str(shared / "long"), "--optim.steps", "100000"]  # fmt: skip
    options = ["submit", "--address", cluster.url, "--wheel", str(cluster.wheel), "--name", "long", "--detach"]
    assert "submitted long-1" in cluster.maskray(*options, *words).stdout
    assert "runs already" in cluster.maskray(*options, *words).stdout
    assert "long-1  RUNNING" in cluster.maskray("jobs", "--address", cluster.url).stdout
    assert "asked long-1 to end" in cluster.maskray("jobs", "--address", cluster.url, "--stop", "long").stdout
    bad = cluster.submit("inspect", str(shared / "nothing"))
    assert bad.returncode == 2
    assert "maskray: " in bad.stdout
    command, env = cluster.client_command("jobs", "--address", cluster.url)
    for token in ("", "wrong" * 10):
        refused = cluster.client.run(command, {**env, "RAY_AUTH_TOKEN": token})
        assert refused.returncode == 2
        assert ("no token" if not token else "refuses the token") in refused.stderr
    # The token is in no log of any machine.
    token = cluster.client.run(["printenv", "RAY_AUTH_TOKEN"]).stdout.strip()
    found = cluster.head.run(["grep", "-rlF", token, "/tmp/ray"]).stdout
    assert found == ""

"""A pool with pictures that rotted, workers that die and a disk that fills: nothing is lost, and the sums say so.

The long forms run in `make soak`, a tenth of them every day.
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import ray

from pipelines import commit, distill, predict
from pipelines.dataset import Dataset
from pipelines.distill_config import DistillConfig
from pipelines.making import Account
from pipelines.predict import PredictConfig
from pipelines.ray_session import ray_session
from pipelines.shard_runner import ShardError
from tests.pipelines import tiny_run
from tests.pipelines.pool_runs import dying, files, kill_points, on_a_full_disk, save
from tests.pipelines.tiny_shards import record, thing, write_dataset

ROWS = 10
pytestmark = pytest.mark.ray


def soaked(few, many):
    """Every day a few, in `make soak` all."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.soak)])


@pytest.fixture(scope="module")
def local_ray():
    with ray_session(num_cpus=2, object_store_memory=200 * 2**20):
        yield


def scene(number, rotten):
    """A picture of the pool; a rotten one was cut after it had been prepared."""
    made = tiny_run.scene(number)
    image = made.image[: len(made.image) // 2] if rotten else made.image
    digest = commit.sha256_of(image)
    return tiny_run.dataclasses.replace(made, image=image, sha256=digest, instances=(), labelled=False)


def pool_of(folder, count):
    """So many pictures of which one in twenty is rotten."""
    numbers = np.random.default_rng(0).permutation(count)[: count // 20].tolist()
    rows = [scene(number, number in numbers) for number in range(count)]
    return write_dataset(folder, [rows[at : at + ROWS] for at in range(0, count, ROWS)])


def people(folder):
    things = [[thing(10 * n, (0, 0, 9, 9)), thing(10 * n + 1, (9, 9, 20, 20), 1)] for n in range(1, 4)]
    rows = [record(1000 + n, of, sha256=commit.sha256_of(b"%d" % n)) for n, of in enumerate(things)]
    return write_dataset(folder, [rows])


@soaked(20, 200)
def test_every_picture_of_a_rotten_pool_is_accounted_for(tmp_path, monkeypatch, local_ray, count):
    pool, teacher = pool_of(tmp_path / "pool", count), save(tmp_path / "teacher")
    shards, marks = count // ROWS, tmp_path / "marks"
    marks.mkdir()
    asked = PredictConfig(teacher, pool.uri, str(tmp_path / "labels"), workers=2, min_workers=1)
    monkeypatch.setattr(predict, "Labeller", on_a_full_disk({shards - 1}, str(marks)))
    with pytest.raises(ShardError, match=r"OSError: .*No space left on device; run the same command again"):
        predict.run(asked)
    deaths = max(1, count // 20)
    monkeypatch.setattr(predict, "Labeller", dying(kill_points(deaths, shards), str(marks)))
    made = predict.run(asked)
    assert (made.pictures, made.account) == (count, Account(count - count // 20, 0, count // 20))
    out = str(tmp_path / "out")
    result = distill.run(DistillConfig(asked.out, pool.uri, people(tmp_path / "people").uri, out, min_score=0.0))
    pictures, detections = (json.loads(result.manifest.source[name]) for name in ("pictures", "detections"))
    assert (sum(pictures.values()), pictures["unseen"]) == (count, count // 20)
    assert (result.manifest.rows_in, result.manifest.instances_in) == (count, made.detections)
    assert sum(detections.values()) == made.detections
    assert result.manifest.rows_written + result.manifest.rows_rejected == count == len(Dataset(pool.uri))


DRIVER = """
import sys
from pipelines import distill
from pipelines.distill_config import DistillConfig
places = sys.argv[1:5]
distill.run(DistillConfig(*places, min_score=0.0, address=sys.argv[5]))
"""


def outcome(folder):
    """What was committed; the page and the times may differ, and what a dead writer left is no part of it."""
    return {name: data for name, data in files(folder).items() if name != "timing.json" and ".tmp-" not in name}


@soaked(2, 20)
def test_killed_drivers_of_distill_change_nothing(tmp_path, local_ray, count):
    pool, teacher = pool_of(tmp_path / "pool", 40), save(tmp_path / "teacher")
    places = [str(tmp_path / "labels"), pool.uri, people(tmp_path / "people").uri]
    predict.run(PredictConfig(teacher, pool.uri, places[0], workers=1))
    distill.run(DistillConfig(*places, str(tmp_path / "whole"), min_score=0.0))
    wanted, rng = outcome(tmp_path / "whole"), np.random.default_rng(1)
    wanted.pop("report.html")  # its title is the folder's name
    for number in range(count):
        out = tmp_path / f"killed{number}"
        asked = [*places, str(out), ray.get_runtime_context().gcs_address]
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, *asked])
        enough, deadline = int(rng.integers(0, 8)), time.monotonic() + 120
        while time.monotonic() < deadline and driver.poll() is None:
            if len([*out.iterdir()] if out.is_dir() else []) >= enough:
                break
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.3)))
        driver.kill()
        driver.wait()
        distill.run(DistillConfig(*places, str(out), min_score=0.0))
        found = outcome(out)
        assert "Where the labels come from" in found.pop("report.html").decode()
        assert found == wanted

"""The same data set comes out whatever the number of Ray workers, and however often one of them is killed."""

import os
import random
import signal
from pathlib import Path

import pytest
from ray import cloudpickle

from pipelines import commit, prepare, prepare_config
from pipelines.ray_session import ray_session
from pipelines.shard_task import make_shard
from tests.pipelines import tiny_coco
from tests.pipelines.test_faults import soaked

pytestmark = pytest.mark.ray
_PICTURES = 24
_REACHED = 2 * len(commit.FAULT_POINTS)  # of the note that a shard is being made, and of the shard


def config(folder, out, **options):
    source = {
        "images": [tiny_coco.image(k) for k in range(_PICTURES)],
        "annotations": [tiny_coco.annotation(k, k % _PICTURES) for k in range(2 * _PICTURES)],
        "pictures": [tiny_coco.image(k)["file_name"] for k in range(_PICTURES)],
    }
    images, file = tiny_coco.write(folder, **source)
    return prepare_config.PrepareCoco(
        images=images, annotations=file, out=str(folder / out), **{"rows_per_shard": 2, **options}
    )


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("counts", [(1, 4), pytest.param((1, 2, 4, 8) * 3, marks=pytest.mark.soak)])
def test_the_number_of_workers_changes_no_byte(tmp_path, counts):
    made = []
    for run, cpus in enumerate(counts):
        wanted = config(tmp_path, f"{run}-of-{cpus}", num_cpus=cpus)
        prepare.run(wanted)
        made.append(files(wanted.out))
    assert len(made[0]) == _PICTURES // 2 + 3
    assert all(other == made[0] for other in made)


class _Kills:
    """Kills its process at the k-th point that is reached, once."""

    def __init__(self, at, mark):
        self.left, self.mark = at, mark

    def reach(self, point):
        if self.left == 0 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class _Deadly:
    """Makes shards, and dies in each of `at` the first time."""

    def __init__(self, task, at, marks):
        self.task, self.at, self.marks = task, at, marks

    def __call__(self, number):
        kills = _Kills(self.at[number], self.marks / str(number)) if number in self.at else None
        return make_shard(self.task, number, kills).to_facts()


@soaked(1, 30)
def test_workers_that_are_killed_lose_nothing(tmp_path, monkeypatch, count):
    rng = random.Random(count)
    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))
    shards = _PICTURES // 2
    left = count
    with ray_session(num_cpus=2, object_store_memory=200 * 2**20):
        whole = prepare.run(config(tmp_path, "whole"))
        while left:
            marks = tmp_path / f"marks-{left}"
            marks.mkdir()
            now = min(left, shards)
            at = {number: rng.randrange(_REACHED) for number in rng.sample(range(shards), now)}
            monkeypatch.setattr(prepare, "_maker", lambda task, at=at, marks=marks: _Deadly(task, at, marks))
            wanted = config(tmp_path, f"killed-{left}")
            assert prepare.run(wanted).hash == whole.hash
            assert sorted(int(p.name) for p in marks.iterdir()) == sorted(at)  # each of them was killed
            assert files(wanted.out) == files(tmp_path / "whole")
            left -= now

"""Batches from actors elsewhere are those of this process, whatever happens to the actors."""

import os

import pytest
import torch

from pipelines import checkpoints, train
from pipelines.geometry import AugmentConfig
from pipelines.loading import BuilderKilledError, LoadingError, Source, TrainBatches
from pipelines.manifest import ManifestError
from pipelines.ray_session import ray_session
from pipelines.remote_loading import remote_stream
from tests.pipelines import tiny_run
from tests.pipelines.test_loading import assert_same

pytestmark = pytest.mark.ray
PICTURE = tiny_run.detector_config().picture


class Deadly(TrainBatches):
    """Batch 3 kills the process that builds it, `times` times."""

    def __init__(self, marks, times, *settings):
        super().__init__(*settings)
        self.marks, self.times = marks, times

    def __getitem__(self, step):
        deaths = len(list(self.marks.iterdir()))
        if step == 3 and deaths < self.times:
            (self.marks / str(deaths)).touch()
            os._exit(1)
        return super().__getitem__(step)


class Faulty(TrainBatches):
    def __getitem__(self, step):
        if step == 2:
            raise LoadingError("record 7 cannot be decoded")
        return super().__getitem__(step)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"), (5, 4, 6))


@pytest.fixture(scope="module")
def cluster():
    with ray_session(num_cpus=4):
        yield


def settings(data):
    return [Source(data, 4)], PICTURE, AugmentConfig(short_edges_px=(48, 64)), 3


@pytest.mark.parametrize("actors", [1, 2])
def test_actors_build_the_same_batches_in_order(data, cluster, actors):
    batches = TrainBatches(*settings(data))
    made = list(remote_stream(batches, 2, 14, actors, pin=False))
    assert len(made) == 12
    for step, batch in zip(range(2, 14), made, strict=True):
        assert_same(batch, batches[step])
        assert batch.images.pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_stream_of_nothing_is_empty(data, cluster):
    assert list(remote_stream(TrainBatches(*settings(data)), 5, 5, 2, pin=False)) == []


def test_what_a_dead_actor_was_building_is_built_again(data, cluster, tmp_path):
    deadly = Deadly(tmp_path, 2, *settings(data))
    made = list(remote_stream(deadly, 0, 8, 2, pin=False))
    assert len(list(tmp_path.iterdir())) == 2
    for step, batch in enumerate(made):
        assert_same(batch, TrainBatches(*settings(data))[step])


def test_data_that_the_actors_cannot_read_are_named(cluster, tmp_path):
    data = tiny_run.dataset(tmp_path / "d")
    batches = TrainBatches(*settings(data))
    (tmp_path / "d" / "manifest.json").rename(tmp_path / "gone")
    with pytest.raises(ManifestError, match=str(tmp_path)):
        list(remote_stream(batches, 0, 8, 1, pin=False))


@pytest.mark.soak
def test_a_batch_that_kills_everyone_is_given_up(data, cluster, tmp_path):
    with pytest.raises(BuilderKilledError, match=r"died|exit|unavailable"):
        list(remote_stream(Deadly(tmp_path, 99, *settings(data)), 0, 8, 1, pin=False))


def test_errors_come_as_they_were_raised(data, cluster):
    with pytest.raises(LoadingError, match=r"^record 7 cannot be decoded$"):
        list(remote_stream(Faulty(*settings(data)), 0, 8, 1, pin=False))


@pytest.mark.soak
def test_a_run_that_actors_load_for_is_the_run_alone(data, tmp_path):
    """By Ray Train, whose placement group has no room for the actors."""
    alone = tiny_run.fit_and_keep(tiny_run.CPU, tiny_run.config(data, tmp_path / "alone"))["state"]
    config = tiny_run.config(data, tmp_path / "actors", execution={"loader_actors": 1})
    train.run(config)
    made = checkpoints.load_detector(checkpoints.latest(config.out)).state_dict()
    assert made.keys() == alone.keys()
    assert all(torch.equal(made[key], alone[key]) for key in made)

"""Every picture once an epoch, whoever reads it and wherever it stops: by numbers alone, no picture is opened."""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch

from pipelines.train_feed import Place, build_batches
from tests.pipelines import tiny_run

EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"), (7, 6, 5, 4, 2))


class Fleet:
    """The workers of a run, as far as their orders go."""

    def __init__(self, data, out, world, batch, parts=1, window=0):
        execution = {"workers": world, "accumulate": parts}
        config = tiny_run.config(data, out, optim={"batch": batch}, execution=execution, shuffle_window=window)
        self.workers = [build_batches(config, Place(rank, world, torch.device("cpu"))) for rank in range(world)]
        self.parts = parts

    def step(self, number):
        """Samples of a step as (index, epoch), in the order of the batch they were dealt from."""
        shares = [worker.positions(number * self.parts + part) for part in range(self.parts) for worker in self.workers]
        turns = itertools.zip_longest(*shares)
        return [(place.index, place.epoch) for turn in turns for _, place in filter(None, turn)]


def account(fleets, batch, stops, data):
    """Samples of each epoch, over runs that take turns at the steps `stops`."""
    steps = -(-EPOCHS * len(data) // batch)
    bounds = [0, *stops, steps]
    seen = []
    for fleet, (first, last) in zip(fleets, itertools.pairwise(bounds), strict=True):
        for step in range(first, last):
            seen += fleet.step(step)
    return [Counter(index for index, at in seen if at == epoch) for epoch in range(EPOCHS)]


@pytest.mark.parametrize(
    ("parts", "world", "each", "window"),
    list(itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4), (0, 2))),  # 54
)
def test_a_run_that_stops_anywhere_sees_each_picture_once_an_epoch(data, tmp_path, parts, world, each, window):
    batch = parts * world * each
    fleets = [Fleet(data, tmp_path, world, batch, parts, window) for _ in range(2)]
    steps = -(-EPOCHS * len(data) // batch)
    once = [Counter(range(len(data)))] * EPOCHS
    for stop in sorted({0, steps // 3, steps - 1}):
        assert account(fleets, batch, [stop], data) == once


@pytest.mark.parametrize("batch", [12, 5])
@pytest.mark.parametrize("worlds", [*itertools.permutations((1, 2, 3), 2), (4, 2), (4, 3), (2, 4), (4, 2, 3)])
def test_another_number_of_workers_takes_up_the_same_order(data, tmp_path, worlds, batch):
    """Also where the batch cannot be divided evenly."""
    fleets = [Fleet(data, tmp_path, world, batch) for world in worlds]
    alone = Fleet(data, tmp_path, 1, batch)
    for fleet in fleets:
        assert all(fleet.step(step) == alone.step(step) for step in range(8))
    stops = [2, 4][: len(worlds) - 1]
    assert account(fleets, batch, stops, data) == [Counter(range(len(data)))] * EPOCHS


def test_the_account_finds_a_picture_that_comes_twice(data, tmp_path):
    """A worker that takes its neighbour's share."""
    fleet = Fleet(data, tmp_path, 2, 4)
    fleet.workers[1] = fleet.workers[0]
    assert account([fleet], 4, [], data) != [Counter(range(len(data)))] * EPOCHS
    config = dataclasses.replace(tiny_run.config(data, tmp_path), seed=1)
    assert build_batches(config, tiny_run.CPU).positions(0) != Fleet(data, tmp_path, 1, 4).workers[0].positions(0)

"""Laws of the order for any data set: permutations, batches of one aspect, windows, and no dependence on who asks."""

import numpy as np
import pytest

from pipelines.order import Position, SampleOrder, epoch_permutation, group_batches, sample_seed


def layouts():
    """(rows of each shard, batch, window, groups) of all kinds, fixed by their number."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, 9, rng.integers(1, 8)).tolist()
        if not sum(rows):
            rows[0] = 1
        batch = int(rng.integers(1, 12))
        window = [None, 1, 2, 3][rng.integers(4)]
        kinds = rng.integers(1, 4)
        groups = rng.integers(0, kinds, sum(rows)).astype(np.int8)
        yield seed, rows, batch, window, groups


LAYOUTS = list(layouts())


def order_of(layout):
    seed, rows, batch, window, groups = layout
    return SampleOrder(rows, groups, batch, seed, window)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[1]}-{layout[2]}-{layout[3]}")
def test_batches_tile_epochs_that_are_permutations(layout):
    order, count, batch = order_of(layout), sum(layout[1]), layout[2]
    steps = -(-4 * count // batch)
    stream = [place for step in range(steps) for place in order.batch(step)]
    assert len(stream) == steps * batch
    assert [place.epoch for place in stream] == [at // count for at in range(len(stream))]
    for epoch in range(4):
        indices = [place.index for place in stream if place.epoch == epoch]
        assert sorted(indices) == list(range(count))
        assert indices == order.epoch(epoch).tolist()
    assert len(order) == count


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[1]}-{layout[2]}-{layout[3]}")
def test_mixed_batches_are_no_more_than_must_be(layout):
    order, count, batch, groups = order_of(layout), sum(layout[1]), layout[2], layout[4]
    for epoch in range(4):
        indices = order.epoch(epoch)
        lead = -(epoch * count) % batch
        sizes = np.bincount(groups[indices[lead:]])
        whole = int((sizes // batch).sum())
        batches = indices[lead : lead + whole * batch].reshape(-1, batch)
        assert all(len(set(groups[row].tolist())) == 1 for row in batches)
        left = groups[indices[lead + whole * batch :]]
        assert np.bincount(left, minlength=1).max(initial=0) < batch  # a group that fills a batch would have made one
        if whole:
            first_step = -(-epoch * count // batch)  # the first batch that begins in this epoch
            places = order.batch(first_step)
            assert [place.epoch for place in places] == [epoch] * batch
            assert len({int(groups[place.index]) for place in places}) == 1


@pytest.mark.parametrize("layout", LAYOUTS[::6], ids=str)
def test_a_batch_does_not_depend_on_those_asked_before(layout):
    order, steps = order_of(layout), 25
    ascending = [order.batch(step) for step in range(steps)]
    assert [order_of(layout).batch(step) for step in range(steps)] == ascending
    assert [order.batch(step) for step in reversed(range(steps))] == ascending[::-1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[1]}-{layout[3]}")
def test_no_more_shards_are_open_than_a_window_holds(layout):
    seed, rows, _, window, _ = layout
    owner = np.repeat(np.arange(len(rows)), rows)
    for epoch in range(3):
        left, open_shards = dict(enumerate(rows)), set()
        for shard in owner[epoch_permutation(rows, seed, epoch, window)].tolist():
            open_shards.add(shard)
            assert len(open_shards) <= (window or len(rows))
            left[shard] -= 1
            if not left[shard]:
                open_shards.remove(shard)
        assert not open_shards


def test_epochs_and_seeds_differ():
    groups = np.zeros(60, np.int8)
    orders = {
        tuple(SampleOrder([20, 20, 20], groups, 4, seed, window).epoch(epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
        for window in (None, 1)
    }
    assert len(orders) == 18


def test_with_a_window_the_shards_come_in_another_order_each_epoch():
    owner = np.repeat(np.arange(5), 4)
    firsts = {int(owner[epoch_permutation([4] * 5, 0, epoch, 1)[0]]) for epoch in range(60)}
    assert firsts == set(range(5))


def test_a_full_shuffle_is_even():
    """Each sample is as likely in each place as in any other."""
    places = np.array([np.argsort(epoch_permutation([3, 1, 2], 0, epoch, None)) for epoch in range(3000)])
    counts = np.stack([np.bincount(places[:, sample], minlength=6) for sample in range(6)])
    # 3000 draws with p = 1/6: a standard deviation of 20.4.
    assert abs(counts - 500).max() < 5 * 20.4


def test_batches_come_in_the_order_in_which_they_fill_up():
    order = np.arange(12)
    groups = np.array([0, 1, 1, 1, 0, 0, 2, 0, 1, 1, 0, 1], np.int8)
    made = group_batches(order, groups, 2, 1)
    assert made.tolist() == [0, 1, 2, 4, 5, 3, 8, 7, 10, 9, 11, 6]


@pytest.mark.parametrize("lead", [0, 3, 5, 9])
def test_a_lead_longer_than_the_epoch_is_the_epoch(lead):
    order = np.array([4, 2, 0, 1, 3])
    made = group_batches(order, np.zeros(5, np.int8), 9, lead)
    assert made.tolist() == order.tolist()


def test_sample_seeds_are_distinct_and_fixed():
    seeds = {sample_seed(run, epoch, index) for run in range(4) for epoch in range(8) for index in range(64)}
    assert len(seeds) == 4 * 8 * 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A change of these numbers changes every published run: numpy's documented SeedSequence makes them.
    assert sample_seed(0, 0, 0) == int(np.random.SeedSequence([0, 0, 0]).generate_state(1, np.uint64)[0]) // 2
    assert sample_seed(1, 2, 3) == sample_seed(1, 2, 3) != sample_seed(1, 3, 2)


@pytest.mark.parametrize(("rows", "batch"), [([], 1), ([0, 0], 3), ([4], 0)])
def test_an_order_needs_samples_and_a_batch(rows, batch):
    with pytest.raises(ValueError, match="needs samples and a batch of at least 1, got"):
        SampleOrder(rows, np.zeros(sum(rows), np.int8), batch, 0)


def test_a_batch_larger_than_the_data_repeats_them_epoch_by_epoch():
    order = SampleOrder([2, 1], np.array([0, 1, 0], np.int8), 8, 5)
    places = order.batch(0) + order.batch(1)
    assert [place.epoch for place in places] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5]
    assert isinstance(places[0], Position)

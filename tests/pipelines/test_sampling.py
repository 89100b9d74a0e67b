"""Repeat factors and filters: what comes, how often, and that epochs stay exact."""

import numpy as np
import pytest

from pipelines.geometry import AugmentConfig
from pipelines.loading import Source, TrainBatches
from pipelines.order import SampleOrder, SamplingConfig, epoch_copies, epoch_length
from pipelines.sampling import repeats
from tests.pipelines import tiny_run
from tests.pipelines.tiny_shards import record, thing, write_dataset

BOX = (4, 6, 30, 28)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen pictures: fourteen with class 0, one of them and another one with class 1, one empty."""
    rows = [record(n, [thing(n, BOX)]) for n in range(13)]
    rows += [record(13, [thing(13, BOX), thing(14, BOX, 1)]), record(14, [thing(15, BOX, 1)]), record(15)]
    return write_dataset(tmp_path_factory.mktemp("data"), [rows[:7], rows[7:]])


def test_nothing_asked_is_none(data):
    assert repeats(data, SamplingConfig()) is None


def test_a_rare_class_repeats_its_pictures(data):
    found = repeats(data, SamplingConfig(repeat_threshold=0.5))
    assert found.tolist() == pytest.approx([1] * 13 + [2, 2, 1])  # sqrt(0.5 / (2 / 16)) = 2


def test_filters_leave_pictures_out_and_shares_are_of_what_is_left(data):
    assert repeats(data, SamplingConfig(drop_empty=True)).tolist() == [1] * 15 + [0]
    only = repeats(data, SamplingConfig(classes=("cat & <mouse>",)))
    assert np.flatnonzero(only).tolist() == [13, 14]
    both = repeats(data, SamplingConfig(classes=("cat & <mouse>",), repeat_threshold=1.0))
    assert both[[13, 14]].tolist() == pytest.approx([2**0.5, 1.0])  # there the dog is the rare one


def test_small_pictures_are_left_out(tmp_path):
    sizes = [(48, 64), (31, 64), (64, 32), (400, 20)]
    data = write_dataset(tmp_path, [[record(n, [thing(n, (1, 1, 9, 9))], size) for n, size in enumerate(sizes)]])
    assert repeats(data, SamplingConfig(min_side_px=32)).tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"sampling\.min_side_px must be >= 0, got -1"):
        SamplingConfig(min_side_px=-1)


def test_pictures_with_few_labelled_keypoints_are_left_out(tmp_path):
    def shown(*visible):
        return np.array([[3, 4, v] for v in visible], np.float32)

    rows = [
        record(0, [thing(0, BOX, 1, keypoints=shown(2, 1)), thing(1, BOX), thing(2, BOX, 1, keypoints=shown(0, 2))]),
        record(1, [thing(3, BOX, 1, keypoints=shown(0, 0))]),
        record(2),
        record(3, [thing(4, BOX, 1, keypoints=shown(2, 0))]),
        record(4, [thing(5, BOX, 1, keypoints=shown(1, 1))]),
    ]
    data = write_dataset(tmp_path, [rows[:2], rows[2:]])
    assert data.labelled_keypoints().tolist() == [3, 0, 0, 1, 2]
    assert repeats(data, SamplingConfig(min_keypoints=1)).tolist() == [1, 0, 0, 1, 1]
    assert repeats(data, SamplingConfig(min_keypoints=3)).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="sampling leaves no picture of"):
        repeats(data, SamplingConfig(min_keypoints=4))


def test_what_leaves_nothing_or_is_unknown_is_told(data, tmp_path):
    with pytest.raises(ValueError, match=r"sampling\.classes has \['bird'\], .* has the classes \['dog', "):
        repeats(data, SamplingConfig(classes=("bird",)))
    empty = write_dataset(tmp_path, [[record(1)]])
    with pytest.raises(ValueError, match="sampling leaves no picture of"):
        repeats(empty, SamplingConfig(drop_empty=True))
    with pytest.raises(ValueError, match=r"sampling\.repeat_threshold must be in 0\.\.1, got 2"):
        SamplingConfig(repeat_threshold=2)


def test_copies_are_right_on_average_and_their_number_never_changes():
    numbers = np.array([0.0, 1.0, 1.25, 2.5, 0.3, 1.0, 0.0, 3.7])
    total = epoch_length(numbers)
    made = np.stack([epoch_copies(numbers, 3, epoch) for epoch in range(4000)])
    assert set(made.sum(axis=1)) == {total}
    scaled = numbers * total / numbers.sum()
    np.testing.assert_allclose(made.mean(axis=0), scaled, atol=0.03)
    assert (np.abs(made - scaled) < 1).all()
    assert not made[:, [0, 6]].any()
    last = np.array([0.1] * 30 + [0.0] * 3)
    assert not np.stack([epoch_copies(last, seed, 0) for seed in range(500)])[:, 30:].any()


@pytest.mark.parametrize("window", [None, 1])
def test_epochs_are_exact_with_repeats(window):
    numbers = np.array([2.0, 0.0, 1.0, 1.5, 1.5, 0.0, 3.0])
    order = SampleOrder([3, 4], np.array([0, 0, 1, 1, 0, 0, 1], np.int8), 4, 5, window, numbers)
    assert len(order) == 9
    seen = [place for step in range(27) for place in order.batch(step)]
    for epoch in range(12):
        own = [place for place in seen if place.epoch == epoch]
        copies = epoch_copies(numbers, 5, epoch)
        assert np.bincount([place.index for place in own], minlength=7).tolist() == copies.tolist()
        # Each copy has a number of its own, and so a randomness of its own.
        assert len({(place.index, place.copy) for place in own}) == len(own) == 9


def test_batches_hold_what_is_sampled_and_copies_differ(data):
    source = Source(data, 4, repeats(data, SamplingConfig(classes=("cat & <mouse>",))) * 4)
    made = TrainBatches([source], tiny_run.detector_config().picture, AugmentConfig(), 0)
    assert made.epoch_of(2) == 1.0
    batches = [made[step] for step in range(2)]
    ids = [number for batch in batches for number in batch.image_ids.tolist()]
    assert sorted(ids) == [13] * 4 + [14] * 4
    assert len({int(seed) for batch in batches for seed in batch.targets.seeds}) == 8

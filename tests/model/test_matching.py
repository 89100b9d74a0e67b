"""Matching against loops; sampling against its laws and a loop over sorted keys."""

import numpy as np
import pytest
import torch

from model.boxes import pairwise_iou
from model.matching import ignored, match, object_weights, positive_quota, random_keys, sample
from tests.model.tiny_batch import plain_targets


def match_one(iou, min_best_iou):
    """The four answers for the overlaps [N, G] of one picture's real objects, with loops."""
    count, objects = iou.shape
    best_iou = [max(row, default=-1.0) for row in iou.tolist()]
    best = [row.index(max(row)) if row else 0 for row in iou.tolist()]
    best_of = [-1] * count
    for g in range(objects):
        top = iou[:, g].max()
        if top > 0 and top >= min_best_iou:
            for n in range(count):
                if iou[n, g] == top:
                    best_of[n] = g
    return best_iou, best, best_of


def grid_boxes(count, seed):
    """Boxes on a coarse grid, so that overlaps tie often."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 6, (count, 2)) * 8.0
    size = rng.integers(1, 4, (count, 2)) * 8.0
    return torch.from_numpy(np.concatenate([corner, corner + size], axis=1).astype(np.float32))


@pytest.mark.parametrize("min_best_iou", [0.0, 0.4])
@pytest.mark.parametrize("per_picture", [False, True], ids=["anchors", "proposals"])
def test_match_equals_the_loop(min_best_iou, per_picture):
    pictures, slots, count = 6, 7, 200
    objects = torch.stack([grid_boxes(slots, 100 + b) for b in range(pictures)])
    valid = torch.tensor([[g < 7 - b or (b == 5 and g == 6) for g in range(slots)] for b in range(pictures)])
    boxes = torch.stack([grid_boxes(count, b) for b in range(pictures)]) if per_picture else grid_boxes(count, 0)
    found = match(boxes, objects, valid, min_best_iou)
    ties = 0
    for b in range(pictures):
        real = valid[b].nonzero().flatten()
        iou = pairwise_iou(boxes[b] if per_picture else boxes, objects[b, real])
        best_iou, best, best_of = match_one(iou, min_best_iou)
        assert found.iou[b].tolist() == best_iou
        assert found.best[b].tolist() == [int(real[g]) for g in best]
        assert found.best_of[b].tolist() == [int(real[g]) if g >= 0 else -1 for g in best_of]
        assert found.is_best[b].tolist() == [g >= 0 for g in best_of]
        ties += int(found.is_best[b].sum()) - len({g for g in best_of if g >= 0})
    assert ties > 5


def test_a_picture_without_objects_has_no_matches():
    found = match(grid_boxes(5, 0), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert (found.iou == -1).all()
    assert not found.best.any()
    assert not found.is_best.any()
    assert (found.best_of == -1).all()


def test_an_object_that_nothing_overlaps_has_no_best_box():
    far = torch.tensor([[[500.0, 500.0, 510.0, 510.0], [0.0, 0.0, 8.0, 8.0]]])
    found = match(grid_boxes(30, 1), far, torch.ones(1, 2, dtype=torch.bool))
    assert 0 not in found.best_of
    assert found.is_best.any()


def test_of_several_objects_a_box_is_best_for_the_last():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 101.0, 1.0]])
    objects = torch.tensor([[[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 5.0, 10.0]]])
    found = match(boxes, objects, torch.ones(1, 2, dtype=torch.bool))
    assert found.best.tolist() == [[0, 0]]
    assert found.best_of.tolist() == [[1, -1]]


def test_boxes_that_take_no_part_are_nobody_s_best():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 5.0]])
    objects, valid = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]] * 3), torch.ones(3, 1, dtype=torch.bool)
    part = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    found = match(boxes, objects, valid, taking_part=part)
    assert found.is_best.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    torch.testing.assert_close(found.iou, torch.where(part, torch.tensor([1.0, 0.8, 0.5]), -1.0))


# (box, is ignored) beside a region of 40..60 x 40..60, of which at least half must be covered.
REGION = [40.0, 40.0, 60.0, 60.0]
IGNORED = {
    "inside": ([45.0, 45.0, 55.0, 55.0], True),
    "the-region": (REGION, True),
    "half": ([50.0, 40.0, 70.0, 60.0], True),
    "less-than-half": ([50.5, 40.0, 70.5, 60.0], False),
    "around": ([0.0, 0.0, 100.0, 100.0], False),
    "elsewhere": ([0.0, 0.0, 10.0, 10.0], False),
    "no-extent": ([45.0, 45.0, 45.0, 45.0], False),
}


@pytest.mark.parametrize(("box", "wanted"), IGNORED.values(), ids=IGNORED)
def test_a_box_at_least_half_in_a_region_is_ignored(box, wanted):
    targets = plain_targets([[[0.0, 0.0, 5.0, 5.0], REGION]], [[True, False]])
    assert ignored(torch.tensor([box]), targets).tolist() in (False, [[False]])
    region = targets._replace(ignore=torch.tensor([[False, True]]))
    assert ignored(torch.tensor([box]), region).tolist() == [[wanted]]
    assert ignored(torch.tensor([[box]]), region).tolist() == [[wanted]]
    nowhere = targets._replace(ignore=torch.tensor([[False, False]]))
    assert ignored(torch.tensor([box]), nowhere).tolist() == [[False]]


def test_a_positive_has_its_object_s_weight_and_a_negative_one():
    targets = plain_targets([[[0.0, 0.0, 5.0, 5.0]] * 3], [[True] * 3])
    objects, positive = torch.tensor([[2, 0, 1]]), torch.tensor([[True, True, False]])
    assert object_weights(targets, objects, positive).expand(1, 3).tolist() == [[1.0, 1.0, 1.0]]
    weighted = targets._replace(weights=torch.tensor([[0.5, 0.25, 0.0]]))
    assert object_weights(weighted, objects, positive).tolist() == [[0.0, 0.5, 1.0]]


SEEDS = [0, 1, 2, 7, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1, -1, -(2**63)]


def key(seed, position, stream):
    """The same hash in Python's unbounded integers, which would show an overflow."""
    mask = 2**32 - 1
    x = (((seed ^ (seed >> 32)) & mask) * 0x1E3779B1 + position * 0x45EBCA6B + stream * 0x42B2AE35) & mask
    for factor in (0x7FEB352D, 0x046CA68B):
        x = ((x ^ (x >> 16)) * factor) & mask
    return ((x ^ (x >> 16)) << 24) | position


def test_keys_are_a_pure_function_without_overflow():
    keys = random_keys(torch.tensor(SEEDS), 300, 2)
    assert keys.dtype == torch.int64
    assert keys.tolist() == [[key(seed, position, 2) for position in range(300)] for seed in SEEDS]
    last = (1 << 24) - 2
    assert random_keys(torch.tensor([2**63 - 1]), last + 1, 2)[0, last].item() == key(2**63 - 1, last, 2)


def test_keys_are_distinct_and_not_negative():
    keys = random_keys(torch.arange(20), 50_000, 1)
    assert (keys >= 0).all()
    assert (keys.sort(dim=1).values.diff() > 0).all()


def test_the_beginning_of_a_row_does_not_depend_on_its_length_or_neighbours():
    keys = random_keys(torch.tensor(SEEDS), 100, 3)
    assert torch.equal(random_keys(torch.tensor(SEEDS), 40, 3), keys[:, :40])
    for row, seed in enumerate(SEEDS):
        assert torch.equal(random_keys(torch.tensor([seed]), 100, 3)[0], keys[row])


def test_more_boxes_than_positions_are_refused():
    with pytest.raises(ValueError, match="a picture has 16777216 boxes to sample from, at most 16777215"):
        random_keys(torch.tensor([0]), 1 << 24, 1)


def drawn(seeds, count, draw, stream):
    """bool [seeds, count]: the boxes with the `draw` largest keys."""
    index = random_keys(seeds, count, stream).topk(draw, dim=1).indices
    return torch.zeros(len(seeds), count, dtype=torch.bool).scatter(1, index, True)


# Seeds that differ in few bits, as data sets number their pictures.
@pytest.mark.parametrize("step", [1, 1000, 2**20, 2**32], ids=["1", "1000", "2^20", "2^32"])
def test_each_box_is_drawn_about_as_often(step):
    seeds, count, draw = 4000, 60, 12
    chosen = drawn(torch.arange(seeds) * step, count, draw, 1).double()
    share = draw / count
    five_sigma = 5 * (seeds * share * (1 - share)) ** 0.5
    assert (chosen.sum(dim=0) - seeds * share).abs().max() < five_sigma


def expected_overlap(count, draw, repeats):
    """Mean and five sigmas of the summed overlap of independent draws (hypergeometric)."""
    variance = draw * (draw / count) * (1 - draw / count) * (count - draw) / (count - 1)
    return repeats * draw * draw / count, 5 * (repeats * variance) ** 0.5


def test_streams_and_neighbouring_seeds_are_drawn_independently():
    seeds, count, draw = torch.arange(4000), 60, 12
    one = drawn(seeds, count, draw, 1)
    mean, five_sigma = expected_overlap(count, draw, len(seeds))
    for other in (drawn(seeds, count, draw, 2), drawn(seeds + 1, count, draw, 1), drawn(-seeds, count, draw, 1)):
        assert abs((one & other).sum().item() - mean) < five_sigma


def sample_one(positive, negative, keys, count, share):
    """The wanted places and kinds of one picture: sort by key, take, fill up."""
    quota = positive_quota(count, share, len(keys))
    by_key = sorted(range(len(keys)), key=lambda i: -keys[i])
    taken = [i for i in by_key if positive[i]][:quota]
    others = [i for i in by_key if negative[i]][: min(count, len(keys)) - len(taken)]
    return taken, others


CASES = [
    # boxes, share of positives, share of negatives, samples, positive share asked for
    pytest.param(200, 0.3, 0.5, 32, 0.25, id="plenty"),
    pytest.param(200, 0.01, 0.9, 32, 0.5, id="few-positives"),
    pytest.param(200, 0.5, 0.02, 32, 0.5, id="few-negatives"),
    pytest.param(200, 0.0, 0.5, 32, 0.5, id="no-positives"),
    pytest.param(200, 0.5, 0.0, 32, 0.5, id="no-negatives"),
    pytest.param(200, 0.0, 0.0, 32, 0.5, id="nothing"),
    pytest.param(20, 0.3, 0.7, 64, 0.25, id="fewer-boxes-than-samples"),
    pytest.param(20, 0.9, 0.1, 64, 1.0, id="all-may-be-positive"),
    pytest.param(200, 0.5, 0.5, 3, 0.25, id="quota-rounds-to-none"),
    pytest.param(200, 0.5, 0.5, 8, 0.0, id="share-of-none"),
]


@pytest.mark.parametrize(("boxes", "of_positive", "of_negative", "count", "share"), CASES)
def test_a_sample_equals_the_loop_and_keeps_its_laws(boxes, of_positive, of_negative, count, share):
    pictures = 5
    draw = torch.rand(pictures, boxes, generator=torch.Generator().manual_seed(1))
    positive, negative = draw < of_positive, draw > 1 - of_negative
    seeds = torch.arange(pictures) + 10
    result = sample(positive, negative, seeds, count, share, 4)
    keys = random_keys(seeds, boxes, 4).tolist()
    size = min(count, boxes)
    assert result.place.shape == result.positive.shape == result.valid.shape == (pictures, size)
    assert ((result.place >= 0) & (result.place < boxes)).all()  # the padding too can be gathered
    for b in range(pictures):
        taken, others = sample_one(positive[b], negative[b], keys[b], count, share)
        quota = max(1, min(int(count * share), boxes))
        assert len(taken) == min(int(positive[b].sum()), quota)
        assert len(others) == min(int(negative[b].sum()), size - len(taken))
        filled = len(taken) + len(others)
        assert result.place[b, :filled].tolist() == taken + others
        assert result.positive[b].tolist() == [slot < len(taken) for slot in range(size)]
        assert result.valid[b].tolist() == [slot < filled for slot in range(size)]
        assert len(set(taken + others)) == filled


def test_a_picture_s_sample_does_not_depend_on_its_neighbours():
    draw = torch.rand(4, 150, generator=torch.Generator().manual_seed(2))
    positive, negative = draw < 0.1, draw > 0.4
    seeds = torch.tensor([3, 9, 3, 2**50])
    together = sample(positive, negative, seeds, 24, 0.25, 1)
    for b in range(4):
        alone = sample(positive[b : b + 1], negative[b : b + 1], seeds[b : b + 1], 24, 0.25, 1)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one[0], other[b])
    order = torch.tensor([2, 0, 3, 1])
    for one, other in zip(sample(positive[order], negative[order], seeds[order], 24, 0.25, 1), together, strict=True):
        assert torch.equal(one, other[order])


def test_another_seed_or_stream_draws_others():
    everything = torch.ones(1, 150, dtype=torch.bool)
    places = {
        tuple(sample(~everything, everything, torch.tensor([seed]), 24, 0.25, stream).place[0].tolist())
        for seed in range(5)
        for stream in range(5)
    }
    assert len(places) == 25

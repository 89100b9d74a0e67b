"""Batches as a function of data, seed and step: shapes from a few sizes, shares that fit together, packed masks."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from model.config import PictureConfig
from model.picture import empty_batch, padded_hw, resized_hw
from pipelines import decode, masks
from pipelines.check_semantic import check_map
from pipelines.geometry import AugmentConfig
from pipelines.loading import LoadingError, Source, TrainBatches, aspect_groups, collate, stream
from pipelines.mask_crops import MaskCrop
from pipelines.transforms import Sample, Wanted, transform
from tests.pipelines import tiny_run, tiny_shards
from tests.pipelines.tiny_pictures import grey_png
from tests.pipelines.tiny_shards import record, thing

PICTURE = tiny_run.detector_config().picture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"), (5, 4, 6))


@pytest.fixture(scope="module")
def extra(tmp_path_factory):
    rows = [[record(100 + k, [thing(k, (4, 6, 30, 28))]) for k in range(3)]]
    return tiny_shards.write_dataset(tmp_path_factory.mktemp("extra"), rows)


def batches(data, extra=None, rank=0, world=1, seed=3, share=4, augment=None, window=None):
    sources = [Source(data, share)] + ([Source(extra, 2)] if extra else [])
    augment = augment or AugmentConfig(short_edges_px=(48, 64))
    return TrainBatches(sources, PICTURE, augment, seed, rank, world, window)


def assert_same(one, other):
    left, right = ([leaf for leaf in pytree.tree_leaves(tree) if leaf is not None] for tree in (one, other))
    assert len(left) == len(right) >= 10
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def unpacked(targets, b, g):
    """The whole mask of one object, from the packed form alone."""
    y0, x0, height, width, full_height, full_width = targets.masks.extents[b, g].tolist()
    start = int(targets.masks.offsets[b, g])
    bits = targets.masks.data[start : start + height * width].reshape(height, width)
    mask = torch.zeros(full_height, full_width, dtype=torch.uint8)
    mask[y0 : y0 + height, x0 : x0 + width] = bits
    return mask.numpy()


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_the_workers_shares_are_the_batch(data, extra, world):
    whole = batches(data, extra)
    for step in range(9):
        shares = [batches(data, extra, rank, world).positions(step) for rank in range(world)]
        assert {len(share) for share in shares} == {6 // world}
        interleaved = [place for places in zip(*shares, strict=True) for place in places]
        assert interleaved == whole.positions(step)
        ids = torch.stack([batches(data, extra, rank, world)[step].image_ids for rank in range(world)], dim=1)
        assert torch.equal(ids.flatten(), whole[step].image_ids)


def test_a_share_of_a_batch_holds_the_same_samples(data, extra):
    """A sample looks the same whatever the number of workers."""
    whole, halves = batches(data, extra)[5], [batches(data, extra, rank, 2)[5] for rank in range(2)]
    for place in range(6):
        half = halves[place % 2]
        at = place // 2
        assert torch.equal(whole.images.sizes_hw[place], half.images.sizes_hw[at])
        assert torch.equal(whole.targets.seeds[place], half.targets.seeds[at])
        height, width = whole.images.sizes_hw[place].tolist()
        pixels = [images.pixels[at_, :, :height, :width] for images, at_ in ((whole.images, place), (half.images, at))]
        assert torch.equal(*pixels)
        for g in range(int(whole.targets.valid[place].sum())):
            assert torch.equal(whole.targets.boxes[place, g], half.targets.boxes[at, g])
            np.testing.assert_array_equal(unpacked(whole.targets, place, g), unpacked(half.targets, at, g))


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_a_run_that_stops_goes_on_with_the_same_batches(data, extra, start):
    whole = [batches(data, extra)[step] for step in range(9)]
    resumed = list(stream(batches(data, extra), start, 9, 0, pin=False))
    assert len(resumed) == 9 - start
    for one, other in zip(whole[start:], resumed, strict=True):
        assert_same(one, other)


def test_another_process_builds_the_same_batches(data, extra):
    made = list(stream(batches(data, extra), 2, 6, 1, pin=False))
    assert len(made) == 4
    for step, batch in zip(range(2, 6), made, strict=True):
        assert_same(batch, batches(data, extra)[step])


def test_every_sample_comes_once_an_epoch(data):
    seen = [place for step in range(15) for _, place in batches(data).positions(step)]
    for epoch in range(4):
        assert sorted(place.index for place in seen if place.epoch == epoch) == list(range(15))
    assert batches(data).epoch_of(15) == 4.0
    assert batches(data).epoch_of(6) == 1.6


def test_seeds_differ_between_samples_epochs_runs_and_sets(data):
    seeds = [seed for step in range(15) for seed in batches(data)[step].targets.seeds.tolist()]
    seeds += [seed for step in range(15) for seed in batches(data, seed=11)[step].targets.seeds.tolist()]
    assert len(set(seeds)) == len(seeds) == 120
    twice = TrainBatches([Source(data, 2), Source(data, 2)], PICTURE, AugmentConfig(), 0)
    assert [place for place in twice.positions(0) if place[0] == 0] != [(0, p) for n, p in twice.positions(0) if n == 1]
    assert len(set(twice[0].targets.seeds.tolist())) == 4


def test_shapes_come_from_a_few_sizes(data):
    made = [batches(data)[step] for step in range(20)]
    sides = {tuple(batch.images.pixels.shape[2:]) for batch in made}
    assert sides <= {(64, 64), (64, 96), (96, 64), (96, 96)}
    assert len(sides) > 1
    for batch in made:
        assert batch.images.pixels.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images.pixels.dtype, batch.targets.boxes.dtype) == (torch.uint8, torch.float32)
        objects, mask_bytes = batch.targets.boxes.shape[1], len(batch.targets.masks.data)
        assert objects >= 8
        assert mask_bytes >= 4096
        assert (objects & (objects - 1), mask_bytes & (mask_bytes - 1)) == (0, 0)
        for b, (height, width) in enumerate(batch.images.sizes_hw.tolist()):
            assert batch.images.pixels[b, :, :height, :width].any()
            assert not batch.images.pixels[b, :, height:].any()
            assert not batch.images.pixels[b, :, :, width:].any()


@pytest.mark.parametrize("short", [40, 64, 100, 128])
def test_pictures_of_one_aspect_group_pad_to_one_size(short):
    picture = PictureConfig(short_edge_px=short, long_edge_px=170)
    sizes = list(itertools.product(range(20, 200, 9), repeat=2))
    groups = aspect_groups(np.array(sizes, np.int32), short, picture)
    side = -(-short // 32) * 32
    for group, wanted in enumerate([(side, side), (side, 192), (192, side)]):
        resized = [resized_hw(*size, short, picture) for size, of in zip(sizes, groups, strict=True) if of == group]
        assert padded_hw(resized, short, picture) == wanted
        # Rounding may bring a picture that is hardly longer than the square to its very size, where it is no harm.
        assert {padded_hw([size], short, picture) for size in resized} <= {wanted, (side, side)}


def sample(count=0, size_hw=(30, 40), holes=(), side=5):
    crops = tuple(
        None if k in holes else MaskCrop(k, 2 * k, np.full((side, side + k), 1 + 0 * k, np.uint8)) for k in range(count)
    )
    boxes = np.array([[k, k, k + 9, k + 7] for k in range(count)], np.float32).reshape(-1, 4)
    return Sample(torch.ones(3, *size_hw, dtype=torch.uint8), boxes, np.arange(count, dtype=np.int64), crops)


def collated(samples):
    images = empty_batch([tuple(one.pixels.shape[1:]) for one in samples], (64, 96), torch.uint8)
    return collate(samples, images, range(len(samples)))


def test_packed_masks_are_the_whole_masks():
    """With holes, so that what is between the rings is seen too."""
    rng = np.random.default_rng(0)
    things = []
    for number in range(11):
        bitmap = (rng.random((48, 64)) < rng.random()).astype(np.uint8)
        x1, y1 = rng.integers(0, 30, 2)
        bitmap[:y1], bitmap[:, :x1] = 0, 0
        things.append(thing(number, (x1, y1, 64, 48), polygons=None, rle=masks.encode(bitmap)))
    source = record(1, things)
    picture = PictureConfig(short_edge_px=48, long_edge_px=64)
    same = AugmentConfig(flip=0.0)
    samples = [transform(source, picture, same, np.random.default_rng(0)), sample(3)]
    targets = collated(samples)
    assert targets.valid.sum(1).tolist() == [11, 3]
    assert targets.boxes.shape == (2, 16, 4)
    for g, instance in enumerate(things):
        np.testing.assert_array_equal(unpacked(targets, 0, g), masks.rasterise(instance.rle, 48, 64))
    assert targets.seeds.tolist() == [0, 1]


def test_objects_without_a_mask_are_marked():
    targets = collated([sample(3, holes=(1,)), sample(2, holes=(0, 1)), sample(0)])
    assert targets.masks.offsets[0, :3].tolist() == [0, -1, 25]
    assert targets.masks.offsets[1, :2].tolist() == [-1, -1]
    assert targets.masks.extents[0, 2].tolist() == [2, 4, 5, 7, 30, 40]
    assert targets.masks.extents[1].abs().sum() == 0
    assert targets.valid.sum(1).tolist() == [3, 2, 0]
    assert not targets.boxes[2].any()


@pytest.mark.parametrize(("count", "padded"), [(0, 8), (8, 8), (9, 16), (16, 16), (17, 32)])
def test_objects_are_padded_to_powers_of_two(count, padded):
    targets = collated([sample(count), sample(1)])
    assert targets.labels.shape == (2, padded)
    assert targets.valid[0].tolist() == [True] * count + [False] * (padded - count)


@pytest.mark.parametrize(("side", "padded"), [(63, 4096), (64, 4096), (65, 8192)])
def test_mask_bytes_are_padded_to_powers_of_two(side, padded):
    targets = collated([sample(1, side=side)])
    assert targets.masks.data.shape == (padded,)
    assert int(targets.masks.data.sum()) == side * side


def test_a_batch_that_cannot_be_divided_is_refused(data):
    with pytest.raises(ValueError, match="a batch of 4 pictures cannot be divided among 3 workers: choose a batch"):
        batches(data, world=3)


def test_crowds_never_reach_a_batch(tmp_path):
    rows = [[record(k, [thing(k, (4, 6, 30, 28), crowd=bool(k % 2))]) for k in range(4)]]
    crowded = tiny_shards.write_dataset(tmp_path, rows)
    batch = batches(crowded)[0]
    assert batch.targets.valid.sum(1).tolist() == [1 - number % 2 for number in batch.image_ids.tolist()]


def test_the_detectors_own_short_edge_is_the_default(data):
    narrow = dataclasses.replace(PICTURE, short_edge_px=32, long_edge_px=64)
    batch = TrainBatches([Source(data, 4)], narrow, AugmentConfig(), 0)[0]
    assert batch.images.sizes_hw.min() == 32


def test_a_batch_holds_what_is_wanted_and_no_more(tmp_path):
    points = np.array([[5, 6, 2], [7, 8, 1]], np.float32)
    values = np.full((48, 64), 7, np.uint8)
    rows = [
        record(0, [thing(0, (4, 6, 30, 28), 1, keypoints=points, loss_weight=0.5)], semantic=grey_png(values)),
        record(1, [thing(1, (4, 6, 30, 28)), thing(2, (2, 2, 40, 40), crowd=True)]),
    ]
    made = tiny_shards.write_dataset(tmp_path, [rows], semantic_classes=32)
    picture, same = PictureConfig(short_edge_px=48, long_edge_px=64), AugmentConfig(flip=0.0)
    plain = TrainBatches([Source(made, 2)], picture, same, 0)[0]
    assert plain.targets[5:] == (None, None, None, None)
    wanted = Wanted(keypoints=3, semantic=32, ignore=True, weights=True)
    batch = TrainBatches([Source(made, 2)], picture, same, 0, wanted=wanted)[0]
    first = batch.image_ids.tolist().index(0)
    _, _, valid, _, _, keypoints, semantic, ignore, weights = batch.targets
    assert valid.sum(1).tolist() == [1, 1]
    assert (keypoints.shape, keypoints.dtype) == ((2, 8, 3, 3), torch.float32)
    assert keypoints[first, 0].tolist() == [[5.5, 6.5, 2], [7.5, 8.5, 1], [0, 0, 0]]
    assert not keypoints[1 - first].any()
    assert (semantic.shape, semantic.dtype) == ((2, 64, 64), torch.uint8)
    assert (semantic[first, :48].unique().tolist(), semantic[first, 48:].unique().tolist()) == ([7], [255])
    assert semantic[1 - first].unique().tolist() == [255]
    assert ignore.sum(1).tolist() == [first, 1 - first]
    assert batch.targets.boxes[1 - first, 1].tolist() == [2, 2, 40, 40]
    assert not (ignore & valid).any()
    assert (weights[first, 0], weights[1 - first, 0], weights.sum()) == (0.5, 1.0, 1.5)


def test_a_branch_without_labels_is_refused(data):
    with pytest.raises(ValueError, match=r"learns 1 keypoints, the classes of .* have 2"):
        TrainBatches([Source(data, 2)], PICTURE, AugmentConfig(), 0, wanted=Wanted(keypoints=1))
    with pytest.raises(
        ValueError, match=r"learns 32 semantic classes, the maps of .* have none: prepare the data with"
    ):
        TrainBatches([Source(data, 2)], PICTURE, AugmentConfig(), 0, wanted=Wanted(semantic=32))


def test_large_scale_jitter_gives_one_padded_size(data):
    jittered = TrainBatches([Source(data, 4)], PICTURE, AugmentConfig(jitter=(0.1, 2.0), crop_px=96), 0)
    assert {tuple(jittered[step].images.pixels.shape) for step in range(8)} == {(4, 3, 96, 96)}


def test_a_picture_that_cannot_be_decoded_is_named_with_what_to_do(tmp_path):
    cut = record(2)
    rows = [record(1), dataclasses.replace(cut, image=cut.image[:-40])]  # what a check of headers lets pass
    data = tiny_shards.write_dataset(tmp_path / "data", [rows])
    match = r"record 1 \(2\.jpg\) of .*/data cannot be decoded \(corrupt: .*: prepare the data again without --no-full"
    with pytest.raises(LoadingError, match=match):
        batches(data, share=2)[0]


def test_pictures_of_any_accepted_size_are_loaded(tmp_path, monkeypatch):
    whole = grey_png(np.zeros((48, 64), np.uint8))
    made = record(1, [thing(1, (4, 6, 30, 28))], image=whole, semantic=whole)
    data = tiny_shards.write_dataset(tmp_path / "data", [[made]], semantic_classes=1)
    for function in (decode.decode_rgb, decode.decode_rgb_fast, decode.decode_map):
        monkeypatch.setattr(function, "__defaults__", (1000,))  # less than this picture has
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    check_map(whole, 48, 64, 1)
    with pytest.raises(decode.DecodeError, match="the limit is 1000"):
        decode.decode_map(whole)
    batch = TrainBatches([Source(data, 1)], PICTURE, AugmentConfig(), 0, wanted=Wanted(semantic=1))[0]
    assert batch.targets.valid.sum() == 1

"""Pictures and their objects move together: each law is checked on pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.config import PictureConfig
from pipelines import masks
from pipelines.geometry import AugmentConfig, draw_placement
from pipelines.transforms import Wanted, mirrored, picture_tensor, transform
from tests.pipelines.tiny_pictures import grey_png, png
from tests.pipelines.tiny_shards import record, thing

SAME = PictureConfig(short_edge_px=40, long_edge_px=60)
KEPT, FLIPPED = AugmentConfig(flip=0.0), AugmentConfig(flip=1.0)
BOX = (5, 8, 26, 31)
L_SHAPE = np.array([5, 8, 26, 8, 26, 15, 14, 15, 14, 31, 5, 31], np.float64)


def rng(seed=0):
    return np.random.default_rng(seed)


def painted(box=BOX, size_hw=(40, 60), orientation=None):
    pixels = np.zeros((*size_hw, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return png(pixels, orientation)


def one(**changes):
    """A record of 40 x 60 px with one object."""
    return record(1, [thing(1, BOX, **changes)], (40, 60), image=painted())


def full(crop, size_hw):
    """The whole mask of a crop."""
    mask = np.zeros(size_hw, np.uint8)
    height, width = crop.bits.shape
    mask[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.bits
    return mask


def l_bitmap(size_hw=(40, 60)):
    return masks.rasterise((L_SHAPE,), *size_hw)


def bright_box(pixels, threshold=127):
    """The tight box of what is brighter, of [3, H, W]."""
    rows, columns = np.nonzero(pixels.float().mean(0).numpy() > threshold)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_nothing_to_do_changes_nothing():
    made = transform(one(), SAME, KEPT, rng())
    torch.testing.assert_close(made.pixels, picture_tensor(one()), rtol=0, atol=0)
    assert made.boxes.tolist() == [list(BOX)]
    assert made.labels.tolist() == [0]
    np.testing.assert_array_equal(full(made.masks[0], (40, 60)), masks.rasterise(one().instances[0].polygons, 40, 60))


def test_flipping_twice_gives_picture_and_boxes_back():
    source = one()
    made = transform(source, SAME, FLIPPED, rng())
    x1, y1, x2, y2 = made.boxes[0].tolist()
    flipped = np.ascontiguousarray(made.pixels.numpy().transpose(1, 2, 0).astype(np.uint8))
    back = transform(record(1, [thing(1, (x1, y1, x2, y2))], (40, 60), image=png(flipped)), SAME, FLIPPED, rng())
    assert back.boxes.tolist() == [list(BOX)]
    torch.testing.assert_close(back.pixels, picture_tensor(source), rtol=0, atol=0)
    assert made.boxes.tolist() != [list(BOX)]


def test_a_flipped_bitmap_is_the_mirrored_one():
    source = one(polygons=None, rle=masks.encode(l_bitmap()))
    made = transform(source, SAME, FLIPPED, rng())
    np.testing.assert_array_equal(full(made.masks[0], (40, 60))[:, ::-1], l_bitmap())


def test_a_flipped_outline_is_the_mirrored_one_but_for_its_border():
    made = full(transform(one(polygons=(L_SHAPE,)), SAME, FLIPPED, rng()).masks[0], (40, 60))
    back = torch.from_numpy(made[:, ::-1].copy()).float()[None, None]
    # The rasteriser rounds borders to one side, which a mirror turns around: a pixel of difference, no more.
    grown = F.max_pool2d(back, 3, 1, 1)[0, 0].numpy()
    shrunk = -F.max_pool2d(-back, 3, 1, 1)[0, 0].numpy()
    assert (shrunk <= l_bitmap()).all()
    assert (l_bitmap() <= grown).all()
    assert abs(int(made.sum()) - int(l_bitmap().sum())) < 0.1 * l_bitmap().sum()


def test_flipping_shifts_outlines_by_no_part_of_a_pixel():
    """Over many triangles the rounding of borders cancels out."""
    shifts = []
    for seed in range(40):
        ring = np.random.default_rng(seed).uniform([2, 2], [58, 38], (3, 2)).ravel()
        source = one(polygons=(ring,))
        kept, flipped = (transform(source, SAME, how, rng()).masks[0] for how in (KEPT, FLIPPED))
        columns = [np.nonzero(full(crop, (40, 60)))[1].mean() + 0.5 for crop in (kept, flipped)]
        shifts.append(60 - columns[0] - columns[1])
    assert abs(np.mean(shifts)) < 0.25


@pytest.mark.parametrize("kind", ["polygons", "rle"])
@pytest.mark.parametrize("flip", [KEPT, FLIPPED])
@pytest.mark.parametrize("short", [20, 40, 80, 120])
def test_pixels_boxes_and_masks_scale_together(short, flip, kind):
    held = {"polygons": (L_SHAPE,)} if kind == "polygons" else {"polygons": None, "rle": masks.encode(l_bitmap())}
    picture = PictureConfig(short_edge_px=short, long_edge_px=short * 2)
    made = transform(one(**held), picture, flip, rng())
    scale = short / 40
    assert made.pixels.shape == (3, short, short * 60 // 40)
    x1, y1, x2, y2 = (scale * value for value in BOX)
    width = 60 * scale
    wanted = (width - x2, y1, width - x1, y2) if flip is FLIPPED else (x1, y1, x2, y2)
    np.testing.assert_allclose(made.boxes[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(bright_box(made.pixels), wanted, atol=1)
    mask = full(made.masks[0], made.pixels.shape[1:])
    area = int(l_bitmap().sum())
    perimeter = 2 * (26 - 5 + 31 - 8)
    assert abs(mask.sum() - area * scale**2) <= perimeter * scale
    rows, columns = np.nonzero(mask)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(tight, wanted, atol=1.01)
    mirrored = mask[:, ::-1] if flip is FLIPPED else mask
    # The lower right of an L is empty, wherever the L is.
    assert mirrored[int(20 * scale) :, int(17 * scale) :].sum() == 0
    assert mirrored[int(20 * scale), int(8 * scale)] == 1


def test_the_two_sides_have_scales_of_their_own():
    """Half up: 40 x 61 px become 33 x 50, not 33 x 50.3."""
    source = record(1, [thing(1, (0, 0, 61, 40))], (40, 61), image=painted((0, 0, 61, 40), (40, 61)))
    made = transform(source, PictureConfig(short_edge_px=33, long_edge_px=99), KEPT, rng())
    height, width = made.pixels.shape[1:]
    assert (height, width) == (33, 50)
    np.testing.assert_allclose(made.boxes[0], [0, 0, width, height], rtol=1e-6)
    assert full(made.masks[0], (height, width)).all()


def test_regions_that_are_no_positives_are_left_out():
    things = [
        thing(1, BOX, 1),
        thing(2, BOX, crowd=True),
        thing(3, BOX, ignore=True),
        thing(4, (3.0, 3.0, 3.9, 9.0)),  # under a pixel wide
        thing(5, (3.0, 3.0, 9.0, 3.9)),
        thing(6, (3.0, 3.0, 4.0, 4.0), 1),
    ]
    made = transform(record(1, things, (40, 60)), SAME, KEPT, rng())
    assert made.boxes.tolist() == [list(BOX), [3, 3, 4, 4]]
    assert made.labels.tolist() == [1, 1]
    assert len(made.masks) == 2
    half = PictureConfig(short_edge_px=20, long_edge_px=30)
    assert len(transform(record(1, things, (40, 60)), half, KEPT, rng()).labels) == 1


@pytest.mark.parametrize("augment", [KEPT, FLIPPED, AugmentConfig(flip=0.0, short_edges_px=(80,))])
def test_boxes_end_where_the_picture_does(augment):
    things = [thing(1, (-10, -5, 30, 20)), thing(2, (30, 20, 75, 49.5), 1), thing(3, (59.5, 0, 90, 40))]
    made = transform(record(1, things, (40, 60)), PictureConfig(short_edge_px=40, long_edge_px=160), augment, rng())
    height, width = made.pixels.shape[1:]
    wanted = np.array([[0, 0, 30, 20], [30, 20, 60, 40]]) * (height / 40)
    if augment is FLIPPED:
        wanted[:, [0, 2]] = width - wanted[:, [2, 0]]
    if augment.short_edges_px:
        assert height == 80  # and the third is a pixel wide there
        wanted = np.concatenate([wanted, [[119, 0, 120, 80]]])
    np.testing.assert_allclose(made.boxes, wanted)


def test_a_picture_without_objects_has_empty_arrays():
    made = transform(record(1, [], (40, 60)), SAME, KEPT, rng())
    assert made.boxes.shape == (0, 4)
    assert made.labels.shape == (0,)
    assert (made.boxes.dtype, made.labels.dtype, made.masks) == (np.float32, np.int64, ())


def test_an_object_without_a_mask_has_none():
    assert transform(one(polygons=None), SAME, FLIPPED, rng()).masks == (None,)


def test_a_mask_that_shrinks_to_nothing_is_an_empty_crop():
    dot = np.zeros((40, 60), np.uint8)
    dot[1, 1] = 1
    source = one(polygons=None, rle=masks.encode(dot))
    crop = transform(source, PictureConfig(short_edge_px=10, long_edge_px=15), KEPT, rng()).masks[0]
    assert crop.bits.shape == (0, 0)


@pytest.mark.parametrize("flip", [KEPT, FLIPPED])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_fit_the_upright_picture(orientation, flip):
    source = dataclasses.replace(one(), image=painted(orientation=orientation))
    made = transform(source, SAME, flip, rng())
    assert bright_box(made.pixels) == made.boxes[0].tolist()
    assert made.pixels.shape == (3, 40, 60)


def test_half_of_the_pictures_are_flipped_and_the_same_generator_does_the_same():
    source = one()
    firsts = [transform(source, SAME, AugmentConfig(), rng(seed)).boxes[0, 0] for seed in range(200)]
    flipped = sum(first != BOX[0] for first in firsts)
    assert 60 < flipped < 140  # 100 with a standard deviation of 7
    assert [transform(source, SAME, AugmentConfig(), rng(seed)).boxes[0, 0] for seed in range(20)] == firsts[:20]


def test_each_short_edge_is_drawn():
    augment = AugmentConfig(short_edges_px=(20, 30, 40))
    sides = [transform(one(), SAME, augment, rng(seed)).pixels.shape[1] for seed in range(90)]
    assert set(sides) == {20, 30, 40}
    assert min(sides.count(side) for side in (20, 30, 40)) > 10
    assert transform(one(), SAME, KEPT, rng()).pixels.shape[1] == SAME.short_edge_px


def test_an_object_that_a_crop_cuts_gets_the_box_of_the_rest_and_one_outside_is_dropped():
    things = [thing(1, BOX, polygons=(L_SHAPE,)), thing(2, (50, 30, 58, 38))]
    source = record(1, things, (40, 60), image=painted())
    seen = set()
    for seed in range(60):
        made = transform(source, SAME, AugmentConfig(flip=0.0, crop_px=24), rng(seed))
        window = draw_placement((40, 60), SAME, AugmentConfig(flip=0.0, crop_px=24), rng(seed)).window
        y0, x0, height, width = window
        assert made.pixels.shape == (3, height, width)
        rest = l_bitmap()[y0 : y0 + height, x0 : x0 + width]
        kept = [number for number, mask in enumerate(made.masks) if full(mask, (height, width)).sum()]
        assert kept == list(range(len(made.masks)))  # none is empty
        seen.add(len(kept))
        if rest.any() and made.labels.size and (full(made.masks[0], rest.shape) == rest).all():
            rows, columns = np.nonzero(rest)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(made.boxes[0], tight, atol=1)
    assert {0, 1} <= seen


@pytest.mark.parametrize("kind", ["polygons", "rle"])
def test_a_crop_of_the_mask_is_the_mask_of_the_crop(kind):
    held = {"polygons": (L_SHAPE,)} if kind == "polygons" else {"polygons": None, "rle": masks.encode(l_bitmap())}
    for seed in range(10):
        augment = AugmentConfig(flip=0.0, crop_px=30)
        made = transform(one(**held), SAME, augment, rng(seed))
        y0, x0, height, width = draw_placement((40, 60), SAME, augment, rng(seed)).window
        wanted = l_bitmap()[y0 : y0 + height, x0 : x0 + width]
        if not wanted.any():
            assert made.masks == ()
            continue
        np.testing.assert_array_equal(full(made.masks[0], (height, width)), wanted)


def test_what_is_not_wanted_is_not_loaded():
    source = one(keypoints=np.array([[6, 9, 2]], np.float32))
    source = dataclasses.replace(source, semantic=b"not even looked at")
    made = transform(source, SAME, KEPT, rng())
    assert (made.keypoints, made.semantic, made.ignored, made.weights) == (None, None, None, None)


def test_keypoints_move_with_the_picture_and_swap_sides_in_a_mirror():
    names = ("nose", "left_eye", "right_eye", "tail")
    points = np.array([[10, 12, 2], [8, 9, 1], [20, 9, 2], [0, 0, 0]], np.float32)
    source, wanted = one(keypoints=points), Wanted(keypoints=5)
    swaps = [mirrored(names)]
    assert swaps == [(0, 2, 1, 3)]
    twice = PictureConfig(short_edge_px=80, long_edge_px=120)
    made = transform(source, twice, KEPT, rng(), wanted, swaps)
    assert made.keypoints.shape == (1, 5, 3)
    np.testing.assert_allclose(made.keypoints[0, :3], [[21, 25, 2], [17, 19, 1], [41, 19, 2]])
    assert not made.keypoints[0, 3:].any()
    flipped = transform(source, twice, FLIPPED, rng(), wanted, swaps)
    np.testing.assert_allclose(flipped.keypoints[0, :3], [[99, 25, 2], [79, 19, 2], [103, 19, 1]])
    assert not transform(one(), SAME, KEPT, rng(), wanted, swaps).keypoints.any()


def test_keypoints_that_a_crop_cuts_off_are_unlabelled():
    points = np.array([[k, k, 2] for k in range(5, 31, 5)], np.float32)
    source, augment = one(keypoints=points), AugmentConfig(flip=0.0, crop_px=20)
    for seed in range(20):
        made = transform(source, SAME, augment, rng(seed), Wanted(keypoints=6), [range(6)]).keypoints
        y0, x0, height, width = draw_placement((40, 60), SAME, augment, rng(seed)).window
        if not len(made):
            continue
        inside = (points[:, 0] + 0.5 - x0 <= width) & (points[:, 0] + 0.5 >= x0)
        inside &= (points[:, 1] + 0.5 - y0 <= height) & (points[:, 1] + 0.5 >= y0)
        np.testing.assert_array_equal(made[0, :, 2] == 2, inside)
        np.testing.assert_allclose(made[0, inside, :2], points[inside, :2] + 0.5 - [x0, y0])


def test_a_semantic_map_is_placed_as_the_masks_are():
    values = np.where(l_bitmap() == 1, 17, 3).astype(np.uint8)
    held = dataclasses.replace(one(polygons=None, rle=masks.encode(l_bitmap())), semantic=grey_png(values))
    for augment in (KEPT, FLIPPED, AugmentConfig(crop_px=24), AugmentConfig(jitter=(0.5, 2.0), crop_px=50)):
        for seed in range(5):
            made = transform(held, SAME, augment, rng(seed), Wanted(semantic=32))
            assert made.semantic.shape == made.pixels.shape[1:]
            if made.masks:
                np.testing.assert_array_equal(made.semantic == 17, full(made.masks[0], made.semantic.shape) == 1)
            assert set(np.unique(made.semantic)) <= {3, 17}
    unknown = transform(one(), SAME, KEPT, rng(), Wanted(semantic=32)).semantic
    assert (unknown.shape, set(unknown.ravel())) == ((40, 60), {255})


def test_ignored_regions_and_weights_come_where_they_are_wanted():
    things = [thing(1, BOX, loss_weight=0.25), thing(2, (1, 2, 90, 9), crowd=True), thing(3, (1, 1, 9, 9), ignore=True)]
    things.append(thing(4, (-9, -9, 0.4, 9), ignore=True))  # under a pixel is left of it
    source = record(1, things, (40, 60))
    made = transform(source, SAME, KEPT, rng(), Wanted(ignore=True, weights=True))
    assert made.boxes.tolist() == [list(BOX)]
    assert made.ignored.tolist() == [[1, 2, 60, 9], [1, 1, 9, 9]]
    assert made.weights.tolist() == [0.25]


def test_colours_change_and_boxes_do_not():
    plain = transform(one(), SAME, KEPT, rng())
    made = transform(one(), SAME, dataclasses.replace(KEPT, colour=0.4), rng())
    assert not torch.equal(made.pixels, plain.pixels)
    np.testing.assert_array_equal(made.boxes, plain.boxes)

"""Polygons become the pixels that pycocotools gives them, in bitmaps that are tight."""

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from model.ops.masks import polygon_crops


def drawn(rings, height, width):
    """The whole mask of an object, by pycocotools; rings float64 [n, 2]."""
    parts = coco_mask.frPyObjects([ring.ravel().copy() for ring in rings], height, width)
    return coco_mask.decode(coco_mask.merge(parts))


def inputs(objects):
    """The operator's points and ends of objects, each a list of rings."""
    rings = [ring for rings in objects for ring in rings]
    points = torch.from_numpy(np.concatenate([np.zeros((0, 2)), *rings]))
    ends = [np.cumsum([len(one) for one in of], dtype=np.int64).reshape(-1) for of in (rings, objects)]
    return points, torch.from_numpy(ends[0]), torch.from_numpy(ends[1])


def check(objects, height, width):
    bits, extents = polygon_crops(*inputs(objects), height, width)
    assert (bits.dtype, extents.dtype, extents.shape) == (torch.uint8, torch.int64, (len(objects), 4))
    start = 0
    for rings, (y0, x0, h, w) in zip(objects, extents.tolist(), strict=True):
        found = np.zeros((height, width), np.uint8)
        tight = bits[start : start + h * w].reshape(h, w).numpy()
        found[y0 : y0 + h, x0 : x0 + w] = tight
        start += h * w
        np.testing.assert_array_equal(found, drawn(rings, height, width))
        if tight.size:
            assert all(edge.any() for edge in (tight[0], tight[-1], tight[:, 0], tight[:, -1]))
        else:
            assert (y0, x0, h, w) == (0, 0, 0, 0)
    assert start == len(bits)


def random_ring(rng, height, width):
    """Corners inside, on and outside the picture; on pixels, on their fifths, between, or some twice."""
    corners = rng.uniform(-0.6, 1.6, (rng.integers(3, 30), 2)) * [width, height]
    kind = rng.integers(0, 5)
    if kind == 1:
        return np.round(corners)
    if kind == 2:
        return np.round(corners * 5) / 5 + rng.choice([0, 0.1, 0.5])
    if kind == 3:
        return corners[rng.integers(0, len(corners), len(corners))]
    if kind == 4:
        return corners.mean(0) + (corners - corners.mean(0)) * rng.uniform(0, 0.05)
    return corners


@pytest.mark.parametrize("seed", range(8))
def test_random_polygons_are_drawn_as_pycocotools_draws_them(seed):
    rng = np.random.default_rng(seed)
    for _ in range(150):
        height, width = rng.integers(1, 120, 2).tolist()
        rings = [
            [random_ring(rng, height, width) for _ in range(rng.integers(1, 4))] for _ in range(rng.integers(0, 4))
        ]
        check(rings, height, width)


@pytest.mark.parametrize(
    "ring",
    [
        [[0, 0], [9, 0], [9, 7], [0, 7]],
        [[-5, -5], [50, -5], [50, 50], [-5, 50]],  # all of the picture
        [[20, 20], [30, 20], [30, 30]],  # nothing of it
        [[4, 1], [4, 6], [4, 3]],  # no area
        [[3, 3], [3, 3], [3, 3]],
        [[0, 0], [8, 6], [0, 6], [8, 0]],  # crosses itself
        [[0, 0], [8, 0], [8, 6], [0, 6], [0, 0], [8, 0], [8, 6], [0, 6]],  # twice around: outside again
        [[1.5, -1e6], [6.5, -1e6], [4, 1e6]],
    ],
)
def test_odd_polygons(ring):
    check([[np.array(ring, np.float64)]], 8, 10)


def test_rings_of_an_object_are_joined_and_objects_are_apart():
    left, right = (np.array([[x, 1], [x + 4, 1], [x + 4, 5], [x, 5]], np.float64) for x in (0, 2))
    check([[left, right], [left], [right, left, right]], 8, 10)
    bits, extents = polygon_crops(*inputs([[left, right]]), 8, 10)
    assert int(bits.sum()) == extents[0, 2] * extents[0, 3]  # overlapping parts do not cancel out


def test_nothing_in_nothing_out():
    bits, extents = polygon_crops(*inputs([]), 8, 10)
    assert (bits.shape, extents.shape) == ((0,), (0, 4))
    bits, extents = polygon_crops(*inputs([[]]), 8, 10)  # an object without rings
    assert (len(bits), extents.tolist()) == (0, [[0, 0, 0, 0]])


def test_polygons_pass_opcheck():
    ring = np.array([[1, 1], [6, 2], [3, 7]], np.float64)
    torch.library.opcheck(torch.ops.maskray.polygon_crops.default, (*inputs([[ring], [ring, ring + 1]]), 8, 10))


def test_objects_that_no_memory_holds_are_refused():
    side = 2**26 - 1
    whole = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float64)
    with pytest.raises(ValueError, match=r"more than 2\^40 pixels"):
        polygon_crops(*inputs([[whole]] * 5), side, side)


RING = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
ENDS, ONE = torch.tensor([3]), torch.tensor([1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((RING.float(), ENDS, ONE, 8, 8), r"got corners torch.float32 \[3, 2\], wanted float64"),
        ((RING[:, :1], ENDS, ONE, 8, 8), r"wanted float64 \[P, 2\]"),
        ((RING, ENDS.int(), ONE, 8, 8), r"ring_ends torch.int32 \[1\], wanted int64"),
        ((RING, ENDS, ONE[None], 8, 8), r"object_ends torch.int64 \[1, 1\]"),
        ((RING, ENDS, ONE, 0, 8), "a picture of 0 x 8 pixels, wanted 1 to"),
        ((RING, torch.tensor([4]), ONE, 8, 8), "ring 0 ends at 4 of 3 corners, wanted 0..3"),
        ((RING, torch.tensor([3, 2]), torch.tensor([2]), 8, 8), "ring 1 ends at 2 of 3 corners, wanted 3..3"),
        ((RING, torch.tensor([2]), ONE, 8, 8), "the last ring ends at 2, there are 3 corners"),
        ((RING, ENDS, torch.tensor([-1]), 8, 8), "object 0 ends at -1 of 1 rings"),
        ((RING * math.nan, ENDS, ONE, 8, 8), r"corner 0 is \(-?nan, -?nan\), wanted finite numbers"),
        ((RING + 1e9, ENDS, ONE, 8, 8), r"corner 0 is \(1e\+09, 1e\+09\), wanted finite numbers below"),
    ],
)
def test_wrong_input_is_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        polygon_crops(*arguments)

"""Outlines and run lengths give the mask back, through pycocotools."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pipelines.outlines import tight_box_xywh, to_polygons, to_run_lengths, to_traces


def filled(rows):
    return np.array([[character == "#" for character in row] for row in rows], np.uint8)


def rasterise(polygons, mask):
    if not polygons:
        return np.zeros_like(mask)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)))


MASKS = [
    pytest.param(filled(["....", "....", "...."]), 0, id="empty"),
    pytest.param(filled(["####", "####", "####"]), 1, id="full"),
    pytest.param(filled(["....", ".#..", "...."]), 1, id="one-pixel"),
    pytest.param(filled(["#..#", "....", "#..#"]), 4, id="corners"),
    pytest.param(filled(["#...", ".#..", "..#."]), 3, id="touching-at-corners"),
    pytest.param(filled(["###", "#.#", "###"]), 2, id="ring"),
    pytest.param(filled(["#####", "#.#.#", "#####"]), 2, id="two-holes"),
    pytest.param(filled(["#####", "#...#", "#.#.#", "#...#", "#####"]), 3, id="island-in-a-hole"),
    pytest.param(filled(["###.", "#.#.", ".###"]), 1, id="loop-closed-at-a-corner"),
]


@pytest.mark.parametrize(("mask", "num_parts"), MASKS)
def test_polygons_rasterise_to_the_mask(mask, num_parts):
    polygons = to_polygons(mask)
    np.testing.assert_array_equal(rasterise(polygons, mask), mask)
    assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in polygons)
    assert len(polygons) == num_parts


@pytest.mark.parametrize("seed", range(40))
def test_polygons_rasterise_to_any_mask(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((rng.integers(1, 14), rng.integers(1, 14))) < rng.uniform(0.1, 0.9)).astype(np.uint8)
    np.testing.assert_array_equal(rasterise(to_polygons(mask), mask), mask)


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((rng.integers(1, 14), rng.integers(1, 14))) < 0.5).astype(np.uint8)
    counts = to_run_lengths(mask)
    assert sum(counts) == mask.size
    packed = coco_mask.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)
    assert packed == coco_mask.encode(np.asfortranarray(mask))


def test_the_box_is_tight():
    assert tight_box_xywh(filled(["....", ".##.", "..#."])) == (1.0, 1.0, 2.0, 2.0)


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="at least one pixel"):
        tight_box_xywh(np.zeros((3, 4), np.uint8))


@pytest.mark.parametrize("function", [to_polygons, to_run_lengths, tight_box_xywh])
def test_one_mask_at_a_time(function):
    with pytest.raises(ValueError, match=r"array \[H, W\], got shape \[2, 3, 4\]"):
        function(np.zeros((2, 3, 4), np.uint8))


def grown(seed, allowed, diagonally):
    """All pixels that can be reached from `seed` over allowed ones."""
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if diagonally or not (dy and dx)]
    while True:
        padded = np.pad(seed, 1)
        shifted = [padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx] for dy, dx in steps]
        larger = np.any(shifted, axis=0) & allowed
        if (larger == seed).all():
            return seed
        seed = larger


def blobs(seed):
    """Overlapping rectangles with holes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 40), np.uint8)
    for _ in range(5):
        y, x = rng.integers(0, 26), rng.integers(0, 36)
        mask[y : y + rng.integers(1, 14), x : x + rng.integers(1, 14)] = 1
    return mask * (rng.random(mask.shape) < 0.9)


@pytest.mark.parametrize("mask", [*(p.values[0] for p in MASKS), *map(blobs, range(20))])
def test_traces_drawn_by_pillow_give_the_parts_back_with_holes_filled(mask):
    areas, left = [], mask.astype(bool)
    for trace in to_traces(mask):
        drawn = Image.new("1", mask.shape[::-1])
        ImageDraw.Draw(drawn).polygon(trace, fill=1) if len(trace) > 1 else drawn.putpixel(trace[0], 1)
        seed = np.zeros(mask.shape, bool)
        seed[trace[0][1], trace[0][0]] = True
        part = grown(seed, mask > 0, diagonally=False)
        border = np.pad(np.zeros(mask.shape, bool), 1, constant_values=True)
        filled_part = ~grown(border, ~np.pad(part, 1), diagonally=True)[1:-1, 1:-1]
        np.testing.assert_array_equal(np.array(drawn), filled_part)
        areas.append(int(filled_part.sum()))
        left &= ~part
    assert not left.any()
    assert areas == sorted(areas, reverse=True)

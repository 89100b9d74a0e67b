import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines import masks, polygons
from tests.oracles import run_lengths

DATA = os.environ.get("MASKRAY_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="MASKRAY_TEST_DATA is not set")


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = rng.integers(1, 30, 2)
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        yield np.kron(mask, np.ones((5, 3), np.uint8)) if number % 3 == 0 else mask


def test_strings_bitmaps_and_crops_equal_pycocotools():
    for mask in random_masks(300):
        counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
        assert masks.encode(mask) == counts
        assert masks.validate_rle(counts, *mask.shape) == counts
        assert masks.validate_rle(masks.parse_counts(counts).tolist(), *mask.shape) == counts
        np.testing.assert_array_equal(masks.rasterise(counts, *mask.shape), mask)
        assert masks.area(counts) == mask.sum()
        for y0, x0, bits in (masks.crop(mask), masks.crop_rle(counts, *mask.shape)):
            full = np.zeros_like(mask)
            full[y0 : y0 + bits.shape[0], x0 : x0 + bits.shape[1]] = bits
            np.testing.assert_array_equal(full, mask)
            assert not mask.any() or (bits.any(0)[[0, -1]].all() and bits.any(1)[[0, -1]].all())


def test_an_empty_mask_has_an_empty_crop():
    assert masks.crop(np.zeros((3, 4), np.uint8))[2].shape == (0, 0)
    assert masks.crop_rle(masks.encode(np.zeros((3, 4), np.uint8)), 3, 4)[2].shape == (0, 0)


def mutated(rng, text):
    kind = rng.integers(6)
    if kind == 5:  # the sum still fits, so that only the runs themselves can be wrong
        runs = masks.parse_counts(text)
        give, take, size = rng.integers(runs.size), rng.integers(runs.size), int(rng.integers(1, 5))
        runs[give] -= size
        runs[take] += size
        return masks.format_counts(runs)
    at = int(rng.integers(len(text)))
    if kind == 0:
        return text[:at] + bytes([int(rng.integers(256))]) + text[at + 1 :]
    if kind == 1:
        return text[:at]
    if kind == 2:
        return text[:at] + bytes(rng.integers(48, 112, int(rng.integers(1, 9)), dtype=np.uint8)) + text[at:]
    if kind == 3:
        return text[:at] + text[at + 1 :]
    return text + text[at:]


def test_mutated_strings_are_refused_or_mean_what_the_oracle_says():
    rng = np.random.default_rng(7)
    sources = [(masks.encode(m), m.shape) for m in random_masks(100, seed=3)]
    accepted = 0
    for number in range(1000):
        text, (height, width) = sources[number % len(sources)]
        text = mutated(rng, text)
        truth = run_lengths.paint(run_lengths.parse(text), height, width)
        try:
            counts = masks.validate_rle(text, height, width)
        except masks.MaskError:
            # Refusing more than the oracle is allowed for over-long numbers alone, which no encoder writes.
            assert truth is None or masks.encode(truth) != text
            continue
        accepted += 1
        assert truth is not None
        np.testing.assert_array_equal(masks.rasterise(counts, height, width), truth)
        assert counts == masks.encode(truth)
    assert accepted > 10


def test_mutated_run_lists_are_refused_or_mean_what_the_oracle_says():
    rng = np.random.default_rng(11)
    for mask in random_masks(300, seed=5):
        runs = masks.parse_counts(masks.encode(mask)).tolist()
        at = int(rng.integers(len(runs)))
        runs[at : at + int(rng.integers(2))] = [
            [int(rng.integers(-5, 40))],
            [runs[at] - 1, 0, 1] if runs[at] else [0],
            [float("nan")],
            [10**400],
        ][int(rng.integers(4))]
        usable = all(isinstance(r, int) and abs(r) < 10**9 for r in runs)
        truth = run_lengths.paint(runs, *mask.shape) if usable else None
        if truth is None:
            with pytest.raises(masks.MaskError, match="run"):
                masks.validate_rle(runs, *mask.shape)
        else:
            np.testing.assert_array_equal(masks.rasterise(masks.validate_rle(runs, *mask.shape), *mask.shape), truth)


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        pytest.param("", "empty", id="empty-string"),
        pytest.param([], "empty", id="no-runs"),
        pytest.param(None, "wanted a compressed string or a list", id="none"),
        pytest.param({}, "wanted a compressed string or a list", id="dict"),
        pytest.param("\x7f", "byte 127", id="alphabet"),
        pytest.param("ä", "not ASCII", id="not-ascii"),
        pytest.param("P", "inside a number", id="unfinished"),
        pytest.param("PPPPPPPP0", "groups", id="huge-number"),
        pytest.param("\\00", "not canonical", id="over-long"),
        pytest.param([13], "wanted 0 to 12", id="too-large"),
        pytest.param([4, 4], "sum to 8, wanted 3 x 4 = 12", id="short"),
        pytest.param([4, True, 7], "wanted an integer", id="bool"),
        pytest.param([4.0, 8], "wanted an integer", id="float"),
        pytest.param(["4", 8], "wanted an integer", id="string"),
        pytest.param([10**400], "60 digits", id="enormous"),
    ],
)
def test_bad_run_lengths_say_what_is_wrong(counts, match):
    with pytest.raises(masks.MaskError, match=match):
        masks.validate_rle(counts, 3, 4)


def test_empty_runs_inside_are_merged():
    assert masks.validate_rle([3, 0, 2, 7], 3, 4) == masks.validate_rle([5, 7], 3, 4)
    assert masks.validate_rle([0, 2, 0, 10], 3, 4) == masks.validate_rle([0, 12], 3, 4)


@pytest.mark.parametrize(
    ("rings", "match"),
    [
        pytest.param([], "wanted a list of rings", id="empty"),
        pytest.param("abc", "wanted a list of rings", id="string"),
        pytest.param([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "a ring is 1.0", id="flat"),
        pytest.param([[1, 2, 3, 4]], "three points", id="two-points"),
        pytest.param([[1, 2, 3, 4, 5, 6, 7]], "even number", id="odd"),
        pytest.param([[1, 2, 3, 4, 5, float("nan")]], "NaN", id="nan"),
        pytest.param([[1, 2, 3, 4, 5, float("inf")]], "infinity", id="inf"),
        pytest.param([[1, 2, 3, 4, 5, "6"]], "not numbers", id="string-inside"),
        pytest.param([[1, 2, 3, 4, 5, None]], "not numbers", id="none-inside"),
        pytest.param([[1, 2, 3, 4, 5, 10**400]], "64 bits", id="enormous"),
        pytest.param([[1, 2, 3, 4, 5, 1e8]], "y reaches from", id="far"),
        pytest.param([[-1e12, 2, 3, 4, 5, 6]], "x reaches from", id="far-left"),
        pytest.param([[0.0, 0.0] * 100_001], "more than 100000 vertices", id="vertices"),
    ],
)
def test_bad_polygons_say_what_is_wrong(rings, match):
    with pytest.raises(masks.MaskError, match=match):
        polygons.validate_polygons(rings, 20, 30)


def test_an_outline_that_would_take_gigabytes_is_refused():
    zigzag = [0.0, 0.0, 8000.0, 8000.0] * 3000
    with pytest.raises(masks.MaskError, match="steps of 1/5 px"):
        polygons.validate_polygons([zigzag], 8000, 8000)


def test_short_rings_are_left_out_and_polygons_equal_pycocotools():
    rng = np.random.default_rng(2)
    for _ in range(200):
        height, width = (int(v) for v in rng.integers(5, 60, 2))
        rings = [
            np.round(rng.uniform(-3, 62, 2 * int(rng.integers(3, 9))) % (2 * min(height, width)) - 2, 2).tolist()
            for _ in range(int(rng.integers(1, 4)))
        ]
        kept = polygons.validate_polygons([*rings, [1.0, 2.0]], height, width)
        assert [ring.tolist() for ring in kept] == rings
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, height, width)))
        np.testing.assert_array_equal(masks.rasterise(kept, height, width), theirs)


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (2**20, 2**20)])
def test_impossible_pictures_are_refused(size):
    with pytest.raises(masks.MaskError, match="the picture is"):
        masks.validate_rle([1], *size)


def test_counts_of_another_size_do_not_decode():
    with pytest.raises(masks.MaskError, match="do not cover 4 x 4"):
        masks.rasterise(masks.encode(np.ones((3, 4), np.uint8)), 4, 4)


@needs_data
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_real_mask_equals_pycocotools(split):
    body = json.loads((Path(DATA) / f"coco/annotations/instances_{split}2017.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in body["images"]}
    for entry in body["annotations"]:
        height, width = sizes[entry["image_id"]]
        raw = entry["segmentation"]
        theirs = coco_mask.frPyObjects(raw, height, width)
        theirs = coco_mask.decode(coco_mask.merge(theirs) if isinstance(theirs, list) else theirs)
        ours = (
            polygons.validate_polygons(raw, height, width)
            if isinstance(raw, list)
            else masks.validate_rle(raw["counts"], height, width)
        )
        np.testing.assert_array_equal(masks.rasterise(ours, height, width), theirs)

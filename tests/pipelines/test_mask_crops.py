"""Masks of placed pictures: polygons by the operator, run lengths in a window, both equal to whole bitmaps."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipelines import masks
from pipelines.geometry import Placement
from pipelines.mask_crops import crop_polygons, mask_crops
from tests.pipelines.tiny_shards import record, thing

DATA = os.environ.get("MASKRAY_TEST_DATA")


@pytest.mark.skipif(not DATA, reason="MASKRAY_TEST_DATA is not set")
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_real_outline_is_drawn_as_pycocotools_draws_it(split):
    body = json.loads((Path(DATA) / f"coco/annotations/instances_{split}2017.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in body["images"]}
    count = 0
    for entry in body["annotations"]:
        if entry["iscrowd"]:
            continue
        for scale in (1.0, 1.6657):
            size = tuple(int(scale * side) for side in sizes[entry["image_id"]])
            rings = [scale * np.array(ring, np.float64) for ring in entry["segmentation"]]
            points = np.concatenate(rings).reshape(-1, 2)
            (found,) = crop_polygons(points, [ring.size // 2 for ring in rings], [len(rings)], size)
            y0, x0, bits = masks.crop(masks.rasterise(rings, *size))
            assert (found.y0, found.x0) == (y0, x0)
            np.testing.assert_array_equal(found.bits, bits)
            count += 1
    assert count > 100


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("resized", "window"),
    [
        ((40, 60), (0, 0, 40, 60)),
        ((80, 120), (0, 0, 80, 120)),
        ((17, 26), (0, 0, 17, 26)),
        ((93, 131), (20, 31, 50, 64)),
        ((31, 44), (5, 9, 20, 20)),
    ],
)
def test_run_lengths_are_placed_as_whole_bitmaps_are(resized, window, flip):
    placement = Placement((40, 60), resized, window, flip)
    rng = np.random.default_rng(0)
    things, wanted = [], []
    for number in range(30):
        bitmap = np.zeros((40, 60), np.uint8)
        y, x = np.sort(rng.integers(0, 41, 2)), np.sort(rng.integers(0, 61, 2))
        bitmap[y[0] : y[1], x[0] : x[1]] = rng.random((y[1] - y[0], x[1] - x[0])) < rng.choice([0.01, 0.5, 1.0])
        things.append(thing(number, (0, 0, 60, 40), polygons=None, rle=masks.encode(bitmap)))
        wanted.append(masks.crop(placement.values(bitmap)))
    found = mask_crops(things, record(1, things, (40, 60)), placement)
    for crop, (y0, x0, bits) in zip(found, wanted, strict=True):
        assert (crop.y0, crop.x0) == (y0, x0)
        np.testing.assert_array_equal(crop.bits, bits)


def test_every_object_gets_its_own_mask_whatever_form_it_has():
    ring = np.array([5, 8, 26, 8, 26, 15], np.float64)
    runs = masks.encode(masks.rasterise((ring + 3,), 40, 60))
    things = [
        thing(1, (5, 8, 26, 15), polygons=None),
        thing(2, (5, 8, 26, 15), polygons=(ring, ring + 20)),
        thing(3, (8, 11, 29, 18), polygons=None, rle=runs),
        thing(4, (15, 18, 36, 25), polygons=(ring + 10,)),
    ]
    none, *found = mask_crops(things, record(1, things, (40, 60)), Placement((40, 60), (40, 60), (0, 0, 40, 60), False))
    assert none is None
    wanted = [(ring, ring + 20), (ring + 3,), (ring + 10,)]
    for crop, rings in zip(found, wanted, strict=True):
        y0, x0, bits = masks.crop(masks.rasterise(rings, 40, 60))
        assert (crop.y0, crop.x0) == (y0, x0)
        np.testing.assert_array_equal(crop.bits, bits)

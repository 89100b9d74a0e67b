"""The drawn shapes are where and what they should be."""

import math

import numpy as np
import pytest

from pipelines.shape_drawing import NAMES, background, lighting, shape

# Area in units of the circle's radius squared, before the squeeze of 0.8 to 1.
AREAS = {
    "disc": math.pi,
    "ring": math.pi * (1.0 - 0.56**2),
    "triangle": 3 * math.sqrt(3) / 4,
    "square": 2.0,
    "star": 5 * 0.42 * math.sin(math.pi / 5),
}


@pytest.mark.parametrize("name", NAMES)
def test_area_and_place(name):
    drawn = shape(np.random.default_rng(1), name, 0.3, (96, 112), (60.0, 40.0, 30.0))
    assert 0.78 * AREAS[name] <= drawn.mask.sum() / 30.0**2 <= 1.02 * AREAS[name]
    ys, xs = np.nonzero(drawn.mask)
    assert np.hypot(xs + 0.5 - 60.0, ys + 0.5 - 40.0).max() <= 30.5
    assert drawn.rgb.shape == (96, 112, 3)


def test_the_ring_has_a_hole():
    drawn = shape(np.random.default_rng(0), "ring", 0.3, (64, 64), (32.0, 32.0, 20.0))
    assert not drawn.mask[32, 32]


def test_the_hue_is_the_one_asked_for():
    red = shape(np.random.default_rng(0), "disc", 0.0, (64, 64), (32.0, 32.0, 20.0))
    assert red.rgb[red.mask].mean(axis=0).argmax() == 0


def test_backgrounds_and_light_stay_in_range():
    rng = np.random.default_rng(0)
    picture = background(rng, 40, 30)
    assert picture.shape == (40, 30, 3)
    assert 0.0 <= picture.min() <= picture.max() <= 1.0
    light = lighting(rng, 40, 30)
    assert light.shape == (40, 30)
    assert light.min() > 0.0


def test_an_unknown_shape_is_named():
    with pytest.raises(ValueError, match="no shape 'cube': choose one of disc, ring, triangle, square, star"):
        shape(np.random.default_rng(0), "cube", 0.0, (8, 8), (4.0, 4.0, 2.0))

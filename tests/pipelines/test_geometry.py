"""Placements: one law for points, boxes, pixels and maps."""

import numpy as np
import pytest

from model.config import PictureConfig
from pipelines.geometry import AugmentConfig, Placement, draw_placement, jitter_colour, largest_picture

PICTURE = PictureConfig(short_edge_px=40, long_edge_px=60)
LSJ = AugmentConfig(jitter=(0.1, 2.0), crop_px=64)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("flip", [False, True])
def test_a_pixel_a_point_and_a_value_go_to_the_same_place(flip):
    """Enlarged twice, a bright pixel's centre is where its point says."""
    placement = Placement((20, 30), (40, 60), (6, 8, 25, 31), flip)
    for y, x in ((5, 7), (9, 12), (14, 18)):
        pixels, values = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
        pixels[y, x], values[y, x] = 255, 9
        wanted = placement.points(np.array([[x + 0.5, y + 0.5]]))[0]
        for placed in (placement.pixels(pixels)[..., 0], placement.values(values)):
            assert placed.shape == (25, 31)
            rows, columns = np.nonzero(placed == placed.max())
            np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], wanted, atol=1e-6)


def test_the_window_is_inside_and_every_place_is_drawn():
    source, augment = (40, 60), AugmentConfig(crop_px=30)
    windows = {draw_placement(source, PICTURE, augment, rng(seed)).window for seed in range(2000)}
    assert {window[2:] for window in windows} == {(30, 30)}
    assert {window[0] for window in windows} == set(range(11))
    assert {window[1] for window in windows} == set(range(31))


def test_large_scale_jitter_draws_the_longer_side_and_never_more_than_the_crop():
    made = [draw_placement((40, 60), PICTURE, LSJ, rng(seed)) for seed in range(300)]
    longer = [max(p.resized_hw) for p in made]
    assert 6 <= min(longer) < 10
    assert 120 < max(longer) <= 128
    assert {max(p.size_hw) <= 64 for p in made} == {True}
    assert all(p.size_hw == tuple(min(64, side) for side in p.resized_hw) for p in made)
    assert largest_picture(PICTURE, LSJ).long_edge_px == 64


def test_a_very_narrow_picture_keeps_a_pixel():
    for seed in range(20):
        assert min(draw_placement((1000, 3), PICTURE, LSJ, rng(seed)).resized_hw) >= 1


def test_ranges_draw_both_edges_independently():
    picture = PictureConfig(short_edge_px=900, long_edge_px=1600)
    augment = AugmentConfig(short_edges_px=(720, 1080), long_edges_px=(1280, 1920), ranges=True, flip=0)
    heights = [draw_placement((900, 1600), picture, augment, rng(seed)).resized_hw[0] for seed in range(500)]
    assert 720 <= min(heights) < 730
    assert 1060 < max(heights) <= 1080
    assert len(set(heights)) > 200
    shape = draw_placement((900, 1600), picture, AugmentConfig(short_edges_px=(1080,), long_edges_px=(1280,)), rng())
    assert shape.resized_hw == (720, 1280)  # the longer side's limit rules
    assert largest_picture(picture, augment) == PictureConfig(short_edge_px=1080, long_edge_px=1920)


def test_colours_change_by_no_more_than_asked_and_not_at_all_by_nothing():
    pixels = rng().integers(0, 256, (8, 9, 3), np.uint8)
    np.testing.assert_array_equal(jitter_colour(pixels, 0.0, rng()), pixels)
    made = [jitter_colour(pixels, 0.4, rng(seed)) for seed in range(20)]
    assert {p.dtype for p in made} == {pixels.dtype}
    means = [float(p.mean() / pixels.mean()) for p in made]
    assert 0.55 < min(means) < 0.8
    assert 1.1 < max(means) < 1.45
    np.testing.assert_array_equal(made[3], jitter_colour(pixels, 0.4, rng(3)))
    grey = np.full((8, 9, 3), 100, np.uint8)
    assert len(np.unique(jitter_colour(grey, 0.4, rng(1)))) == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"flip": -0.1}, r"augment\.flip must be in 0\.\.1, got -0\.1"),
        ({"flip": 1.1}, r"augment\.flip must be in 0\.\.1, got 1\.1"),
        ({"short_edges_px": (800, 0)}, r"augment\.short_edges_px must be > 0, got \(800, 0\)"),
        ({"long_edges_px": (0,)}, r"augment\.long_edges_px must be > 0, got \(0,\)"),
        ({"short_edges_px": (800,), "long_edges_px": (700,)}, r"must reach every short edge \(800,\), got \(700,\)"),
        ({"jitter": (0.1,), "crop_px": 5}, r"augment\.jitter must be a least and a largest scale > 0, got \(0\.1,\)"),
        ({"jitter": (2.0, 0.1), "crop_px": 5}, r"augment\.jitter must be"),
        ({"jitter": (0.1, 2.0)}, r"augment\.crop_px must be >= 0, and > 0 with jitter, got 0"),
        ({"crop_px": -1}, r"augment\.crop_px must be >= 0"),
        ({"colour": 1.0}, r"augment\.colour must be in 0\.\.1, got 1\.0"),
    ],
)
def test_settings_out_of_range(changes, match):
    with pytest.raises(ValueError, match=match):
        AugmentConfig(**changes)

"""Drawing: the right pixels change, nothing else does, and bad input is one clear line."""

import itertools

import numpy as np
import pytest

from pipelines.draw import Drawn, overlay, palette

GREY = np.full((60, 80, 3), 90, np.uint8)


def with_mask():
    mask = np.zeros((60, 80), np.uint8)
    mask[30:50, 20:40] = 1
    return mask


def test_the_palette_is_stable_and_tells_classes_apart():
    colours = [palette(index) for index in range(80)]
    assert colours[0] == palette(0)
    assert len(set(colours)) == 80
    for a, b in itertools.pairwise(colours[:9]):
        assert np.abs(np.subtract(a, b)).sum() > 120


def test_nothing_to_draw_is_a_copy():
    drawn = overlay(GREY, [], scale=1)
    np.testing.assert_array_equal(drawn, GREY)
    assert not np.shares_memory(drawn, GREY)


@pytest.mark.parametrize(
    ("size_hw", "scale"), [((128, 128), 3), ((96, 200), 2), ((320, 100), 1), ((600, 800), 1), ((8, 8), 3)]
)
def test_small_pictures_are_enlarged(size_hw, scale):
    image = np.zeros((*size_hw, 3), np.uint8)
    assert overlay(image, []).shape == (size_hw[0] * scale, size_hw[1] * scale, 3)


def test_box_mask_and_keypoints_in_the_class_colour():
    points = np.array([[70.0, 10.0, 2.0], [60.0, 10.0, 0.0], [np.nan, 1.0, 1.0]], np.float32)
    drawn = overlay(GREY, [Drawn((20, 30, 40, 50), "", 3, None, with_mask(), points)], scale=1)
    colour = np.array(palette(3))
    np.testing.assert_array_equal(drawn[30, 30], colour)
    np.testing.assert_array_equal(drawn[10, 70], colour)
    np.testing.assert_array_equal(drawn[10, 60], GREY[0, 0])
    inside = drawn[40, 30].astype(int)
    assert not np.array_equal(inside, colour)
    assert not np.array_equal(inside, GREY[0, 0])
    np.testing.assert_array_equal(drawn[55, 60], GREY[0, 0])
    assert GREY.min() == GREY.max() == 90


@pytest.mark.parametrize("box", [(0, 0, 80, 60), (-30, -20, 500, 400), (70, 50, 79, 59), (5, 5, 5, 5)])
def test_labels_stay_in_the_picture(box):
    drawn = overlay(GREY, [Drawn(box, "a name", 1, 0.5)])
    assert drawn.shape == (180, 240, 3)
    assert (drawn == np.array(palette(1))).all(axis=-1).sum() > 100


def test_a_label_of_any_text_is_drawn():
    overlay(GREY, [Drawn((1, 1, 9, 9), "naïve\n<b> 猫", 0, 0.25)])


BAD = [
    pytest.param({"box_xyxy": (1, 2, float("nan"), 4)}, "a box to draw is .* wanted finite", id="nan"),
    pytest.param({"box_xyxy": (10, 2, 3, 4)}, "x2 >= x1", id="inverted"),
    pytest.param(
        {"mask": np.ones((80, 60), np.uint8)},
        r"mask to draw is \[80, 60\], the picture \[60, 80\]",
        id="mask",
    ),
    pytest.param({"keypoints": np.ones((4, 2), np.float32)}, r"\[4, 2\], wanted \[K, 3\]", id="points"),
    pytest.param({"colour": -1}, "index is -1, wanted >= 0", id="colour"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_objects_are_one_clear_line(changes, message):
    settings = {"box_xyxy": (1, 2, 3, 4), "label": "cat", "colour": 0} | changes
    with pytest.raises(ValueError, match=message):
        overlay(GREY, [Drawn(**settings)])


@pytest.mark.parametrize("image", [GREY[..., 0], GREY.astype(np.float32), GREY[:0], GREY[..., :2]])
def test_bad_pictures_are_one_clear_line(image):
    with pytest.raises(ValueError, match=r"wanted uint8 \[H, W, 3\]"):
        overlay(image, [])


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ValueError, match="the scale is 0, wanted 1 or more"):
        overlay(GREY, [], scale=0)

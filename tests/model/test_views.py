"""Views: what a user writes, their sizes, and the way into a mirror and back."""

import pytest
import torch

from model.config import PictureConfig
from model.views import View, flip_boxes, flip_heatmaps, parse_views, rescale, view_hw

PICTURE = PictureConfig()


def test_presets():
    assert parse_views("none", PICTURE) == (View(800),)
    assert list(map(str, parse_views("fast", PICTURE))) == ["800", "800f", "1000", "1000f"]
    paper = parse_views("paper", PICTURE)
    assert [view.short_edge_px for view in paper[::2]] == [400, 500, 600, 700, 800, 900, 1000, 1100, 1200]
    assert [view.flip for view in paper] == [False, True] * 9
    assert parse_views("fast", PictureConfig(short_edge_px=64, long_edge_px=96))[-1] == View(80, flip=True)


def test_the_paper_s_views_hold_nearly_twenty_times_the_pixels():
    sizes = [view_hw(480, 640, view, PICTURE) for view in parse_views("paper", PICTURE)]
    (own,) = [view_hw(480, 640, view, PICTURE) for view in parse_views("none", PICTURE)]
    assert sum(h * w for h, w in sizes) / (own[0] * own[1]) == pytest.approx(19.9, abs=0.1)


def test_what_a_user_writes_is_read():
    assert parse_views("800, 800f,1000", PICTURE) == (View(800), View(800, flip=True), View(1000))
    for view in parse_views("paper", PICTURE):
        assert parse_views(str(view), PICTURE) == (view,)


@pytest.mark.parametrize("text", ["", "Paper", "800;900", "f", "0", "-3", "800ff", "8.5", "800,"])
def test_what_is_no_view_is_refused(text):
    with pytest.raises(ValueError, match="wanted none, fast, paper or short edges in pixels with an f"):
        parse_views(text, PICTURE)


@pytest.mark.parametrize(("edge", "wanted"), [(800, (666, 1333)), (400, (333, 666)), (1200, (1000, 2000))])
def test_the_limit_of_the_longer_side_grows_too(edge, wanted):
    assert view_hw(500, 1000, View(edge), PICTURE) == pytest.approx(wanted, abs=1)


def test_boxes_in_the_mirror():
    """Continuous coordinates: the box of the leftmost column is the box of the rightmost."""
    boxes = torch.tensor([[0.0, 2.0, 1.0, 5.0], [3.5, 0.0, 10.0, 4.0]])
    assert flip_boxes(boxes, 10).tolist() == [[9.0, 2.0, 10.0, 5.0], [0.0, 0.0, 6.5, 4.0]]
    assert torch.equal(flip_boxes(flip_boxes(boxes, 10), 10), boxes)
    assert rescale(boxes, (5, 10), (10, 30)).tolist() == [[0.0, 4.0, 3.0, 10.0], [10.5, 0.0, 30.0, 8.0]]


def test_heat_maps_in_the_mirror_swap_left_and_right():
    maps = torch.arange(2 * 5 * 3 * 3.0).view(2, 5, 3, 3)
    flipped = flip_heatmaps(maps, ((1, 2), (3, 4)))
    for channel, source in enumerate((0, 2, 1, 4, 3)):
        assert torch.equal(flipped[:, channel], maps[:, source].flip(-1))
    assert torch.equal(flip_heatmaps(flipped, ((1, 2), (3, 4))), maps)

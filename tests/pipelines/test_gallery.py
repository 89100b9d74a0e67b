"""The gallery shows what the data set holds, scaled down where it is large."""

import re

import numpy as np
import pytest

from pipelines import masks
from pipelines.decode import DecodeError
from pipelines.draw import palette
from pipelines.gallery import draw_instances, load_shown, save_gallery
from tests.pipelines.tiny_shards import jpeg, record, thing, write_dataset

NAMES = ("dog", "cat")
BOX = (10, 10, 30, 30)


def saved(tmp_path, shards, **settings):
    path = tmp_path / "gallery.html"
    assert save_gallery(write_dataset(tmp_path / "data", shards), str(path), **settings) == str(path)
    return path.read_text("utf-8")


def captions(source):
    return re.findall(r"<figcaption>(.*?)</figcaption>", source)


def test_the_page_shows_classes_and_pictures(tmp_path):
    points = np.array([[1, 2, 2], [3, 4, 0]], np.float32)
    source = saved(
        tmp_path,
        [
            [record(1, [thing(1, BOX), thing(2, BOX, 1, keypoints=points)])],
            [record(2, [thing(3, BOX, crowd=True), thing(4, BOX, 1)]), record(3), record(4, labelled=False)],
        ],
    )
    assert captions(source) == [
        "1.jpg, 64 x 48, 2 objects",
        "2.jpg, 64 x 48, 1 object, 1 crowd",
        "3.jpg, 64 x 48, 0 objects",
        "4.jpg, 64 x 48, not labelled",
    ]
    assert "4 pictures, 1 of them unlabelled; 4 objects, 1 of them crowds or ignored." in source
    assert "4 of 4, chosen evenly" in source
    rows = re.findall(r"<tr>(.*?)</tr>", source)[1:]
    cells = [re.sub(r"<[^>]*>", "|", row).replace("||", "|").strip("|").split("|") for row in rows]
    assert cells == [
        ["dog", "3", "1", "33.3", "1", "&ndash;"],
        ["cat &amp; &lt;mouse&gt;", "7", "2", "66.7", "2", "2"],
    ]


def test_pictures_are_chosen_evenly(tmp_path):
    source = saved(tmp_path, [[record(n) for n in range(k, k + 7)] for k in (0, 7, 14)], limit=5)
    assert [int(text.split(".")[0]) for text in captions(source)] == [0, 5, 10, 15, 20]


def test_of_many_shards_a_few_are_opened(tmp_path):
    source = saved(tmp_path, [[record(n)] for n in range(61)])
    assert [int(text.split(".")[0]) for text in captions(source)] == list(range(0, 61, 4))


def test_an_empty_data_set_has_a_page(tmp_path):
    assert "0 of 0, chosen evenly" in saved(tmp_path, [])


def test_a_broken_picture_is_named_and_the_rest_shown(tmp_path):
    source = saved(tmp_path, [[record(1, image=b"GIF89a"), record(2)]])
    assert "1.jpg cannot be shown: unsupported_format" in source
    assert captions(source) == ["2.jpg, 64 x 48, 0 objects"]


def test_a_limit_of_nothing_is_refused(tmp_path):
    dataset = write_dataset(tmp_path / "data", [[record(1)]])
    with pytest.raises(ValueError, match="limit is 0, wanted 1 or more"):
        save_gallery(dataset, str(tmp_path / "x.html"), limit=0)


def test_large_pictures_shrink_and_small_ones_do_not():
    large = load_shown(record(1, size_hw=(600, 1200)), longest_px=300)
    assert large.pixels.shape == (150, 300, 3)
    assert large.scale_yx == (0.25, 0.25)
    assert load_shown(record(1), longest_px=300).pixels.shape == (48, 64, 3)
    assert load_shown(record(1, size_hw=(2, 2000)), longest_px=500).pixels.shape == (1, 500, 3)


def test_a_picture_of_another_size_than_its_record_is_refused():
    with pytest.raises(DecodeError, match="is 40x64, its record says 48x64"):
        load_shown(record(1, image=jpeg((40, 64))))
    with pytest.raises(DecodeError, match="too_large"):
        load_shown(record(1, image=jpeg((400, 64))))


@pytest.mark.parametrize("as_rle", [False, True])
def test_objects_are_drawn_where_they_are_in_the_shrunk_picture(as_rle):
    bitmap = np.zeros((600, 1200), np.uint8)
    bitmap[200:400, 400:800] = 1
    mask = {"polygons": None, "rle": masks.encode(bitmap)} if as_rle else {}
    one = record(1, [thing(1, (400, 200, 800, 400), 1, **mask)], (600, 1200))
    drawn = draw_instances(load_shown(one, 300), one.instances, NAMES)
    drawn = drawn[:: drawn.shape[0] // 150, :: drawn.shape[1] // 300].astype(int)
    colour = np.array(palette(1))
    assert np.abs(drawn[75, 150] - colour).sum() < np.abs(drawn[75, 20] - colour).sum()
    assert np.abs(drawn[75, 99:102] - colour).sum(axis=-1).min() < 30
    np.testing.assert_array_equal(drawn[20, 20], drawn[140, 290])


def test_small_objects_are_drawn_on_top_of_large_ones():
    small, large = thing(1, (20, 15, 40, 35), 0), thing(2, (0, 0, 64, 48), 1)
    shown = load_shown(record(1))
    first, second = (draw_instances(shown, order, NAMES) for order in ([small, large], [large, small]))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("changes", "every_score", "differs"),
    [({"score": 0.4}, False, True), ({}, False, False), ({}, True, True), ({"crowd": True}, False, True)],
)
def test_scores_and_crowds_are_marked(changes, every_score, differs):
    shown = load_shown(record(1))
    plain = draw_instances(shown, [thing(1, BOX)], NAMES)
    marked = draw_instances(shown, [thing(1, BOX, **changes)], NAMES, every_score)
    assert (plain != marked).any() == differs


def test_an_object_without_a_mask_has_its_box():
    shown = load_shown(record(1))
    assert (draw_instances(shown, [thing(1, BOX, polygons=None)], NAMES) == np.array(palette(0))).all(-1).any()

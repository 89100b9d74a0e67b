import io

import numpy as np
import pytest
from PIL import Image

from pipelines import check, check_instance, decode, masks, records
from pipelines.check_semantic import MapError, check_map, paint
from pipelines.rejections import Reason, Rejection
from pipelines.source_index import RawRow
from tests.pipelines import tiny_coco
from tests.pipelines.tiny_pictures import grey_png, png

VALUES = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32) % 7
RULES = check.Rules(check_instance.Vocabulary({3: 0}, (0,)), labelled=True, semantic_classes=7)


def row(**changes):
    return RawRow(5, "5.jpg", 24, 32, [tiny_coco.annotation(1, 5)], **changes)


def rle(bitmap):
    return {"size": list(bitmap.shape), "counts": masks.encode(bitmap).decode()}


def test_a_good_map_is_kept_with_its_bytes_and_survives_the_shard():
    data = grey_png(VALUES)
    made = check.check(row(semantic="5.png"), tiny_coco.jpeg(), RULES, data).record
    assert made.semantic == data
    back = records.from_table(records.to_table([made, made]), 1)
    np.testing.assert_array_equal(decode.decode_map(back.semantic), VALUES)


def test_a_palette_is_read_by_its_numbers():
    picture = Image.fromarray(VALUES).convert("P")
    picture.putdata(VALUES.ravel().tolist())
    picture.putpalette([9, 200, 31] * 256)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    np.testing.assert_array_equal(decode.decode_map(stream.getvalue()), VALUES)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty: the file has no bytes"),
        (tiny_coco.jpeg(), "a map is JPEG of mode RGB, wanted an 8-bit"),
        (png(np.zeros((24, 32, 3), np.uint8)), "a map is PNG of mode RGB"),
        (grey_png(VALUES.astype(np.uint16)), "a map is PNG of mode I"),
        (grey_png(VALUES)[:-30], "corrupt"),
        (grey_png(VALUES.T), "the map is 32x24, the picture 24x32"),
        (grey_png(np.where(VALUES == 3, 7, VALUES).astype(np.uint8)), "holds the value 7, wanted 0 to 6, or 255"),
    ],
)
def test_a_bad_map_rejects_its_picture(data, match):
    with pytest.raises(MapError, match=match):
        check_map(data, 24, 32, 7)
    lost = check.check(row(semantic="5.png"), tiny_coco.jpeg(), RULES, data)
    assert isinstance(lost, Rejection)
    assert (lost.reason, lost.instances) == (Reason.BAD_MAP, 1)


def test_255_is_unknown_in_any_map():
    check_map(grey_png(np.full((24, 32), 255, np.uint8)), 24, 32, 1)


def test_later_masks_are_painted_over_earlier_ones():
    one, other = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    one[2:20, 3:30], other[10:24, 20:32] = 1, 1
    other[15, 25] = 0
    data, problems = paint([[24, rle(one)], [6, rle(other)]], 24, 32)
    wanted = np.where(other == 1, 6, np.where(one == 1, 24, 0))
    np.testing.assert_array_equal(decode.decode_map(data), wanted)
    assert problems == []
    assert decode.decode_map(paint([], 24, 32)[0]).any() == np.False_


def test_a_mask_that_cannot_be_painted_is_left_out_and_noted():
    good = np.ones((24, 32), np.uint8)
    layers = [
        [24, {"size": [24, 32], "counts": "not run lengths \x00"}], [24, {"size": [32, 24], "counts": "0"}],
        [0, rle(good)], [255, rle(good)], [1], "x", [2, None], [3, rle(good)],
    ]  # fmt: skip
    data, problems = paint(layers, 24, 32)
    assert (decode.decode_map(data) == 3).all()
    assert [problem.split(":")[0] for problem in problems] == [f"layer {n}" for n in range(7)]
    checked = check.check(row(semantic=layers), tiny_coco.jpeg(), RULES)
    assert len(checked.record.instances) == 1
    assert [(r.reason, r.is_row, r.instances) for r in checked.rejections] == [(Reason.BAD_MAP, False, 0)] * 7


def test_a_map_of_which_no_mask_can_be_used_rejects_its_picture():
    empty = rle(np.zeros((24, 32), np.uint8))
    lost = check.check(row(semantic=[[3, empty], [24, {"size": [1, 1], "counts": "0"}]]), tiny_coco.jpeg(), RULES)
    assert isinstance(lost, Rejection)
    assert (lost.reason, lost.is_row, lost.instances) == (Reason.BAD_MAP, True, 1)
    assert "none of its masks can be used; layer 0: the mask covers no pixel" in lost.value
    assert isinstance(check.check(row(semantic=[]), tiny_coco.jpeg(), RULES), check.Checked)

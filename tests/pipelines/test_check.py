import pytest

from pipelines import check, check_instance
from pipelines.rejections import Reason, Rejection
from pipelines.source_index import RawRow
from tests.pipelines import tiny_coco

RULES = check.Rules(check_instance.Vocabulary({3: 0, 7: 1}, (0, 2)), labelled=True)
DATA = tiny_coco.jpeg()


def row(annotations=(), **changes):
    made = {"image_id": 5, "file_name": "5.jpg", "height": 24, "width": 32, "annotations": annotations}
    return RawRow(**{**made, **changes})


def judged(**changes):
    return check.check(row([tiny_coco.annotation(1, 5, **changes)]), DATA, RULES)


def test_a_good_picture_is_kept_with_its_bytes():
    checked = check.check(row([tiny_coco.annotation(1, 5), tiny_coco.annotation(2, 5, category_id=7)]), DATA, RULES)
    assert checked.rejections == ()
    record = checked.record
    assert (record.image, record.image_id, record.height, record.width, record.labelled) == (
        DATA,
        5,
        24,
        32,
        True,
    )
    assert [i.label for i in record.instances] == [0, 1]
    assert record.instances[0].box_xyxy == (2.0, 3.0, 12.0, 11.0)
    assert record.instances[0].polygons[0].tolist() == [2.0, 3.0, 12.0, 3.0, 12.0, 11.0]


def test_a_size_that_the_source_does_not_give_is_taken_from_the_picture():
    assert check.check(row(height=None, width=None), DATA, RULES).record.height == 24


@pytest.mark.parametrize(
    ("data", "changes", "reason", "field"),
    [
        (b"", {}, Reason.EMPTY_PICTURE, "file_name"),
        (b"GIF89a", {}, Reason.UNSUPPORTED_PICTURE, "file_name"),
        (DATA[: len(DATA) // 2], {}, Reason.CORRUPT_PICTURE, "file_name"),
        (DATA, {"height": 25}, Reason.SIZE_MISMATCH, "height"),
        (DATA, {"width": 24, "height": 32}, Reason.SIZE_MISMATCH, "height"),
        (DATA, {"width": "32"}, Reason.BAD_SIZE, "width"),
        (DATA, {"width": 0}, Reason.BAD_SIZE, "width"),
    ],
)
def test_a_bad_picture_rejects_its_row_and_counts_its_objects(data, changes, reason, field):
    rejection = check.check(row([tiny_coco.annotation(k, 5) for k in range(3)], **changes), data, RULES)
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.field, rejection.is_row, rejection.instances) == (
        reason,
        field,
        True,
        3,
    )
    assert (rejection.image_id, rejection.file_name) == (5, "5.jpg")


def test_too_large_is_judged_by_the_rules():
    small = check.Rules(RULES.vocabulary, True, max_pixels=100)
    assert check.check(row(), DATA, small).reason is Reason.PICTURE_TOO_LARGE


def test_a_header_alone_does_not_find_a_cut_picture():
    quick = check.Rules(RULES.vocabulary, True, full_decode=False)
    assert isinstance(check.check(row(), DATA[:-40], quick), check.Checked)


NAN, INF = float("nan"), float("inf")
BAD_INSTANCES = [
    ({"id": None}, Reason.BAD_INSTANCE_ID),
    ({"id": "1"}, Reason.BAD_INSTANCE_ID),
    ({"id": True}, Reason.BAD_INSTANCE_ID),
    ({"id": 1.5}, Reason.BAD_INSTANCE_ID),
    ({"id": 10**400}, Reason.BAD_INSTANCE_ID),
    ({"category_id": 4}, Reason.UNKNOWN_CATEGORY),
    ({"category_id": "3"}, Reason.UNKNOWN_CATEGORY),
    ({"category_id": None}, Reason.UNKNOWN_CATEGORY),
    ({"category_id": [3]}, Reason.UNKNOWN_CATEGORY),
    ({"bbox": None}, Reason.BAD_BOX),
    ({"bbox": [1, 2, 3]}, Reason.BAD_BOX),
    ({"bbox": [1, 2, 3, "4"]}, Reason.BAD_BOX),
    ({"bbox": [NAN, 2, 3, 4]}, Reason.BAD_BOX),
    ({"bbox": [1, 2, INF, 4]}, Reason.BAD_BOX),
    ({"bbox": [1, 2, 10**400, 4]}, Reason.BAD_BOX),
    ({"bbox": [1, 2, 0, 4]}, Reason.BAD_BOX),
    ({"bbox": [1, 2, 3, -4]}, Reason.BAD_BOX),
    ({"bbox": [40, 2, 3, 4]}, Reason.BAD_BOX),
    ({"bbox": [-9, 2, 3, 4]}, Reason.BAD_BOX),
    ({"bbox": [1, 2, 1e9, 4]}, Reason.BAD_BOX),
    ({"area": NAN}, Reason.BAD_AREA),
    ({"area": -1}, Reason.BAD_AREA),
    ({"area": "40"}, Reason.BAD_AREA),
    ({"iscrowd": 2}, Reason.BAD_FLAG),
    ({"iscrowd": "0"}, Reason.BAD_FLAG),
    ({"iscrowd": None}, Reason.BAD_FLAG),
    ({"ignore": 0.5}, Reason.BAD_FLAG),
    ({"segmentation": [[1, 2, 3]]}, Reason.BAD_SEGMENTATION),
    ({"segmentation": [[33, 2, 40, 2, 40, 9], [1, -3, 5, -3, 5, -9]]}, Reason.BAD_SEGMENTATION),
    ({"segmentation": [[1, 2, 3, 4, NAN, 5]]}, Reason.BAD_SEGMENTATION),
    ({"segmentation": "PPP"}, Reason.BAD_SEGMENTATION),
    ({"segmentation": {"size": [32, 24], "counts": [768]}}, Reason.BAD_SEGMENTATION),
    ({"segmentation": {"size": [24, 32], "counts": [768]}}, Reason.BAD_SEGMENTATION),
    ({"segmentation": {"size": [24, 32], "counts": [700, 69]}}, Reason.BAD_SEGMENTATION),
    ({"segmentation": {"counts": [0, 768]}}, Reason.BAD_SEGMENTATION),
    ({"segmentation": {"size": [24, 32]}}, Reason.BAD_SEGMENTATION),
    ({"category_id": 7, "keypoints": [1, 2, 2]}, Reason.BAD_KEYPOINTS),
    ({"category_id": 7, "keypoints": [1, 2, 2, 3, 4]}, Reason.BAD_KEYPOINTS),
    ({"category_id": 7, "keypoints": [1, 2, 3, 0, 0, 0]}, Reason.BAD_KEYPOINTS),
    ({"category_id": 7, "keypoints": [1, NAN, 2, 0, 0, 0]}, Reason.BAD_KEYPOINTS),
    ({"category_id": 7, "keypoints": [1, 1e9, 2, 0, 0, 0]}, Reason.BAD_KEYPOINTS),
    ({"category_id": 7, "keypoints": "abc"}, Reason.BAD_KEYPOINTS),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_INSTANCES)
def test_a_bad_object_is_set_aside_alone(changes, reason):
    good = tiny_coco.annotation(2, 5)
    checked = check.check(row([tiny_coco.annotation(1, 5, **changes), good]), DATA, RULES)
    assert [i.id for i in checked.record.instances] == [2]
    (lost,) = checked.rejections
    assert (lost.reason, lost.is_row, lost.instances) == (reason, False, 1)
    assert lost.value
    assert len(lost.value) < 400


def test_an_annotation_that_is_no_object():
    assert check.check(row([[1, 2]]), DATA, RULES).rejections[0].reason is Reason.BAD_INSTANCE_ID


def test_what_may_be_missing_and_what_is_kept():
    bare = {"id": 1.0, "category_id": 7, "bbox": [1, 2, 3, 4]}
    (kept,) = check.check(row([bare]), DATA, RULES).record.instances
    assert (kept.area, kept.crowd, kept.ignore, kept.polygons, kept.rle, kept.keypoints) == (
        12.0,
        False,
        False,
        None,
        None,
        None,
    )
    (kept,) = judged(segmentation=[], area=0, iscrowd=True, ignore=1).record.instances
    assert (kept.polygons, kept.area, kept.crowd, kept.ignore) == (None, 0.0, True, True)
    (kept,) = judged(segmentation={"size": [24, 32], "counts": [0, 768]}).record.instances
    assert kept.rle is not None
    (kept,) = judged(category_id=7, keypoints=[1, 2, 2, 0, 0, 0]).record.instances
    assert kept.keypoints.tolist() == [[1, 2, 2], [0, 0, 0]]
    (kept,) = judged(bbox=[-0.5, 0, 33, 24]).record.instances
    assert kept.box_xyxy == (-0.5, 0.0, 32.5, 24.0)


@pytest.mark.parametrize(
    "name",
    [
        "../x.jpg",
        "a/../../x.jpg",
        "/etc/passwd",
        "~/x.jpg",
        "C:\\x.jpg",
        "C:/x.jpg",
        "\\\\host\\x.jpg",
        "a\\b.jpg",
        "%2e%2e/x.jpg",
        "a%2Fb.jpg",
        "a\0.jpg",
        "a\nb.jpg",
        "a\u202egpj.exe",
        "file:///etc/passwd",
        "http://169.254.169.254/x",
        "x" * 5000,
        "a//b.jpg",
        "./a.jpg",
        "a/",
        ".",
        "a.jpg.",
        "a .jpg/b ",
        "e\u0301.jpg",
        "\ud800.jpg",
        "",
        None,
        7,
        ["a.jpg"],
    ],
)
def test_unsafe_names_are_refused_and_shown_escaped(name):
    rejection = check.check_file_name(row(file_name=name))
    assert rejection.reason is Reason.UNSAFE_FILE_NAME
    assert rejection.value.isascii()
    assert rejection.value.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "a/b c.jpg",
        "\u00e9.jpg",
        ".hidden.jpg",
        "a..b.jpg",
        "100%.jpg",
        "12:30:05.jpg",
        "\u6771\u3000\u4eac.jpg",
    ],
)
def test_ordinary_names_pass(name):
    assert check.check_file_name(row(file_name=name)) is None

import json

import pytest

from pipelines.datasets import coco
from pipelines.rejections import Reason
from tests.pipelines import tiny_coco
from tests.pipelines.tiny_coco import annotation, image


def test_classes_are_in_ascending_id_and_objects_with_their_picture(tmp_path):
    images, file = tiny_coco.write(tmp_path)
    index = coco.read_index(images, file)
    assert [(c.id, c.name) for c in index.classes] == [(3, "dog"), (7, "cat")]
    assert {r.image_id: len(r.annotations) for r in index.rows} == {i: i % 3 for i in range(1, 8)}
    assert (index.rows_in, index.instances_in, index.labelled, index.rejections) == (7, 7, True, ())
    assert index.images == images


def test_orphans_and_duplicates_are_set_aside_and_counted(tmp_path):
    images, file = tiny_coco.write(
        tmp_path,
        images=[image(1), image(1), image("2"), image(None), 5],
        annotations=[
            annotation(1, 1),
            annotation(1, 1),
            annotation(2, 99),
            annotation(3, "1"),
            annotation(4, [1]),
            annotation(5, True),
            annotation(None, 1),
            annotation(None, 1),
            "nonsense",
        ],
    )
    index = coco.read_index(images, file)
    assert (index.rows_in, index.instances_in) == (5, 9)
    assert [len(r.annotations) for r in index.rows] == [3]
    reasons = [r.reason for r in index.rejections]
    assert reasons.count(Reason.DUPLICATE_IMAGE_ID) == 1
    assert reasons.count(Reason.BAD_IMAGE_ID) == 3
    assert reasons.count(Reason.DUPLICATE_INSTANCE_ID) == 1
    assert reasons.count(Reason.UNKNOWN_IMAGE_ID) == 5


def test_a_file_without_annotations_is_unlabelled(tmp_path):
    file = tmp_path / "info.json"
    file.write_text("\ufeff" + json.dumps({"images": [image(1)], "categories": tiny_coco.CATEGORIES}))
    index = coco.read_index(str(tmp_path), str(file))
    assert (index.labelled, index.rows_in, len(index.classes)) == (False, 1, 2)
    file.write_text(json.dumps({"images": [image(1)]}))
    assert coco.read_index(str(tmp_path), str(file)).classes == ()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is not JSON"),
        (b"[1]", "holds a list"),
        (b"{}", "has nothing under 'images'"),
        (b'{"images": 3}', "a int under 'images'"),
        (b'{"images": [], "annotations": {}}', "a dict under 'annotations'"),
        (b'{"images": [], "annotations": []}', "nothing under 'categories'"),
        (b'{"images": [], "images": []}', "'images' stands twice"),
        (b'{"images": [], "categories": [{"id": 1}]}', "wanted an integer id and a name"),
        (b'{"images": [], "categories": [{"id": "1", "name": "a"}]}', "wanted an integer id and a name"),
        (b'{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "id 1 twice"),
        (
            b'{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "two categories named 'a'",
        ),
        (b'{"images": [], "categories": [{"id": 1, "name": "a", "keypoints": 3}]}', "wanted a list of names"),
        (b'{"images": [], "categories": [{"id": 1, "name": "a\\ud800"}]}', "category 1 .* wanted valid Unicode"),
        (
            b'{"images": [], "categories": [{"id": 1, "name": "a", "keypoints": ["b", "\\udcff"]}]}',
            "category 1 has the names .*wanted valid Unicode",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"images": [' + b"1" * 5000 + b"]}", "is not JSON"),
    ],
)
def test_files_that_are_not_coco_say_why(tmp_path, text, match):
    file = tmp_path / "x.json"
    file.write_bytes(text)
    with pytest.raises(coco.CocoError, match=match) as caught:
        coco.read_index(str(tmp_path), str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_too_large(tmp_path, monkeypatch):
    with pytest.raises(coco.CocoError, match="there is no annotation file"):
        coco.read_index(str(tmp_path), str(tmp_path / "none.json"))
    images, file = tiny_coco.write(tmp_path)
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", 10)
    with pytest.raises(coco.CocoError, match="the limit is 10"):
        coco.read_index(images, file)

import pytest

from pipelines import dataset_writer, inspect, storage
from pipelines.check import Rules, check
from pipelines.check_instance import Vocabulary
from pipelines.dataset import Dataset
from pipelines.manifest import ClassInfo
from pipelines.rejections import Reason, Rejection
from pipelines.source_index import RawRow
from tests.pipelines import tiny_coco

RULES = Rules(Vocabulary({3: 0, 7: 1}, (0, 0)), labelled=True)


def record(number, **changes):
    objects = [tiny_coco.annotation(10 * number + k, number) for k in range(number)]
    made = check(RawRow(number, f"{number}.jpg", 24, 32, objects), tiny_coco.jpeg(seed=number), RULES).record
    return type(made)(**{**vars(made), **changes})


def write(folder, rows, lost=()):
    filesystem, path = storage.open_uri(str(folder))
    info = dataset_writer.write_shard(filesystem, path, 0, rows, {})
    draft = dataset_writer.Draft(
        (ClassInfo(3, "dog"), ClassInfo(7, "cat")),
        (info,),
        lost,
        len(rows) + sum(r.is_row for r in lost),
        info.instances + sum(r.instances for r in lost),
        {"kind": "coco", "images": "here"},
        "f",
    )
    dataset_writer.commit_dataset(filesystem, path, draft)
    return str(folder)


def test_the_text_shows_classes_sizes_histogram_and_rejections(tmp_path):
    lost = (
        Rejection(Reason.CORRUPT_PICTURE, "file_name", "cut", True, "9.jpg", 9, None, 2),
        Rejection(Reason.BAD_BOX, "bbox", "[0]", False, "1.jpg", 1, 5, 1),
    )
    uri = write(tmp_path, [record(0), record(1), record(3)], lost)
    text = inspect.run(inspect.InspectConfig(uri)).text
    for line in (
        "from          kind coco, images here",
        "pictures      4 in = 3 written + 1 rejected; 3 of the written are labelled",
        "objects       7 in = 4 kept + 3 rejected; 0 of the kept are crowds",
        "height px   24      24   24",
        "    0   3  dog          4",
        "    1   7  cat          0",
    ):
        assert line in text.splitlines()
    assert "picture   corrupt_picture      1  file_name: cut (9.jpg)" in text
    assert "verified" not in text


def test_an_empty_data_set_has_a_text(tmp_path):
    assert "pictures      0 in" in inspect.run(inspect.InspectConfig(write(tmp_path, []))).text


def test_verifying_good_data_finds_nothing(tmp_path):
    result = inspect.run(inspect.InspectConfig(write(tmp_path, [record(2)]), verify=True))
    assert result.problems == ()
    assert result.text.endswith("verified      everything is as committed")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image": b"junk"}, "does not match its sha256"),
        ({"image": b"junk"}, "cannot be decoded"),
        ({"height": 25}, "the picture is 24x32, noted 25x32"),
    ],
)
def test_verifying_names_bad_records(tmp_path, changes, match):
    result = inspect.run(inspect.InspectConfig(write(tmp_path, [record(2, **changes)]), verify=True))
    assert any(match in problem and "record 0 (2.jpg)" in problem for problem in result.problems)
    assert match in result.text


def test_verifying_names_bad_objects(tmp_path):
    good = record(2)
    bad = [type(i)(**{**vars(i), "rle": b"junk", "box_xyxy": (1.0, 1.0, 1.0, 2.0)}) for i in good.instances]
    uri = write(tmp_path, [type(good)(**{**vars(good), "instances": tuple(bad)})])
    problems = inspect.run(inspect.InspectConfig(uri, verify=True)).problems
    assert sum("box (1.0" in p for p in problems) == 2
    assert sum("object 20:" in p for p in problems) == 2


def test_verifying_names_a_damaged_shard(tmp_path):
    uri = write(tmp_path, [record(2)])
    path = tmp_path / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    problems = list(inspect.verify(Dataset(uri)))
    assert "does not match its sha256 in the manifest" in problems[0]

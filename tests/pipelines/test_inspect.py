from pipelines import inspect
from pipelines.rejections import Reason, Rejection
from tests.pipelines.tiny_checked import record, write


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
        "objects       7 in = 4 kept + 3 rejected; 0 of the kept are crowds or ignored",
        "height px   24      24   24",
        "    0   3  dog          4",
        "    1   7  cat          0",
    ):
        assert line in text.splitlines()
    assert "picture   corrupt_picture      1  file_name: cut (9.jpg)" in text
    assert "verified" not in text


def test_an_empty_data_set_has_a_text(tmp_path):
    assert "pictures      0 in" in inspect.run(inspect.InspectConfig(write(tmp_path, []))).text

import pytest

from pipelines import rejections
from pipelines.rejections import Reason, Rejection

LOST = [
    Rejection(Reason.BAD_BOX, "bbox", "[0, 0]", False, "a.jpg", 1, 7, 1),
    Rejection(Reason.BAD_BOX, "bbox", "[0]", False, "a.jpg", 1, 8, 1),
    Rejection(Reason.MISSING_PICTURE, "file_name", "'b.jpg'", True, "b.jpg", 2, None, 3),
]


def test_rejections_come_back_from_their_file():
    assert rejections.from_ipc(rejections.to_ipc(LOST).to_pybytes()) == tuple(LOST)
    assert rejections.from_ipc(rejections.to_ipc([]).to_pybytes()) == ()
    assert [rejections.from_dict(rejections.to_dict(r)) for r in LOST] == LOST


def test_the_summary_names_reasons_with_counts_and_examples():
    text = rejections.summary(LOST)
    assert text.startswith("2 x bad_box (such as bbox = [0, 0] of a.jpg); 1 x missing_picture")
    assert rejections.summary(LOST, top=1).endswith("; 1 more of other reasons")


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("a\x00\n", r"'a\x00\n'"),
        (10**5000, "an integer of 16610 bits"),
        ([0] * 100, "a list of 100 values"),
        ("é", r"'\xe9'"),
    ],
    ids=["control", "huge", "long", "accent"],
)
def test_values_are_shown_escaped(value, want):
    assert rejections.shown(value) == want


def test_long_values_are_cut():
    assert len(rejections.shown("x" * 1000)) == 200

"""A picture's score on hand-made overlaps."""

import dataclasses

import pytest

from pipelines.picture_score import score_picture
from pipelines.predictions import PredictionsError
from tests.pipelines.tiny_shards import detected, record, thing

BOX = (10, 10, 30, 30)
HALF = (10, 10, 30, 22)  # IoU 0.6 with BOX
TRUTH = record(1, [thing(1, BOX)])
CROWD = thing(2, (40, 0, 64, 48), crowd=True)

CASES = [
    pytest.param(TRUTH, [BOX], {}, (1.0, 1, 1, 0), id="perfect"),
    pytest.param(TRUTH, [HALF], {}, (0.6, 1, 1, 0), id="partly"),
    pytest.param(TRUTH, [], {}, (0.0, 1, 0, 0), id="missed"),
    pytest.param(TRUTH, [BOX], {"labels": [1]}, (0.0, 1, 0, 1), id="wrong-class"),
    pytest.param(TRUTH, [(10, 10, 30, 19)], {}, (0.0, 1, 0, 1), id="too-little"),
    pytest.param(TRUTH, [BOX, BOX], {"scores": [0.9, 0.8]}, (0.5, 1, 1, 1), id="duplicate"),
    pytest.param(TRUTH, [HALF, BOX], {"scores": [0.9, 0.8]}, (0.3, 1, 1, 1), id="best-score-first"),
    pytest.param(TRUTH, [BOX, HALF], {"scores": [0.6, 0.8]}, (0.3, 1, 1, 1), id="order-of-scores"),
    pytest.param(TRUTH, [BOX], {"scores": [0.49]}, (0.0, 1, 0, 0), id="low-score"),
    pytest.param(TRUTH, [BOX], {"scores": [0.5]}, (1.0, 1, 1, 0), id="at-the-threshold"),
    pytest.param(record(1), [], {}, (None, 0, 0, 0), id="nothing-to-do"),
    pytest.param(record(1), [BOX], {}, (0.0, 0, 0, 1), id="false-on-empty"),
    pytest.param(record(1, [CROWD]), [(42, 5, 50, 12)], {}, (None, 0, 0, 0), id="on-a-crowd"),
    pytest.param(record(1, [CROWD]), [(42, 5, 50, 12)], {"labels": [1]}, (0.0, 0, 0, 1), id="other-crowd"),
    pytest.param(record(1, [thing(1, BOX, ignore=True)]), [BOX], {}, (None, 0, 0, 0), id="on-an-ignored-region"),
    pytest.param(record(1, [thing(1, BOX, polygons=None)]), [HALF], {}, (0.6, 1, 1, 0), id="boxes-only"),
]


@pytest.mark.parametrize(("truth", "boxes", "settings", "wanted"), CASES)
def test_scores(truth, boxes, settings, wanted):
    score = score_picture(truth, detected(truth, boxes, **settings))
    assert score.value == (None if wanted[0] is None else pytest.approx(wanted[0], abs=0.01))
    assert score[1:] == wanted[1:]
    assert score.mistakes == wanted[1] - wanted[2] + wanted[3]


def test_damaged_masks_never_reach_the_compiled_code():
    damaged = dataclasses.replace(detected(TRUTH, [BOX]), rles=(b"0000",))
    with pytest.raises(PredictionsError, match=r"detection 0 on picture 1: .*: predict again into another --out"):
        score_picture(TRUTH, damaged)

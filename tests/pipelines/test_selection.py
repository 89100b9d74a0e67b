"""The rule against a slow oracle: the best of each class, exactly as many as wanted, whatever the shards."""

import dataclasses

import numpy as np
import pytest

from pipelines import selection
from pipelines.predictions import PicturePrediction, PredictionsError
from pipelines.pseudo_labels import Rules, pseudo_record
from pipelines.selection import KEEP_ALL, KEEP_NONE, Fate, Key, Limits, Search, Tally
from tests.pipelines import tiny_shards

LIMITS = Limits(0.3, 1.0, 0.5)


def picture(number, scores, labels, areas=None):
    count = len(scores)
    boxes = np.random.default_rng(number).integers(0, 50, (count, 4)).astype(np.float32)
    return PicturePrediction(
        image_id=number,
        height=48,
        width=64,
        boxes_xyxy=boxes,
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
        rles=(b"0",) * count,
        areas=np.array(areas if areas is not None else [1] * count, np.int64),
        view_agreement=np.ones(count, np.float32),
        box_spread=np.zeros(count, np.float32),
    )


def pool(seed):
    """Pictures of two classes, many of equal scores, in shards of any size."""
    rng = np.random.default_rng(seed)
    made = []
    for number in rng.permutation(30)[: int(rng.integers(1, 20))]:
        count = int(rng.integers(0, 6))
        scores = rng.random(count) if seed % 2 else rng.choice([0.0, 0.3, 0.5, 0.7, 0.9, 1.0], count)
        made.append(picture(int(number), scores, rng.integers(0, 2, count), rng.integers(0, 4, count)))
    cuts = sorted(rng.integers(0, len(made) + 1, 3).tolist())
    return [made[a:b] for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True)]


def keys(shards, label):
    found = []
    for one in (one for shard in shards for one in shard):
        for rank, at in enumerate(selection.ranking(one)):
            if one.labels[at] == label and one.areas[at]:
                found.append(Key(-float(one.scores[at]), one.image_id, rank))
    return sorted(found)


def last_kept(shards, label, wanted):
    """As the command does it: tallies of shards, then candidates of shards."""
    tally = Tally.from_plain([[], []])
    for shard in shards:
        tally += Tally.from_plain(Tally.of(shard).to_plain())
    place = tally.last_bin(label, wanted)
    if place is None:
        return KEEP_ALL if wanted > 0 else KEEP_NONE
    searches = {label: Search(*place)}
    found = {label: [key for shard in reversed(shards) for key in selection.candidates(shard, searches)[label]]}
    return selection.best_of(found, searches)[label][-1]


@pytest.mark.parametrize("seed", range(60))
def test_exactly_the_best_are_kept(seed):
    shards = pool(seed)
    for label in (0, 1):
        ordered = keys(shards, label)
        for wanted in range(-1, len(ordered) + 2):
            choice = selection.choose(last_kept(shards, label, wanted), Limits(0.0, 1.0, 1.0))
            kept = [key for key in ordered if choice.fate(key) is Fate.LABEL]
            assert kept == ordered[: max(wanted, 0)]


@pytest.mark.parametrize("wanted", [0, 2])
def test_saturated_scores_are_kept_by_the_rule_alone(wanted):
    """A softmax in float32 gives 1 to whatever it is sure of."""
    shards = [[picture(1, [1.0, 1.0, 1.0], [0, 0, 0])]]
    choice = selection.choose(last_kept(shards, 0, wanted), LIMITS)
    kept = [key for key in keys(shards, 0) if choice.fate(key) is Fate.LABEL]
    assert len(kept) == wanted
    assert (choice.threshold > 1.0) is (wanted == 0)  # an audit, which knows the threshold alone, keeps none either


def test_the_limits_hold_whatever_the_rule_says():
    last = Key(-0.6, 5, 1)
    low, high = selection.choose(last, Limits(0.7, 1.0, 0.5)), selection.choose(last, Limits(0.3, 0.5, 0.5))
    assert (low.threshold, high.threshold) == (0.7, 0.5)
    assert low.fate(Key(-0.65, 1, 0)) is Fate.UNCERTAIN
    assert high.fate(Key(-0.55, 1, 0)) is Fate.LABEL
    assert [selection.choose(key, LIMITS).threshold for key in (KEEP_ALL, KEEP_NONE)] == [0.3, pytest.approx(1.0)]


def test_the_uncertain_band_begins_at_a_share_of_the_threshold():
    choice = selection.choose(Key(-0.8, 5, 1), LIMITS)
    scores = {0.81: Fate.LABEL, 0.79: Fate.UNCERTAIN, 0.41: Fate.UNCERTAIN, 0.39: Fate.BELOW_THRESHOLD}
    assert {score: choice.fate(Key(-score, 1, 0)) for score in scores} == scores
    assert choice.fate(Key(-0.8, 5, 1)) is Fate.LABEL
    assert choice.fate(Key(-0.8, 5, 2)) is Fate.UNCERTAIN
    none = selection.choose(Key(-0.8, 5, 1), Limits(0.3, 1.0, 1.0))
    assert none.fate(Key(-0.79, 1, 0)) is Fate.BELOW_THRESHOLD


def test_a_detection_without_a_pixel_is_nothing():
    choices = [selection.choose(KEEP_ALL, LIMITS)] * 2
    found = picture(1, [0.4, 0.9], [0, 1], [5, 0])
    assert selection.fates(found, choices) == [(1, Fate.NO_PIXEL), (0, Fate.LABEL)]


def test_a_histogram_counts_every_detection_once():
    scores = [0.05, 0.55, 0.55, 0.99, 1.0]
    counts = selection.histogram([picture(1, scores, [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]), picture(2, [0.9], [0], [0])], 3)
    assert counts.tolist() == [[1, 0, 0, 0, 0, 2, 0, 0, 0, 1], [0] * 9 + [1], [0] * 10]
    tally = Tally.of([picture(1, scores, [0, 0, 0, 0, 1])])
    assert (tally.found(0), tally.found(1), tally.found(2)) == (4, 1, 0)


def test_a_score_on_a_tenth_is_in_the_bin_that_begins_there():
    tenths = [tenth / 10 for tenth in range(10)]
    above = [tenth + 1e-4 for tenth in tenths]
    below = [tenth + 0.1 - 1e-4 for tenth in tenths]
    for scores in (tenths, above, below):
        assert selection.histogram([picture(1, scores, [0] * 10)], 1).tolist() == [[1] * 10], scores


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_a_score_out_of_range_is_refused(score):
    with pytest.raises(PredictionsError, match=r"picture 7 has a score outside of 0\.\.1: predict it again"):
        Tally.of([picture(7, [0.5, score], [0, 0])])


def test_few_labels_are_said():
    choice = selection.choose(KEEP_NONE, LIMITS)
    few = selection.described("dog", 19, 10, 4, choice, (1, 2, 3))
    assert (few.few_labels, few.labelled_rate, few.rule_threshold) == (True, 1.9, 2.0)
    assert few.threshold == pytest.approx(1.0)
    assert not selection.described("dog", 20, 10, 4, choice, (1, 2, 3)).few_labels


def test_box_only_detections_become_objects():
    found = dataclasses.replace(picture(7, [0.9, 0.8], [0, 0]), rles=None)
    rules = Rules((selection.Choice(KEEP_ALL, 0.5, LIMITS),), tiny_shards.CLASSES)
    made = pseudo_record(3, tiny_shards.record(7, []), found, selection.fates(found, rules.choices), rules)
    assert [(i.rle, i.keypoints, i.id) for i in made.instances] == [(None, None, 3001), (None, None, 3002)]

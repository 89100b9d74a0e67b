"""The choice of pseudo-labels against a slow oracle, and the data set that is written of it, without Ray."""

import dataclasses
import json

import numpy as np
import pytest

from pipelines import distill, masks, storage
from pipelines.dataset import Dataset
from pipelines.distill import DistillConfig, DistillError, pseudo_record, select_class
from pipelines.manifest import ClassInfo
from tests.pipelines.tiny_shards import CLASSES, detected, record, thing, write_dataset, write_predictions


def kept_by_the_rule(scores, wanted, floor, cap):
    """The best `wanted` without splitting equals, those below the floor out, those from the cap on in."""
    ranked = sorted((float(score) for score in scores), reverse=True)
    count = min(max(wanted, 0), len(ranked))
    while 0 < count < len(ranked) and ranked[count - 1] == ranked[count]:
        count -= 1
    best = ranked[count - 1] if count else np.inf
    return [s for s in ranked if (s >= best and s >= floor) or s >= cap]


def kept_by_threshold(scores, threshold):
    return sorted((float(score) for score in scores if float(score) >= threshold), reverse=True)


def choices():
    for seed in range(400):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(0, 12))
        scores = rng.random(count).astype(np.float32)
        if seed % 2:  # ties, also at the floor, the cap and one
            scores = rng.choice(np.array([0.3, 0.5, 0.7, 0.9, 1.0], np.float32), count)
        floor = float(rng.choice([0.0, 0.3, 0.5, 0.7]))
        cap = float(rng.choice([0.7, 0.9, 1.0]))
        yield scores, int(rng.integers(-1, 14)), floor, max(floor, cap)


def test_the_threshold_keeps_what_the_rule_says():
    for scores, wanted, floor, cap in choices():
        threshold = select_class(scores, wanted, floor, cap)
        assert floor <= threshold <= cap
        assert kept_by_threshold(scores, threshold) == kept_by_the_rule(scores, wanted, floor, cap), (scores, wanted)


def test_the_order_of_detections_does_not_matter():
    for scores, wanted, floor, cap in choices():
        thresholds = {select_class(np.random.default_rng(k).permutation(scores), wanted, floor, cap) for k in range(4)}
        assert len(thresholds) == 1


def test_wanting_more_never_keeps_less():
    for scores, _, floor, cap in choices():
        kept = [len(kept_by_threshold(scores, select_class(scores, n, floor, cap))) for n in range(len(scores) + 2)]
        assert kept == sorted(kept)
        assert all(count <= max(n, sum(scores >= cap)) for n, count in enumerate(kept))


@pytest.mark.parametrize(
    ("scores", "wanted", "floor", "cap", "kept"),
    [
        ([0.9, 0.8, 0.7, 0.1], 2, 0.0, 1.0, 2),
        ([0.9, 0.8, 0.8, 0.1], 2, 0.0, 1.0, 1),  # both or none
        ([0.8, 0.8, 0.8], 2, 0.0, 1.0, 0),
        ([0.8, 0.8, 0.8], 3, 0.0, 1.0, 3),
        ([0.9, 0.2], 5, 0.3, 1.0, 1),  # more wanted than found: the floor alone
        ([0.9, 0.2], 2, 0.3, 1.0, 1),
        ([0.99, 0.9], 0, 0.3, 1.0, 0),
        ([0.99, 0.9], 0, 0.3, 0.95, 1),  # the cap keeps it all the same
        ([1.0, 1.0, 0.5], 1, 0.3, 1.0, 2),
        ([], 3, 0.3, 1.0, 0),
    ],
)
def test_choices_by_hand(scores, wanted, floor, cap, kept):
    scores = np.array(scores, np.float32)
    assert len(kept_by_threshold(scores, select_class(scores, wanted, floor, cap))) == kept


RECORD = record(7)


def test_a_pseudo_record_holds_the_kept_detections():
    found = detected(
        RECORD, [(1, 2, 20, 30), (5, 5, 9, 9), (0, 0, 64, 48), (3, 3, 8, 8)], [1, 0, 1, 0], [0.9, 0.8, 0.7, 0.2]
    )
    made = pseudo_record(RECORD, found, np.array([0.5, 0.75]))
    assert [(i.label, i.score, i.box_xyxy) for i in made.instances] == [
        (1, pytest.approx(0.9), (1.0, 2.0, 20.0, 30.0)),
        (0, pytest.approx(0.8), (5.0, 5.0, 9.0, 9.0)),
    ]
    assert [i.area for i in made.instances] == [19 * 28, 16]
    assert masks.area(made.instances[0].rle) == 19 * 28
    assert all(not i.crowd and not i.ignore and i.polygons is None and i.loss_weight == 1.0 for i in made.instances)
    assert made.labelled
    assert dataclasses.replace(made, instances=(), labelled=True) == dataclasses.replace(RECORD, labelled=True)


def test_detections_without_a_pixel_are_left_out():
    found = detected(RECORD, [(1, 2, 20, 30), (4, 4, 4, 9)], scores=[0.9, 0.9])
    assert len(pseudo_record(RECORD, found, np.array([0.0, 0.0])).instances) == 1


def pool(folder, split=(3, 0, 4)):
    rows, first = [], 0
    for count in split:
        rows.append([dataclasses.replace(record(20 + i), labelled=False) for i in range(first, first + count)])
        first += count
    return write_dataset(folder, rows)


def findings(one):
    """Up to 4 detections a picture, a function of the picture alone, some of equal scores."""
    rng = np.random.default_rng(one.image_id)
    count = int(rng.integers(0, 5)) if one.image_id != 22 else 0
    boxes = [(int(x), int(y), int(x) + 9, int(y) + 7) for x, y in rng.integers(0, 38, (count, 2))]
    scores = sorted(rng.choice(np.array([0.2, 0.4, 0.6, 0.7, 0.8, 0.95], np.float32), count).tolist(), reverse=True)
    return detected(one, boxes, rng.integers(0, 2, count).tolist(), scores)


def labelled(folder):
    """Three labelled pictures: 4 dogs, 1 cat, a crowd, and one picture nobody looked at."""
    rows = [
        record(1, [thing(1, (0, 0, 9, 9)), thing(2, (9, 9, 20, 20)), thing(9, (0, 0, 30, 30), 1, crowd=True)]),
        record(2, [thing(3, (0, 0, 9, 9)), thing(4, (9, 9, 20, 20)), thing(5, (3, 3, 9, 9), 1)]),
        record(3),
        dataclasses.replace(record(4), labelled=False),
    ]
    return write_dataset(folder, [rows])


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Runs distill on a pool in given shards; shards are written one by one here, not by Ray."""
    monkeypatch.setattr(distill, "_write_all", lambda work, count: [work.write(shard) for shard in range(count)])
    people = labelled(tmp_path / "labelled")

    def prepared(name, split=(3, 0, 4), found=findings, **options):
        pictures = pool(tmp_path / name / "pool", split)
        labels = write_predictions(tmp_path / name / "labels", pictures, found)
        return DistillConfig(labels, pictures.uri, people.uri, str(tmp_path / name / "out"), **options)

    return prepared


def test_a_pool_becomes_a_data_set(plan):
    config = plan("a", min_score=0.3)
    result = distill.run(config)
    pictures = [findings(record(20 + i)) for i in range(7)]
    for label, (row, rate) in enumerate(zip(result.selection, (4 / 3, 1 / 3), strict=True)):
        scores = np.concatenate([picture.scores[picture.labels == label] for picture in pictures])
        assert (row.labelled_rate, row.wanted) == (pytest.approx(rate), round(7 * rate))
        assert (row.found, row.few_labels) == (len(scores), True)
        kept = kept_by_the_rule(scores, row.wanted, 0.3, 1.0)
        assert row.kept == len(kept) > 0
        dataset = Dataset(config.out)
        written = [i for n in range(len(dataset)) for i in dataset.record(n).instances if i.label == label]
        assert sorted((i.score for i in written), reverse=True) == pytest.approx(kept)
    made = result.manifest
    assert (made.classes, made.instances_kept) == (CLASSES, sum(row.kept for row in result.selection))
    assert made.labelled_images == made.rows_written == len(Dataset(config.out)) < 7
    assert made.source["kind"] == "distill"
    assert made.source["pictures_without_kept_object"] == str(7 - made.rows_written)
    assert json.loads(made.source["thresholds"]) == {row.name: row.threshold for row in result.selection}


def instances_by_picture(config):
    dataset = Dataset(config.out)
    return {r.image_id: r.instances for r in map(dataset.record, range(len(dataset)))}


def test_neither_shards_nor_the_order_of_detections_matter(plan):
    def shuffled(one):
        found = findings(one)
        order = np.random.default_rng(one.image_id + 5).permutation(len(found.scores))
        arrays = {name: getattr(found, name)[order] for name in ("boxes_xyxy", "scores", "labels", "areas")}
        return dataclasses.replace(found, **arrays, rles=tuple(found.rles[i] for i in order))

    first = plan("a")
    selection = distill.run(first).selection
    for name, config in [("b", plan("b", (7,))), ("c", plan("c", (1, 1, 1, 1, 1, 1, 1)))]:
        assert distill.run(config).selection == selection, name
        assert instances_by_picture(config) == instances_by_picture(first)
    other = plan("d", found=shuffled)
    assert distill.run(other).selection == selection

    def essence(config):
        pictures = instances_by_picture(config)
        return {n: sorted((i.score, i.label, i.box_xyxy) for i in found) for n, found in pictures.items()}

    assert essence(other) == essence(first)


def test_ids_are_unique(plan):
    config = plan("a", min_score=0.0, max_score=0.0)
    distill.run(config)
    ids = [instance.id for found in instances_by_picture(config).values() for instance in found]
    assert len(set(ids)) == len(ids) == sum(len(findings(record(20 + i)).scores) for i in range(7))


def test_pictures_without_a_kept_object_may_be_kept(plan):
    config = plan("a", keep_empty=True)
    made = distill.run(config).manifest
    assert (made.rows_written, made.labelled_images) == (7, 7)
    assert instances_by_picture(config)[22] == ()


def test_the_same_command_changes_nothing_and_another_is_refused(plan, tmp_path):
    config = plan("a")
    first = distill.run(config)
    files = {path: path.read_bytes() for path in (tmp_path / "a" / "out").iterdir()}
    assert distill.run(config) == first
    assert {path: path.read_bytes() for path in (tmp_path / "a" / "out").iterdir()} == files
    with pytest.raises(DistillError, match="holds another data set: choose another --out"):
        distill.run(dataclasses.replace(config, min_score=0.75))


@pytest.mark.parametrize("floor", [0.3, 0.6, 0.7, 0.95])
def test_the_account_is_that_of_the_data_at_scores_on_the_floor(plan, floor):
    """0.7 as float32 is less than 0.7, 0.3 as float32 is more: the two sides must not differ on it."""

    def on_the_floor(one):
        return detected(one, [(1, 1, 9, 9), (2, 2, 12, 12)], scores=[0.99, floor])

    config = plan("a", min_score=floor, max_score=floor, found=on_the_floor)
    result = distill.run(config)
    written = sum(len(found) for found in instances_by_picture(config).values())
    assert written == sum(row.kept for row in result.selection) == result.manifest.instances_kept


def test_detections_without_a_pixel_do_not_count(plan):
    """They would take a place among the wanted that nothing is written for."""

    def one_of_them_empty(one):
        return detected(one, [(4, 4, 4, 9), (2, 2, 12, 12)], scores=[0.99, 0.9])

    config = plan("a", found=one_of_them_empty)
    selection = distill.run(config).selection
    assert (selection[0].found, selection[0].kept) == (7, 7)
    assert all(len(found) == 1 for found in instances_by_picture(config).values())


def test_nothing_kept_is_an_error(plan, tmp_path):
    with pytest.raises(DistillError, match=r"no detection reached its threshold \(floor 0\.99.*lower --min-score"):
        distill.run(plan("a", min_score=0.99))
    assert not (tmp_path / "a" / "out").exists()


def test_inputs_that_do_not_belong_together(plan, tmp_path):
    config = plan("a")
    other = pool(tmp_path / "other", (1,))
    with pytest.raises(DistillError, match=r"was made on other data than .*: predict on this pool"):
        distill.run(dataclasses.replace(config, pool=other.uri))
    with pytest.raises(DistillError, match="has no labelled picture: give the data set the detector was trained on"):
        distill.run(dataclasses.replace(config, labelled=config.pool))
    labels = write_predictions(tmp_path / "l", Dataset(config.pool), findings, classes=(ClassInfo(3, "dog"),))
    with pytest.raises(DistillError, match=r"classes \['dog'\] are not those of .*\['dog', 'cat & <mouse>'\]"):
        distill.run(dataclasses.replace(config, predictions=labels))


def test_a_prediction_of_another_picture_is_refused(plan):
    config = plan("a", found=lambda one: dataclasses.replace(findings(one), image_id=one.image_id + 1))
    with pytest.raises(DistillError, match="picture 0 of the pool has id 20, its prediction 21: predict again"):
        distill.run(config)
    assert not storage.is_file(*storage.open_uri(f"{config.out}/manifest.json"))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.8, 0.7), (0.3, 1.1)])
def test_scores_out_of_range(low, high):
    with pytest.raises(ValueError, match=r"needs 0 <= min-score <= max-score <= 1, got"):
        DistillConfig("p", "q", "l", "o", min_score=low, max_score=high)

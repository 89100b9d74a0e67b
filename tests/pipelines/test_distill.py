"""The distill command on data sets in memory's reach: what is written, refused, and left as it was, without Ray."""

import contextlib
import dataclasses
import json
import pickle
import weakref

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO

from pipelines import commit, distill, distill_inputs, pseudo_labels, storage
from pipelines.coco_export import to_coco
from pipelines.dataset import Dataset, DatasetError
from pipelines.distill_config import DistillConfig, Leaked
from pipelines.distill_inputs import DistillError
from pipelines.manifest import ClassInfo, ManifestError
from pipelines.predictions import PredictionsError
from pipelines.pseudo_labels import Weight, dropped_name
from tests.pipelines import tiny_shards
from tests.pipelines.tiny_shards import CLASSES, detected, thing, write_dataset, write_predictions


def record(number, *arguments, **changes):
    """A record whose picture is its own."""
    return tiny_shards.record(number, *arguments, sha256=commit.sha256_of(b"%d" % number), **changes)


def ranked(pictures, label):
    """Keys of all detections of a class with a pixel, best first, by the plain way."""
    keys = []
    for found in pictures:
        rows = sorted(
            (-score, int(of), tuple(box), rle, int(area))
            for score, of, box, rle, area in zip(
                found.scores.tolist(), found.labels, found.boxes_xyxy.tolist(), found.rles, found.areas, strict=True
            )
        )
        keys += [(row[0], found.image_id, rank) for rank, row in enumerate(rows) if row[1] == label and row[4]]
    return sorted(keys)


def kept_by_the_rule(pictures, label, wanted, floor, cap):
    """Scores of the best `wanted`, those below the floor out, those from the cap on in; best first."""
    keys = ranked(pictures, label)
    scores = [-key[0] for key in keys]
    return [score for place, score in enumerate(scores) if (place < wanted and score >= floor) or score >= cap]


def pool(folder, split=(3, 0, 4), first=20):
    rows = []
    for count in split:
        rows.append([dataclasses.replace(record(i), labelled=False) for i in range(first, first + count)])
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


def by_one_process(make_work, name, count):
    """Each shard's facts after a way through pickle and JSON, as Ray brings them, the last shard first."""
    for shard in reversed(range(count)):
        work = pickle.loads(pickle.dumps(make_work()))
        yield shard, json.loads(json.dumps(work(shard)))


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Runs distill on a pool in given shards; shards are written one by one here, not by Ray."""
    monkeypatch.setattr(distill, "_facts", by_one_process)
    monkeypatch.setattr(distill, "ray_session", contextlib.nullcontext)
    people = labelled(tmp_path / "labelled")

    def prepared(name, split=(3, 0, 4), found=findings, first=20, **options):
        pictures = pool(tmp_path / name / "pool", split, first)
        labels = write_predictions(tmp_path / name / "labels", pictures, found)
        return DistillConfig(labels, pictures.uri, people.uri, str(tmp_path / name / "out"), **options)

    return prepared


def test_a_pool_becomes_a_data_set(plan):
    config = plan("a", min_score=0.3)
    result = distill.run(config)
    pictures = [findings(record(20 + i)) for i in range(7)]
    for label, (row, rate) in enumerate(zip(result.selection, (4 / 3, 1 / 3), strict=True)):
        assert (row.labelled_rate, row.wanted) == (pytest.approx(rate), round(7 * rate))
        assert (row.found, row.few_labels) == (len(ranked(pictures, label)), True)
        kept = kept_by_the_rule(pictures, label, row.wanted, 0.3, 1.0)
        assert row.kept == len(kept) > 0
        dataset = Dataset(config.out)
        written = [i for n in range(len(dataset)) for i in dataset.record(n).instances if i.label == label]
        labels = [i.score for i in written if not i.ignore]
        assert sorted(labels, reverse=True) == pytest.approx(kept)
        assert all(row.uncertain_from <= i.score for i in written if i.ignore)
        assert row.uncertain == sum(i.ignore for i in written)
    made = result.manifest
    assert made.classes == CLASSES
    assert made.class_counts == tuple(row.kept for row in result.selection)
    assert made.crowds == sum(row.uncertain for row in result.selection)
    assert made.labelled_images == made.rows_written == len(Dataset(config.out)) < 7
    assert made.source["kind"] == "distill"
    counts = json.loads(made.source["pictures"])
    assert (counts["labelled"], sum(counts.values())) == (made.rows_written, 7)
    assert json.loads(made.source["selection"]) == [row._asdict() for row in result.selection]


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

    config = plan("a", min_score=floor, max_score=floor, uncertain=1.0, found=on_the_floor)
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


def test_uncertain_detections_become_ignored_regions(plan):
    config = plan("a", min_score=0.75)
    distill.run(config)
    found = [i for of_picture in instances_by_picture(config).values() for i in of_picture]
    assert {i.ignore for i in found} == {True, False}
    for instance in found:
        assert instance.crowd == instance.ignore == (instance.score < 0.75)
        assert instance.score >= 0.375
    none = plan("b", min_score=0.75, uncertain=1.0)
    distill.run(none)
    assert not any(i.ignore for of_picture in instances_by_picture(none).values() for i in of_picture)


def test_a_picture_nobody_could_look_at_is_no_empty_one(plan):
    def unseen(one):
        return dataclasses.replace(findings(one), rejected="corrupt") if one.image_id == 22 else findings(one)

    config = plan("a", keep_empty=True, found=unseen)
    made = distill.run(config).manifest
    assert json.loads(made.source["pictures"])["unseen"] == 1
    assert 22 not in instances_by_picture(config)


def test_labels_that_views_dispute_are_shown(plan, tmp_path):
    def disputed(one):
        found = findings(one)
        return dataclasses.replace(found, view_agreement=np.full(len(found.scores), 0.5, np.float32))

    distill.run(plan("a", found=disputed))
    distill.run(plan("b"))
    pages = [(tmp_path / name / "out" / "report.html").read_text() for name in "ab"]
    assert ["views agree on least" in page for page in pages] == [True, False]


def test_equal_scores_are_split_by_picture(plan):
    """Nine dogs are wanted of fourteen of one score: those of the pictures with the lowest ids."""

    def equal(one):
        return detected(one, [(2, 2, 12, 12), (1, 1, 9, 9)], scores=[0.9, 0.9])

    config = plan("a", found=equal, uncertain=1.0)
    row = distill.run(config).selection[0]
    assert (row.wanted, row.kept, row.threshold) == (9, 9, pytest.approx(0.9))
    kept = {n: len(found) for n, found in instances_by_picture(config).items()}
    assert kept == {20: 2, 21: 2, 22: 2, 23: 2, 24: 1}
    # Of the last picture the one whose box comes first.
    assert instances_by_picture(config)[24][0].box_xyxy == (1.0, 1.0, 9.0, 9.0)


def test_weights_are_one_or_the_score(plan):
    plain, scored = plan("a"), plan("b", weight=Weight.SCORE)
    for config in (plain, scored):
        distill.run(config)
    assert {i.loss_weight for found in instances_by_picture(plain).values() for i in found} == {1.0}
    assert all(i.loss_weight == i.score for found in instances_by_picture(scored).values() for i in found)


def test_coco_files_load_and_are_the_same_bytes_again(plan, tmp_path, capsys):
    first, second = plan("a", keep_empty=True), plan("b", (7,), keep_empty=True)
    for config in (first, second):
        distill.run(config)
    outs = [tmp_path / name / "out" for name in "ab"]
    for name in ("instances.json", "results.json"):
        assert outs[0].joinpath(name).read_bytes() == outs[1].joinpath(name).read_bytes(), name
    truth = COCO(str(outs[0] / "instances.json"))
    dataset = Dataset(str(outs[0]))
    plain = {row["id"]: row for row in to_coco(dataset)["annotations"]}
    assert truth.anns.keys() == plain.keys()
    for number, row in truth.anns.items():
        assert {key: row[key] for key in plain[number]} == plain[number]
        assert truth.annToMask(row).sum() == row["area"]
        assert (row["source"], row["round"], row["iscrowd"]) == ("pseudo", 1, row["ignore"])
    total = sum(len(findings(record(20 + i)).scores) for i in range(7))
    assert len(truth.loadRes(str(outs[0] / "results.json")).anns) == total
    noted = json.loads(dataset.manifest.source["files"])
    assert noted["instances.json"] == commit.sha256_of((outs[0] / "instances.json").read_bytes())


def test_what_views_say_of_a_label_is_kept(plan, tmp_path):
    def seen_in_views(one):
        found = findings(one)
        count = len(found.scores)
        points = np.tile(np.array([[10.5, 20.5, 0.25], [30.5, 9.5, 0.75]], np.float32), (count, 1, 1))
        return dataclasses.replace(
            found, view_agreement=np.full(count, 0.5, np.float32), box_spread=np.full(count, 0.125, np.float32),
            mask_agreement=np.full(count, 0.75, np.float32), keypoints=points,
        )  # fmt: skip

    config = plan("a", found=seen_in_views, keep_empty=True)
    distill.run(config)
    for instance in (i for found in instances_by_picture(config).values() for i in found):
        assert (instance.view_agreement, instance.box_spread, instance.mask_score) == (0.5, 0.125, 0.75)
        has_points = bool(CLASSES[instance.label].keypoints)
        assert (instance.keypoint_scores is not None) is has_points
        assert not has_points or instance.keypoint_scores.tolist() == [0.25, 0.75]
    body = json.loads((tmp_path / "a" / "out" / "instances.json").read_text())
    for row in body["annotations"]:
        assert (row["view_agreement"], row["box_spread"], row["mask_score"]) == (0.5, 0.125, 0.75)
        assert row["keypoint_scores"] == ([0.25, 0.75] if row["category_id"] == 7 else None)
    for row in body["images"]:
        own = instances_by_picture(config)[row["id"]]
        assert (row["n_views_ok"], row["n_kept"]) == (1, sum(not i.ignore for i in own))
        assert row["n_ignored"] == len(own) - row["n_kept"]
        assert (row["status"], row["hit_detection_cap"]) == ("ok" if row["n_kept"] else "empty", None)
    assert {row["status"] for row in body["images"]} == {"ok", "empty"}
    assert body["info"]["versions"]["torch"]
    results = json.loads((tmp_path / "a" / "out" / "results.json").read_text())
    assert {(row["view_agreement"], row["box_spread"], row["mask_score"]) for row in results} == {(0.5, 0.125, 0.75)}


def test_a_manifest_follows_from_its_inputs(plan, tmp_path):
    config = plan("a")
    first = distill.run(config).manifest
    second = distill.run(dataclasses.replace(config, out=str(tmp_path / "again"))).manifest
    assert second == first
    report = (tmp_path / "again" / "report.json").read_bytes()
    assert json.loads(first.source["files"])["report.json"] == commit.sha256_of(report)


def test_every_detection_is_a_label_or_dropped_with_a_reason(plan, tmp_path):
    config = plan("a", min_score=0.75)
    result = distill.run(config)
    rows = []
    for number in range(3):
        with pa.OSFile(str(tmp_path / "a" / "out" / dropped_name(number))) as file:
            rows += pa.ipc.open_file(file).read_all().to_pylist()
    pictures = [row for row in rows if row["label"] is None]
    lost = [row for row in rows if row["label"] is not None]
    total = sum(len(findings(record(20 + i)).scores) for i in range(7))
    written = sum(len(found) for found in instances_by_picture(config).values())
    assert written + len(lost) == total
    assert len(pictures) + result.manifest.rows_written == 7
    assert {row["reason"] for row in pictures} == {"nothing_kept"}
    # Uncertain ones of a picture that is left out for want of a label go with it.
    assert {row["reason"] for row in lost} == {"below_threshold", "nothing_kept"}
    assert all(row["score"] < row["threshold"] for row in lost)
    made = result.manifest
    assert (made.rows_in, made.rows_rejected) == (7, len(pictures))
    assert (made.instances_in, made.instances_kept, made.instances_rejected) == (total, written, len(lost))
    counts = json.loads(made.source["detections"])
    assert counts["label"] + counts["uncertain"] == written
    assert sum(counts.values()) == total


def test_detections_on_known_pictures_are_accounted_for(plan, tmp_path):
    val = write_dataset(tmp_path / "val", [[record(21)]])
    made = distill.run(plan("a", val=val.uri, leaked=Leaked.LEAVE_OUT)).manifest
    assert json.loads(made.source["detections"])["leaked"] == len(findings(record(21)).scores) > 0
    assert (made.rows_in, made.instances_in) == (7, sum(len(findings(record(20 + i)).scores) for i in range(7)))


def test_detections_that_are_lost_are_noticed(plan, tmp_path):
    config = plan("a")
    labels = write_predictions(tmp_path / "more", Dataset(config.pool), findings, detections=99)
    with pytest.raises(ManifestError, match="does not add up: instances_in is 99"):
        distill.run(dataclasses.replace(config, predictions=labels))


def test_facts_are_let_go_as_they_are_added_up(plan, monkeypatch):
    """What the driver holds does not grow with the number of shards."""
    alive, most = weakref.WeakSet(), []

    class Fact(dict):
        __hash__ = object.__hash__

    def watched(make_work, name, count):
        for shard in range(count):
            fact = Fact(json.loads(json.dumps(make_work()(shard))))
            alive.add(fact)
            most.append(len(alive))
            yield shard, fact

    monkeypatch.setattr(distill, "_facts", watched)
    distill.run(plan("a", (1,) * 7))
    assert max(most) <= 2


def test_a_task_opens_nothing_but_its_shards(plan, monkeypatch):
    """The index holds every picture of the pool: a task that reads it makes the whole quadratic."""
    config, opened = plan("a"), []
    read = pseudo_labels.Writer.write

    def write(writer, shard):
        with monkeypatch.context() as patch:
            patch.setattr(Dataset, "__init__", lambda *_: pytest.fail("opened a data set"))
            opened.append(shard)
            return read(writer, shard)

    monkeypatch.setattr(pseudo_labels.Writer, "write", write)
    distill.run(config)
    assert opened == [2, 1, 0]


def test_a_damaged_shard_of_the_pool_is_found(plan, tmp_path):
    config = plan("a")
    path = tmp_path / "a" / "pool" / "shard-00002.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 40] ^= 1  # in a picture
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="does not match its sha256"):
        distill.run(config)


def test_naming_the_teacher_is_another_data_set(plan, monkeypatch):
    config = plan("a")
    inputs = distill_inputs.open_inputs(config)
    assert distill_inputs.identity(config, inputs) != distill_inputs.identity(config, inputs._replace(teacher=object()))


def test_ids_are_exact_wherever_they_are_read(plan):
    """JSON readers hold numbers as float64, and a picture's own id may be as large as int64."""
    large = 2**62

    def renumbered(one):
        return dataclasses.replace(findings(record(one.image_id - large)), image_id=one.image_id)

    config = plan("a", found=renumbered, first=large + 20, min_score=0.0)
    distill.run(config)
    ids = [i.id for found in instances_by_picture(config).values() for i in found]
    assert len(set(map(float, ids))) == len(ids) > 0
    assert max(ids) < 2**53


def test_only_classes_with_keypoints_get_them(plan):
    def with_points(one):
        found = findings(one)
        points = np.tile(np.array([[10.5, 20.5, 0.3], [30.5, 9.5, 0.8]], np.float32), (len(found.scores), 1, 1))
        return dataclasses.replace(found, keypoints=points)

    for name, least, first in (("a", 0.0, [10, 20, 2]), ("b", 0.5, [0, 0, 0])):
        config = plan(name, found=with_points, min_keypoint_score=least)
        distill.run(config)
        found = [i for of_picture in instances_by_picture(config).values() for i in of_picture]
        assert {i.label for i in found} == {0, 1}
        assert all(i.keypoints is None for i in found if not CLASSES[i.label].keypoints)
        assert all(i.keypoints.tolist() == [first, [30, 9, 2]] for i in found if CLASSES[i.label].keypoints)


def test_a_review_of_boxes_alone(plan, tmp_path):
    """A detector without masks: rectangles for Label Studio, boxes for the others, and the report is drawn."""

    def boxes(one):
        return dataclasses.replace(findings(one), rles=None, mask_agreement=None)

    distill.run(plan("a", found=boxes, review=3))
    out = tmp_path / "a" / "out"
    assert (out / "report.html").is_file()
    tasks = json.loads((out / "review" / "label_studio.json").read_text())
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert {len(region["value"]["points"]) for region in regions} == {4}
    rows = json.loads((out / "review" / "cvat.json").read_text())["annotations"]
    assert len(rows) == len(regions)
    assert not any("segmentation" in row for row in rows)


def test_labelled_and_validation_pictures_in_the_pool(plan, tmp_path):
    val = write_dataset(tmp_path / "val", [[record(21), record(90)]])
    with pytest.raises(DistillError, match=r"1 pictures \(such as 21.jpg\) of .* are labelled or validation pictures"):
        distill.run(plan("a", val=val.uri))
    config = plan("b", val=val.uri, leaked=Leaked.LEAVE_OUT)
    result = distill.run(config)
    assert (result.leak.count, result.leak.examples) == (1, ("21.jpg",))
    assert 21 not in instances_by_picture(config)
    assert json.loads(result.manifest.source["pictures"])["leaked"] == 1
    assert result.selection[0].wanted == round(6 * 4 / 3)
    both = write_dataset(tmp_path / "both", [[record(2), record(91)]])
    with pytest.raises(DistillError, match=r"1 pictures \(such as 2.jpg\) of .*labelled are validation pictures"):
        distill.run(plan("c", val=both.uri))


def test_the_report_and_the_review_show_the_labels(plan, tmp_path):
    distill.run(plan("a", review=2))
    out = tmp_path / "a" / "out"
    page = (out / "report.html").read_text()
    assert "The best labels" in page
    assert "nearest their threshold" in page
    assert "round 1" in page
    body = json.loads((out / "report.json").read_text())
    assert sum(body["pictures"].values()) == 7
    assert sum(map(sum, body["histograms"])) == sum(row["found"] for row in body["selection"])
    assert len(json.loads((out / "review" / "label_studio.json").read_text())) == 2


def test_thresholds_are_chosen_again_from_what_was_predicted(plan, tmp_path):
    config = plan("a")
    first = distill.run(config).selection
    second = distill.run(dataclasses.replace(config, out=str(tmp_path / "again"), min_score=0.75)).selection
    assert [row.threshold for row in second] != [row.threshold for row in first]
    assert [row.found for row in second] == [row.found for row in first]


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
    with pytest.raises(PredictionsError, match=r"picture \d of the pool has id 2\d, its prediction 2\d: predict"):
        distill.run(config)
    assert not storage.is_file(*storage.open_uri(f"{config.out}/manifest.json"))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="needs 0 < uncertain <= 1, got 0"):
        DistillConfig("p", "q", "l", "o", uncertain=0)
    with pytest.raises(ValueError, match="needs review >= 0, got -1"):
        DistillConfig("p", "q", "l", "o", review=-1)
    with pytest.raises(ValueError, match="--audit needs --teacher"):
        DistillConfig("p", "q", "l", "o", audit=True)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.8, 0.7), (0.3, 1.1)])
def test_scores_out_of_range(low, high):
    with pytest.raises(ValueError, match=r"needs 0 <= min-score <= max-score <= 1, got"):
        DistillConfig("p", "q", "l", "o", min_score=low, max_score=high)

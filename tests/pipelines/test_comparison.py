"""Which pictures are compared, and how they stand on the page."""

import re

import pytest

from pipelines.comparison import Judged, Predicted, add_comparisons, choose, judge
from pipelines.html import Page
from pipelines.picture_score import PictureScore
from pipelines.predictions import PredictionsError, PredictionsManifest
from tests.pipelines.tiny_shards import detected, record, thing, write_dataset, write_predictions

BOX = (10, 10, 30, 30)


def judged(row, *values, objects=1):
    return Judged(row, tuple(PictureScore(value, objects, round(objects * value), 0) for value in values))


def rows(groups):
    return [[one.row for one in group.pictures] for group in groups]


def test_best_and_worst_of_one_run():
    groups = choose([judged(row, row / 10) for row in range(11)], ["run"], count=3)
    assert [group.heading for group in groups] == ["Best pictures of run", "Worst pictures of run"]
    assert rows(groups) == [[10, 9, 8], [0, 1, 2]]


def test_two_runs_also_show_where_they_differ_most():
    marks = [(1.0, 1.0), (0.9, 0.9), (0.2, 0.7), (0.6, 0.6), (0.8, 0.4), (0.0, 0.0), (0.1, 0.1)]
    groups = choose([judged(row, *pair) for row, pair in enumerate(marks)], ["teacher", "student"], count=2)
    assert groups[0].heading == "Best pictures of student"
    assert groups[2].heading == "Other pictures on which teacher and student differ most"
    assert rows(groups) == [[0, 1], [5, 6], [2, 4]]


def test_the_last_run_decides():
    groups = choose([judged(0, 1.0, 0.0), judged(1, 0.0, 1.0)], ["a", "b"])
    assert rows(groups) == [[1], [0]]


@pytest.mark.parametrize("count", range(6))
def test_no_picture_is_shown_twice(count):
    groups = choose([judged(row, 0.5, row / 5) for row in range(count)], ["a", "b"])
    shown = [row for group in rows(groups) for row in group]
    assert len(shown) == len(set(shown))
    assert all(rows(groups))


def test_of_pictures_about_equally_good_those_with_more_objects_come_first():
    groups = choose([judged(0, 0.99), judged(1, 0.96, objects=5), judged(2, 0.1), judged(3, 0.1)], ["a"])
    assert rows(groups)[0] == [1, 0]


def dataset_of(tmp_path):
    pictures = [record(n, [thing(n, BOX)]) for n in range(4)]
    return write_dataset(
        tmp_path / "data",
        [pictures[:3], [pictures[3], record(4), record(5, [thing(5, BOX)], labelled=False)]],
    )


def predicted(tmp_path, dataset, found, name="run"):
    uri = write_predictions(tmp_path / name, dataset, found)
    return Predicted(name, uri, PredictionsManifest.load(uri))


def only_odd(one):
    return detected(one, [BOX] if one.image_id % 2 else [])


def test_labelled_pictures_with_something_to_see_are_judged(tmp_path):
    dataset = dataset_of(tmp_path)
    found = judge(dataset, [predicted(tmp_path, dataset, only_odd)])
    assert [one.row for one in found] == [0, 1, 2, 3]
    assert [one.scores[0].found for one in found] == [0, 1, 0, 1]
    assert [one.value(0) for one in found] == pytest.approx([0, 1, 0, 1], abs=0.01)


def test_the_page_has_each_picture_as_annotated_and_as_each_run_saw_it(tmp_path):
    dataset, page = dataset_of(tmp_path), Page("page")
    runs = [
        predicted(tmp_path, dataset, only_odd, "teacher"),
        predicted(tmp_path, dataset, lambda one: detected(one, [BOX], scores=[0.4]), "student"),
    ]
    add_comparisons(page, dataset, runs)
    source = page.render()
    cards = re.findall(r"<figure>(.*?)</figure>", source)
    assert len(cards) == 4
    assert all(card.count("<img ") == 3 for card in cards)
    spans = re.findall(r"<span>(.*?)</span>", next(card for card in cards if ">1.jpg<" in card))
    assert spans[0] == "annotated: 1 object"
    assert re.fullmatch(r"teacher \d\.\d\d: 1 of 1 found, 0 false", spans[1])
    assert spans[2] == "student 0.00: 0 of 1 found, 0 false"
    assert "score of 0.5 or more are drawn and counted" in source
    assert "4 of 6 pictures were marked" in source


def test_a_broken_picture_is_named(tmp_path):
    pictures = [record(0, [thing(0, BOX)], image=b"BM broken"), record(1, [thing(1, BOX)])]
    dataset, page = write_dataset(tmp_path / "data", [pictures]), Page("page")
    add_comparisons(page, dataset, [predicted(tmp_path, dataset, only_odd)])
    assert "0.jpg cannot be shown: corrupt" in page.render()
    assert page.render().count("<figure>") == 1


def test_predictions_in_another_order_are_refused(tmp_path):
    dataset = dataset_of(tmp_path)
    run = predicted(tmp_path, dataset, lambda one: detected(record(one.image_id + 9), [BOX]))
    with pytest.raises(PredictionsError, match="have 9 where the data set has picture 0: predict again"):
        judge(dataset, [run])

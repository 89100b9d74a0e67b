"""The report's tables and charts, with all parts and with few."""

import re

import pytest

from pipelines.coco_metrics import STAT_NAMES, Metrics
from pipelines.manifest import ClassInfo
from pipelines.report import ReportError, RunReport, save_report
from tests.pipelines.tiny_shards import CLASSES, detected, record, thing, write_dataset, write_predictions

BOX = (10, 10, 30, 30)
DOG, CAT = CLASSES[0].name, CLASSES[1].name


def metrics(value, per_class=None):
    scores = {DOG: value, CAT: -1.0} if per_class is None else per_class
    return Metrics(**dict.fromkeys(STAT_NAMES, value), per_class=scores)


def run(name="run", **changes):
    settings = {"curves": {}, "box": None, "mask": None, "data": "", "predictions": "", "facts": {}} | changes
    return RunReport(name=name, **settings)


def page_of(tmp_path, *runs, **settings):
    path = tmp_path / "report.html"
    assert save_report("title", list(runs), str(path), **settings) == str(path)
    return path.read_text("utf-8")


def tables(source):
    """Cells of each table; bold ones in stars."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", source):
        rows = re.findall(r"<tr>(.*?)</tr>", table)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
        found.append([[re.sub("</?b>", "*", cell) for cell in row] for row in cells])
    return found


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", [[record(1, [thing(1, BOX)]), record(2, [thing(2, BOX, 1)])]])


def test_two_runs_side_by_side(tmp_path):
    source = page_of(
        tmp_path,
        run("teacher", box=metrics(0.2514), mask=metrics(0.30, {DOG: 0.25, CAT: 0.5})),
        run("student", box=metrics(0.4), mask=metrics(0.3001, {DOG: 0.75, CAT: 0.25})),
        intro="An introduction.",
    )
    accuracy, by_class = tables(source)
    assert accuracy == [
        ["run", "box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75"],
        ["teacher", "25.1", "25.1", "25.1", "30.0", "30.0", "30.0"],
        ["student", "*40.0*", "*40.0*", "*40.0*", "30.0", "30.0", "30.0"],
    ]
    assert by_class == [
        ["class", "objects", "box AP, teacher", "box AP, student", "mask AP, teacher", "mask AP, student"],
        [DOG, "&ndash;", "25.1", "*40.0*", "25.0", "*75.0*"],
        ["cat &amp; &lt;mouse&gt;", "&ndash;", "&ndash;", "&ndash;", "*50.0*", "25.0"],
    ]
    assert "<p>An introduction.</p>" in source


def test_one_run_of_boxes_alone(tmp_path):
    accuracy, by_class = tables(page_of(tmp_path, run(box=metrics(0.5))))
    assert accuracy == [["run", "box AP", "box AP50", "box AP75"], ["run", "50.0", "50.0", "50.0"]]
    assert by_class[0] == ["class", "objects", "box AP"]


def test_a_run_with_nothing_has_a_page(tmp_path):
    source = page_of(tmp_path, run())
    assert "No AP was measured." in source
    assert tables(source) == []


def test_curves_overlay_the_runs_in_a_fixed_order(tmp_path):
    points = [(20, 1.0), (40, 0.5)]
    first = {name: points for name in ("learning_rate", "loss/mask", "loss/new", "step", "val/AP", "loss/total")}
    source = page_of(tmp_path, run("a", curves=first), run("b", curves={"loss/total": points}))
    titles = re.findall(r'<figure class="chart"><figcaption>(.*?)</figcaption>', source)
    assert titles == ["Total loss", "Mask loss", "Learning rate", "loss/new", "val/AP"]
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', source)
    assert legends[0].count("<b>0.5</b>") == 2
    assert 'class="c1">b <b>no values</b>' in legends[1]


def test_facts_and_seconds(tmp_path):
    source = page_of(
        tmp_path,
        run("a", facts={"steps": "300", "data": "x"}),
        run("b", facts={"steps": "600"}),
        seconds={"train": 100.25, "predict": 2},
    )
    facts, seconds = tables(source)
    assert facts == [["", "a", "b"], ["steps", "300", "600"], ["data", "x", "&ndash;"]]
    assert seconds == [["stage", "seconds"], ["train", "100.2"], ["predict", "2.0"], ["total", "*102.2*"]]


def test_pictures_and_object_counts_come_from_the_data(tmp_path, dataset):
    uri = write_predictions(tmp_path / "found", dataset, lambda one: detected(one, [BOX]))
    source = page_of(
        tmp_path,
        run("a", box=metrics(0.5), data=dataset.uri, predictions=uri),
        run("b", data=dataset.uri),
    )
    assert [row[:2] for row in tables(source)[1][1:]] == [[DOG, "1"], ["cat &amp; &lt;mouse&gt;", "1"]]
    assert "Best pictures of a" in source
    assert source.count("<img ") == 4


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_runs_need_names_of_their_own(tmp_path, names):
    with pytest.raises(ReportError, match=r"runs are \[.*\], wanted one or more with a name each"):
        save_report("title", [run(name) for name in names], str(tmp_path / "x.html"))


def test_runs_on_different_data_are_refused(tmp_path, dataset):
    other = write_dataset(tmp_path / "other", [[record(1)]])
    with pytest.raises(ReportError, match=r"measured on .*data and on .*other, wanted one data set"):
        page_of(tmp_path, run("a", data=dataset.uri), run("b", data=other.uri))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "other"}, "are on other data than .*data: predict again"),
        ({"shards": ()}, "are on other data than .*data: predict again"),
        ({"classes": (ClassInfo(1, "cow"),)}, r"have the classes \['cow'\], .* has \['dog', "),
    ],
)
def test_predictions_of_something_else_are_refused(tmp_path, dataset, changes, message):
    uri = write_predictions(tmp_path / "found", dataset, lambda one: detected(one, []), **changes)
    with pytest.raises(ReportError, match=message):
        page_of(tmp_path, run(data=dataset.uri, predictions=uri))


def test_a_folder_cannot_be_the_page(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write the page .*: a folder is there; give a file such as"):
        save_report("title", [run()], str(tmp_path))

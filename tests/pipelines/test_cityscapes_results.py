"""Cityscapes' protocol: the official scripts read our results, and score them as they should."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from pipelines import cityscapes_results, evaluate, masks
from pipelines.cityscapes_results import CityscapesResultsError
from pipelines.evaluate import EvaluateConfig, EvaluationError, Protocol
from pipelines.predictions import PicturePrediction, PredictionsManifest
from pipelines.prepare_config import PrepareCityscapes
from tests.pipelines import tiny_cityscapes, tiny_shards
from tests.pipelines.plain_prepare import prepared


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cityscapes")
    tiny_cityscapes.write(folder, split="val", size_hw=(256, 512))
    return folder


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    return prepared(PrepareCityscapes(root=str(root), split="val", out=str(tmp_path_factory.mktemp("data"))))


def of_truth(record, keep=lambda instance: not instance.ignore, scores=None):
    things = [i for i in record.instances if keep(i)]
    return PicturePrediction(
        record.image_id, record.height, record.width, np.array([i.box_xyxy for i in things], np.float32).reshape(-1, 4),
        np.array(scores or [0.5 + 0.01 * k for k in range(len(things))], np.float32),
        np.array([i.label for i in things], np.int64), tuple(i.rle for i in things),
        np.array([i.area for i in things], np.int64), np.ones(len(things), np.float32),
        np.zeros(len(things), np.float32),
    )  # fmt: skip


def predicted(data, folder, found=of_truth):
    return tiny_shards.write_predictions(folder, data, found, classes=data.manifest.classes)


def test_results_are_in_the_official_format(data, tmp_path):
    uri = predicted(data, tmp_path / "p")
    folder = tmp_path / "results"
    for _ in range(2):  # an earlier run's results do not stay
        names = cityscapes_results.write_results(data, PredictionsManifest.load(uri), uri, folder)
        (folder / "old_000000_000000_pred.txt").write_text("")
    assert sorted(names) == [
        "aachen/aachen_000000_000019",
        "aachen/aachen_000001_000019",
        "bochum/bochum_000000_000019",
    ]
    for index, name in enumerate(names):
        record = data.record(index)
        lines = (folder / f"{name.split('/')[1]}_pred.txt").read_text().splitlines()
        things = [i for i in record.instances if not i.ignore]
        assert len(lines) == len(things) > 0
        for line, instance in zip(lines, things, strict=True):
            file, label, score = line.split(" ")
            assert int(label) == instance.id // 1000
            assert 0.5 <= float(score) < 0.7
            bitmap = np.array(Image.open(folder / file).convert("L")) != 0
            np.testing.assert_array_equal(bitmap, masks.rasterise(instance.rle, 256, 512))


def test_a_picture_that_could_not_be_looked_at_has_no_results(data, tmp_path):
    def found(record):
        made = of_truth(record, keep=lambda instance: record.image_id != data.image_ids[1])
        return dataclasses.replace(made, rles=None, rejected="corrupt") if not len(made.scores) else made

    uri = predicted(data, tmp_path / "p", found)
    names = cityscapes_results.write_results(data, PredictionsManifest.load(uri), uri, tmp_path / "results")
    sizes = [(tmp_path / "results" / f"{name.split('/')[1]}_pred.txt").stat().st_size for name in names]
    assert [size > 0 for size in sizes] == [True, False, True]


def official(data, root, folder, found):
    pytest.importorskip("cityscapesscripts", reason="needs pip install maskray[cityscapes]")
    return evaluate.measure_cityscapes(data, predicted(data, folder, found), "")


def test_the_truth_scores_one_and_groups_do_not_count(data, root, tmp_path):
    found = official(data, root, tmp_path / "p", of_truth)
    assert (found.AP, found.AP50) == (1.0, 1.0)
    present = {data.manifest.classes[i.label].name for k in range(3) for i in data.record(k).instances
               if not i.ignore and i.area >= 100}  # fmt: skip
    assert {name: value for name, value in found.per_class.items() if value >= 0} == dict.fromkeys(present, 1.0)
    assert set(found.per_class) == set(data.manifest.names)
    # What is found inside a group is neither right nor wrong.
    assert official(data, root, tmp_path / "q", lambda record: of_truth(record, lambda i: True)).AP == 1.0


def test_wrong_classes_score_nothing_and_half_the_objects_less_than_all(data, root, tmp_path):
    def wrong(record):
        made = of_truth(record)
        return dataclasses.replace(made, labels=(made.labels + 1) % 8)

    assert official(data, root, tmp_path / "p", wrong).AP < 0.2
    half = official(data, root, tmp_path / "q", lambda record: of_truth(record, lambda i: not i.ignore and i.id % 2))
    assert 0 < half.AP < 0.9


def test_what_the_protocol_cannot_measure_is_told(data, root, tmp_path):
    uri = predicted(data, tmp_path / "p")
    found = PredictionsManifest.load(uri)
    other = dataclasses.replace(found, classes=tiny_shards.CLASSES)
    with pytest.raises(CityscapesResultsError, match=r"the classes \['dog', .*\] are not Cityscapes'"):
        cityscapes_results.write_results(data, other, uri, tmp_path / "r")
    with pytest.raises(EvaluationError, match=r"--out is 's3://.*local folders alone"):
        evaluate.measure_cityscapes(data, "s3://bucket/p?region=x", "")
    with pytest.raises(ValueError, match="the cityscapes protocol measures a detector"):
        EvaluateConfig(annotations="a", results="b", protocol=Protocol.CITYSCAPES)
    known = importlib.util.find_spec("cityscapesscripts") is not None
    match = r"there is no .*instanceIds\.png: give the folder" if known else r"pip install 'maskray\[cityscapes\]'"
    with pytest.raises(CityscapesResultsError, match=match):
        evaluate.measure_cityscapes(data, uri, str(tmp_path))


def test_metrics_are_read_back(data, root, tmp_path):
    numbers = dict.fromkeys(
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"), 0.5
    )
    metrics = {"AP": 0.25, "AP50": 0.5, "per_class": {"car": 0.25}, "per_class50": {"car": 0.5}}
    body = {"box": numbers, "mask": numbers, "per_class": {"box": {}, "mask": {}}, "data": "d", "cityscapes": metrics}
    (tmp_path / "metrics.json").write_text(json.dumps(body))
    assert dataclasses.asdict(evaluate.load(str(tmp_path)).cityscapes) == metrics

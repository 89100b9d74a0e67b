"""The real commands on real pictures, on local Ray: prepare, train, resume, evaluate, predict, distill."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from model.settings import override
from pipelines import checkpoints, distill, distill_config, evaluate, predict, prepare, prepare_config, train
from pipelines.coco_export import to_coco
from pipelines.coco_metrics import evaluate as coco_metrics
from pipelines.dataset import Dataset
from pipelines.masks import rasterise
from pipelines.presets import preset
from pipelines.ray_session import RayError, ray_session
from pipelines.run_file import RunConflictError
from pipelines.shapes import ShapesConfig, generate
from pipelines.tracking import Tracker

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def coco_folder():
    root = os.environ.get("MASKRAY_TEST_DATA")
    if not root:
        pytest.skip("MASKRAY_TEST_DATA is not set: the real pictures are not here")
    return Path(root) / "coco"


@pytest.fixture(scope="module")
def local_ray():
    with ray_session(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def data(coco_folder, local_ray, tmp_path_factory):
    """Both splits prepared, and the validation pictures once more as an unlabelled pool."""
    out = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        prepare.run(
            prepare_config.PrepareCoco(
                images=str(coco_folder / f"{split}2017"),
                annotations=str(coco_folder / "annotations" / f"instances_{split}2017.json"),
                out=str(out / split),
                rows_per_shard=8,
            )
        )
    prepare.run(
        prepare_config.PrepareImages(images=str(coco_folder / "val2017"), out=str(out / "pool"), rows_per_shard=8)
    )
    return out


def small_run(data, out, steps, **settings):
    """A small detector at a small size: quick on two cores, and still real pictures with 80 classes."""
    config = preset("small_mask_rcnn_r18_fpn")
    values = {
        "train": [str(data / "train")],
        "out": str(out),
        "tracking_uri": f"sqlite:///{out}.db",
        "optim.steps": steps,
        "optim.batch": 4,
        "execution.workers": 2,
        "execution.report_every": 5,
        "execution.checkpoint_every": 10,
        **settings,
    }
    for path, value in values.items():
        config = override(config, path, value)
    return config


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    return train.run(small_run(data, out, 40)), out


@pytest.mark.parametrize(("split", "pictures", "objects", "crowds"), [("train", 26, 333, 5), ("val", 25, 213, 2)])
def test_prepared_data_equal_pycocotools(coco_folder, data, split, pictures, objects, crowds):
    dataset = Dataset(str(data / split))
    assert (len(dataset), dataset.manifest.instances_kept, dataset.manifest.crowds) == (pictures, objects, crowds)
    truth = COCO(str(coco_folder / "annotations" / f"instances_{split}2017.json"))
    category_ids = [info.id for info in dataset.manifest.classes]
    for index in range(len(dataset)):
        record = dataset.record(index)
        rows = truth.imgToAnns[record.image_id]
        assert [instance.id for instance in record.instances] == [row["id"] for row in rows]
        for instance, row in zip(record.instances, rows, strict=True):
            assert category_ids[instance.label] == row["category_id"]
            assert (instance.area, int(instance.crowd)) == (row["area"], row["iscrowd"])
            held = instance.polygons if instance.polygons is not None else instance.rle
            assert np.array_equal(rasterise(held, record.height, record.width), truth.annToMask(row))


def test_training_learns_on_real_pictures(teacher):
    result, _ = teacher
    losses = [value for _, value in Tracker(result.tracking_uri, result.tracking_run, "").history("loss/total")]
    assert len(losses) == 8
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


def test_the_same_command_goes_on_from_the_last_checkpoint(data, tmp_path):
    stopped = small_run(data, tmp_path / "run", 20)
    train.run(stopped)
    assert checkpoints.latest(str(tmp_path / "run")).step == 20
    again = train.run(stopped)
    assert again.checkpoint.endswith("step-00000020")
    with pytest.raises(RunConflictError, match=r"optim\.steps was 20, is 30"):
        train.run(small_run(data, tmp_path / "run", 30))


def test_evaluate_measures_the_checkpoint(data, teacher, tmp_path):
    result, _ = teacher
    config = evaluate.EvaluateConfig(checkpoint=result.checkpoint, data=str(data / "val"), out=str(tmp_path / "val"))
    found = evaluate.run(config)
    assert 0 <= found.mask.AP <= 1
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["box"]["AP"] == found.box.AP


def test_truth_fed_back_as_predictions_scores_one(data):
    truth = to_coco(Dataset(str(data / "val")))
    results = [
        {**{key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")}, "score": 1.0}
        for row in truth["annotations"]
        if not row["iscrowd"]
    ]
    for kind in ("bbox", "segm"):
        assert abs(coco_metrics(truth, results, kind).AP - 1.0) < 1e-9


def test_predict_then_distill_makes_a_training_set(data, teacher, tmp_path):
    result, _ = teacher
    pool, labels = str(data / "pool"), str(tmp_path / "labels")
    config = predict.PredictConfig(checkpoint=result.checkpoint, data=pool, out=labels)
    made = predict.run(config)
    assert made.pictures == 25
    assert predict.run(config) == made
    choose = distill_config.DistillConfig(
        predictions=labels, pool=pool, labelled=str(data / "train"), out=str(tmp_path / "pseudo"), min_score=0.05
    )
    chosen = distill.run(choose)
    assert chosen.manifest.class_counts == tuple(row.kept for row in chosen.selection)
    assert sum(chosen.manifest.class_counts) > 0
    assert distill.run(choose).manifest == chosen.manifest
    dataset = Dataset(str(tmp_path / "pseudo"))
    for index in range(len(dataset)):
        record = dataset.record(index)
        for instance in record.instances:
            size = {"size": [record.height, record.width], "counts": instance.rle}
            assert instance.area == coco_mask.area(size)
            assert (0.05 if not instance.ignore else 0.025) <= instance.score <= 1
    student = small_run(
        data, tmp_path / "student", 4, train=[str(data / "train"), str(tmp_path / "pseudo")], ratio=[3, 1]
    )
    assert train.run(student).checkpoint.endswith("step-00000004")


def test_too_few_cpus_is_one_clear_line(data, tmp_path):
    config = small_run(data, tmp_path / "run", 4, **{"optim.batch": 64, "execution.workers": 64})
    with pytest.raises(RayError, match=r"training with 64 workers of 1 CPU each does not fit .* room for 2"):
        train.run(config)


def test_a_detector_of_other_classes_is_refused(data, teacher, tmp_path):
    result, _ = teacher
    other = tmp_path / "other"
    prepare.run(prepare_config.PrepareCoco(**_two_classes(tmp_path), out=str(other)))
    with pytest.raises(evaluate.EvaluationError, match="use a checkpoint trained on these classes"):
        evaluate.run(evaluate.EvaluateConfig(checkpoint=result.checkpoint, data=str(other), out=str(tmp_path / "e")))
    config = dataclasses.replace(small_run(data, tmp_path / "r", 4), train=(str(other),), init=result.checkpoint)
    with pytest.raises(RunConflictError, match="train on data with the checkpoint's classes"):
        train.run(config)


def _two_classes(folder):
    generate(ShapesConfig(train=4, val=1, unlabelled=1, classes=3), folder / "shapes")
    annotations = folder / "shapes" / "annotations" / "instances_train2017.json"
    return {"images": str(folder / "shapes" / "train2017"), "annotations": str(annotations)}

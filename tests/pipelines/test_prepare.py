"""Raw pictures to a committed data set, on local Ray: accounts, conflicts, interruptions, real pictures."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from pycocotools import mask as coco_mask

from pipelines import inspect, masks, prepare, prepare_config
from pipelines.dataset import Dataset
from pipelines.ray_session import ray_session
from pipelines.rejections import Reason, Rejection
from pipelines.shard_task import PlanConflictError, attempt_name
from tests.pipelines import tiny_coco
from tests.pipelines.tiny_coco import annotation, image

pytestmark = pytest.mark.ray
DATA = os.environ.get("MASKRAY_TEST_DATA")
ROOT = str(Path(prepare.__file__).parents[1])


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with ray_session(num_cpus=2, object_store_memory=200 * 2**20):
        yield


def config(tmp_path, out="out", source=None, **options):
    images, file = tiny_coco.write(tmp_path, **(source or {}))
    return prepare_config.PrepareCoco(
        images=images, annotations=file, out=str(tmp_path / out), **{"rows_per_shard": 3, **options}
    )


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_a_data_set_is_made_and_the_same_command_returns_it(tmp_path):
    wanted = config(tmp_path)
    seen = []
    made = prepare.run(wanted, on_progress=seen.append)
    assert (made.rows_in, made.rows_written, made.instances_in, made.instances_kept) == (7, 7, 7, 7)
    assert [s.rows for s in made.shards] == [3, 3, 1]
    assert (made.names, made.class_counts) == (("dog", "cat"), (7, 0))
    assert seen[-1].rows_done == seen[-1].rows_total == 7
    before = files(wanted.out)
    assert set(before) == {
        "manifest.json",
        "index.ipc",
        "rejected.arrow",
        *(f"shard-0000{n}.arrow" for n in range(3)),
    }
    assert prepare.run(wanted) == made
    assert files(wanted.out) == before
    dataset = Dataset(wanted.out)
    records = {r.image_id: r for r in map(dataset.record, range(len(dataset)))}
    assert {i: len(r.instances) for i, r in records.items()} == {i: i % 3 for i in range(1, 8)}
    assert records[2].image == (Path(wanted.images) / "2.jpg").read_bytes()


def test_the_bytes_depend_on_source_and_seed_alone(tmp_path):
    one = prepare.run(config(tmp_path, "a"))
    assert prepare.run(config(tmp_path, "b")).hash == one.hash
    assert prepare.run(config(tmp_path, "c", seed=1)).hash != one.hash


def test_rejections_are_counted_kept_and_budgeted(tmp_path):
    broken = {
        "images": [
            *(image(i) for i in range(1, 8)),
            image(8),
            image(1),
            image(9, file_name="../x.jpg"),
            image(10),
        ],
        "annotations": [
            annotation(1, 1),
            annotation(2, 8),
            annotation(3, 99),
            annotation(4, 2, category_id=5),
        ],
    }
    wanted = config(tmp_path, source=broken)
    (Path(wanted.images) / "10.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(
        prepare.RejectionBudgetError, match=r"rejected so far, more than the share 0.01.*--max-rejected"
    ):
        prepare.run(wanted)
    assert not (Path(wanted.out) / "manifest.json").exists()
    made = prepare.run(config(tmp_path, source=broken | {"pictures": []}, max_rejected=1.0))
    assert (made.rows_in, made.rows_written, made.rows_rejected) == (11, 7, 4)
    assert (made.instances_in, made.instances_kept, made.instances_rejected) == (4, 1, 3)
    lost = Dataset(wanted.out).rejections()
    assert sorted(r.reason.value for r in lost) == sorted(
        reason.value
        for reason in (
            Reason.DUPLICATE_IMAGE_ID,
            Reason.MISSING_PICTURE,
            Reason.UNSAFE_FILE_NAME,
            Reason.CORRUPT_PICTURE,
            Reason.UNKNOWN_IMAGE_ID,
            Reason.UNKNOWN_CATEGORY,
        )
    )


def test_another_data_set_is_never_touched(tmp_path):
    wanted = config(tmp_path)
    prepare.run(wanted)
    before = files(wanted.out)
    with pytest.raises(PlanConflictError, match=r"holds another data set .* choose another --out"):
        prepare.run(config(tmp_path, seed=5))
    assert files(wanted.out) == before


class RaiseAt:
    def __init__(self, count):
        self.left = count

    def reach(self, point):
        self.left -= 1
        if self.left == 0:
            raise OSError(28, f"No space left on device at {point}")


def test_a_full_disk_at_any_write_of_the_driver_only_delays(tmp_path):
    whole = prepare.run(config(tmp_path, "whole")).hash
    for count in range(1, 43, 6):  # six points a file: claim, three parts, index, rejections, manifest
        wanted = config(tmp_path, f"out{count}")
        with pytest.raises(OSError, match="No space left"):
            prepare.run(wanted, faults=RaiseAt(count))
        assert prepare.run(wanted).hash == whole
        assert files(wanted.out).keys() == files(tmp_path / "whole").keys()


class StopError(Exception):
    pass


def test_shards_that_killed_their_process_are_made_the_careful_way(tmp_path):
    """A note of an earlier attempt stands beside the plan: each picture is judged in a process of its own."""
    plain, careful = prepare.run(config(tmp_path, "plain")), config(tmp_path, "careful")
    for number in range(3):
        note = Path(careful.out) / attempt_name(number)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    made = prepare.run(careful)
    assert [s.rows for s in made.shards] == [s.rows for s in plain.shards]
    assert made.hash == plain.hash
    assert not (Path(careful.out) / "_plan").exists()


def test_an_interrupted_run_keeps_its_finished_shards(tmp_path):
    def stop(progress):
        raise StopError(f"after {progress.rows_done}")

    wanted = config(tmp_path)
    with pytest.raises(StopError, match="after"):
        prepare.run(wanted, on_progress=stop)
    kept = {n: (Path(wanted.out) / n).stat().st_mtime_ns for n in files_of_shards(wanted.out)}
    assert kept
    made = prepare.run(wanted)
    assert made.hash == prepare.run(config(tmp_path, "whole")).hash
    assert {n: (Path(wanted.out) / n).stat().st_mtime_ns for n in kept} == kept


def files_of_shards(folder):
    return [p.name for p in Path(folder).glob("shard-*.arrow")]


KILLED = """
import os, sys
from pipelines import prepare, prepare_config
prepare.run(
    prepare_config.PrepareCoco(
        images=sys.argv[1], annotations=sys.argv[2], out=sys.argv[3], rows_per_shard=3, num_cpus=1
    ),
    on_progress=lambda progress: os.kill(os.getpid(), 9),
)
"""


def test_a_killed_driver_goes_on_by_the_same_command(tmp_path):
    wanted = config(tmp_path)
    arguments = [sys.executable, "-c", KILLED, wanted.images, wanted.annotations, wanted.out]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(arguments, env={**clean, "PYTHONPATH": ROOT}, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files_of_shards(wanted.out)
    assert not (Path(wanted.out) / "manifest.json").exists()
    assert prepare.run(wanted).hash == prepare.run(config(tmp_path, "whole")).hash


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rows_per_shard": 0}, "rows_per_shard is 0"),
        ({"max_rejected": 1.5}, "max_rejected is 1.5"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"num_cpus": 0}, "num_cpus is 0"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        prepare_config.PrepareImages(images="x", out="y", **options)


def test_sources_that_are_not_there(tmp_path):
    images, file = tiny_coco.write(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        prepare.run(prepare_config.PrepareCoco(images=images + "x", annotations=file, out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="there is no annotation file"):
        prepare.run(prepare_config.PrepareCoco(images=images, annotations=file + "x", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    empty = config(tmp_path, source={"images": [], "annotations": []})
    with pytest.raises(ValueError, match="lists no pictures"):
        prepare.run(empty)


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="cannot create the folder"):
        prepare.run(config(tmp_path))
    assert (tmp_path / "out").read_text() == "a file"


def test_bare_pictures_are_unlabelled(tmp_path):
    images, _ = tiny_coco.write(tmp_path)
    made = prepare.run(prepare_config.PrepareImages(images=images, out=str(tmp_path / "out")))
    assert (made.rows_written, made.labelled_images, made.classes) == (7, 0, ())
    assert not Dataset(str(tmp_path / "out")).labelled.any()


def test_file_uris_do_as_well(tmp_path):
    images, file = tiny_coco.write(tmp_path)
    uris = {"images": f"file://{images}", "annotations": f"file://{file}", "out": f"file://{tmp_path}/out"}
    assert prepare.run(prepare_config.PrepareCoco(**uris)).rows_written == 7
    assert len(Dataset(uris["out"])) == 7


@pytest.mark.skipif(not DATA, reason="MASKRAY_TEST_DATA is not set")
@pytest.mark.parametrize(("split", "counts"), [("train", (26, 333, 5)), ("val", (25, 213, 2))])
def test_real_pictures_come_out_as_pycocotools_sees_them(tmp_path, split, counts):
    root = Path(DATA) / "coco"
    file = root / f"annotations/instances_{split}2017.json"
    out = str(tmp_path / "out")
    made = prepare.run(
        prepare_config.PrepareCoco(images=str(root / f"{split}2017"), annotations=str(file), out=out, rows_per_shard=10)
    )
    assert (made.rows_written, made.instances_kept, made.crowds) == counts
    body = json.loads(file.read_text())
    truth = {a["id"]: a for a in body["annotations"]}
    label_of = {c: label for label, c in enumerate(sorted(c["id"] for c in body["categories"]))}
    dataset = Dataset(out)
    for record in map(dataset.record, range(len(dataset))):
        assert record.image == (root / f"{split}2017" / record.file_name).read_bytes()
        for instance in record.instances:
            entry = truth.pop(instance.id)
            assert entry["image_id"] == record.image_id
            assert (instance.area, instance.crowd) == (entry["area"], bool(entry["iscrowd"]))
            assert instance.label == label_of[entry["category_id"]]
            x, y, w, h = entry["bbox"]
            assert instance.box_xyxy == (x, y, x + w, y + h)
            theirs = coco_mask.frPyObjects(entry["segmentation"], record.height, record.width)
            theirs = coco_mask.decode(coco_mask.merge(theirs) if isinstance(theirs, list) else theirs)
            raw = instance.rle if instance.polygons is None else instance.polygons
            np.testing.assert_array_equal(masks.rasterise(raw, record.height, record.width), theirs)
    assert not truth
    assert inspect.run(inspect.InspectConfig(out, verify=True)).problems == ()


@pytest.mark.skipif(not DATA, reason="MASKRAY_TEST_DATA is not set")
def test_real_keypoints_are_kept(tmp_path):
    root = Path(DATA) / "coco"
    file = root / "annotations/person_keypoints_val2017.json"
    out = str(tmp_path / "out")
    made = prepare.run(prepare_config.PrepareCoco(images=str(root / "val2017"), annotations=str(file), out=out))
    assert made.instances_kept == 44
    assert len(made.classes[0].keypoints) == 17
    truth = {a["id"]: a for a in json.loads(file.read_text())["annotations"]}
    dataset = Dataset(out)
    for record in map(dataset.record, range(len(dataset))):
        for instance in record.instances:
            assert instance.keypoints.ravel().tolist() == truth[instance.id]["keypoints"]


def test_ray_was_left_running():
    assert ray.is_initialized()


def test_a_budget_counts_once_and_judges_pictures_and_objects_apart():
    lost = [Rejection(Reason.BAD_BOX, "bbox", "[0]", False, instances=1)] * 3
    budget = prepare.Budget(0.1, [Rejection(Reason.CORRUPT_PICTURE, "file_name", "x", True, instances=2)])
    budget.check(10, 20)
    budget.add(lost)
    budget.check(10, 50)
    budget.check(10, None)
    with pytest.raises(prepare.RejectionBudgetError, match=r"5 of 49 objects .*: 3 x bad_box .*; 1 x corrupt_picture"):
        budget.check(10, 49)
    with pytest.raises(prepare.RejectionBudgetError, match="1 of 9 pictures were rejected so far, more than the share"):
        budget.check(9, 100)

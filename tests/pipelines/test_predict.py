"""Labelling a pool: the same bytes whoever does it and however often it dies, and an account of every picture."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from pycocotools.coco import COCO

from model.config import KeypointHeadConfig, MaskHeadConfig
from model.merge import Merge
from pipelines import checkpoints, commit, labeller, predict, prepare, prepare_config
from pipelines.coco_export import to_coco
from pipelines.config import Precision
from pipelines.dataset import Dataset
from pipelines.labeller import Labelled, Labeller
from pipelines.making import Account
from pipelines.manifest import ClassInfo
from pipelines.predict import PredictConfig
from pipelines.predictions import PredictionsError, PredictionsManifest, all_pictures
from pipelines.ray_session import ray_session
from tests.pipelines import tiny_run
from tests.pipelines.pool_runs import dying, files, kill_points, save
from tests.pipelines.tiny_pictures import png
from tests.pipelines.tiny_shards import CLASSES, record, write_dataset

SHARDS = (3, 2, 4, 1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("pool"), SHARDS)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher"))


def in_turn(config, order, missing):
    """Stands for Ray: one worker, one shard after the other."""
    worker = Labeller(order)
    for shard in missing:
        yield shard, Labelled.from_facts(json.loads(json.dumps(worker.label(shard))))


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(predict, "_label_all", in_turn)
    monkeypatch.setattr(predict, "run_shards", one_by_one)
    monkeypatch.setattr(predict, "ray_session", lambda address: contextlib.nullcontext())


def one_by_one(make_work, shards):
    return ((shard, json.loads(json.dumps(make_work()(shard)))) for shard in shards)


def config(teacher, pool, out, **changes):
    return PredictConfig(teacher, pool.uri, str(out), **changes)


def test_a_pool_is_labelled_once(teacher, pool, tmp_path, alone, monkeypatch):
    asked = config(teacher, pool, tmp_path / "out", views="fast", batch=8)
    made = predict.run(asked)
    assert made == PredictionsManifest.load(asked.out)
    assert (made.pictures, made.account) == (10, Account(10, 0, 0))
    assert made.making.views == ("64", "64f", "80", "80f")
    assert (made.making.precision, made.making.batch, made.making.threads, made.making.device) == ("fp32", 8, 1, "cpu")
    assert len(made.machines) == 1
    found = list(all_pictures(asked.out, made))
    assert [picture.image_id for picture in found] == pool.image_ids.tolist()
    assert made.detections == sum(len(picture.scores) for picture in found) > 10
    assert len({float(value) for picture in found for value in picture.view_agreement}) > 1
    before = files(asked.out)
    monkeypatch.setattr(predict, "_label_all", lambda *_: pytest.fail("predicted again"))
    assert predict.run(asked) == made
    assert files(asked.out) == before


def test_bytes_do_not_depend_on_order_or_interruption(teacher, pool, tmp_path, alone, monkeypatch):
    predict.run(config(teacher, pool, tmp_path / "whole"))
    wanted = files(tmp_path / "whole")

    def backwards(settings, order, missing):
        return in_turn(settings, order, missing[::-1])

    def one_only(settings, order, missing):
        yield from in_turn(settings, order, missing[-1:])
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_label_all", backwards)
    predict.run(config(teacher, pool, tmp_path / "backwards"))
    assert files(tmp_path / "backwards") == wanted
    monkeypatch.setattr(predict, "_label_all", one_only)
    for done in range(1, len(SHARDS) + 1):
        with pytest.raises(KeyboardInterrupt):
            predict.run(config(teacher, pool, tmp_path / "stopped"))
        assert len(files(tmp_path / "stopped")) == done
    monkeypatch.setattr(predict, "_label_all", lambda *_: pytest.fail("nothing is missing"))
    predict.run(config(teacher, pool, tmp_path / "stopped"))
    assert files(tmp_path / "stopped") == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": Precision.BF16}, "begun with precision fp32, now it is bf16: give the same, or choose another"),
        ({"cpus_per_worker": 2}, "begun with threads 1, now it is 2"),
        ({"batch": 2}, "begun with batch 4, now it is 2"),
        ({"views": "64,64f"}, r"begun with views \['64'\], now it is \['64', '64f'\]"),
        ({"voting_iou": 0.5}, "begun with voting_iou 0.8, now it is 0.5"),
        ({"merge": Merge.NONE}, "begun with merge vote, now it is none"),
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_what_was_begun_otherwise_is_refused(teacher, pool, tmp_path, alone, changes, message, ended):
    predict.run(config(teacher, pool, tmp_path / "out"))
    if not ended:
        (tmp_path / "out" / "manifest.json").unlink()
    before = files(tmp_path / "out")
    with pytest.raises(PredictionsError, match=message):
        predict.run(config(teacher, pool, tmp_path / "out", **changes))
    assert files(tmp_path / "out") == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_shards_of_an_unfinished_run_are_made_again(teacher, pool, tmp_path, alone, monkeypatch):
    """A flipped bit, a cut, and the file of another shard under the name."""
    asked = config(teacher, pool, tmp_path / "out")
    predict.run(asked)
    wanted = files(asked.out)
    names = [tmp_path / "out" / f"predictions-{number:05d}.arrow" for number in range(len(SHARDS))]
    (tmp_path / "out" / "manifest.json").unlink()
    flip(names[0])
    names[1].write_bytes(names[1].read_bytes()[:-100])
    names[2].write_bytes(wanted[names[3].name])
    made = []

    def counted(settings, order, missing):
        made.extend(missing)
        return in_turn(settings, order, missing)

    monkeypatch.setattr(predict, "_label_all", counted)
    predict.run(asked)
    assert made == [0, 1, 2]
    assert files(asked.out) == wanted


def test_a_task_tried_again_finds_its_shard(teacher, pool, tmp_path, alone, monkeypatch):
    def twice(settings, order, missing):
        worker = Labeller(order)
        for shard in missing:
            first = worker.label(shard)
            with monkeypatch.context() as patch:
                patch.setattr(Labeller, "_predict", lambda *_: pytest.fail("predicted again"))
                assert worker.label(shard) == first
            yield shard, Labelled.from_facts(first)

    monkeypatch.setattr(predict, "_label_all", twice)
    predict.run(config(teacher, pool, tmp_path / "out"))


def test_a_worker_decodes_with_all_its_threads(teacher, pool, tmp_path, alone, monkeypatch):
    """Two pictures of a batch meet while they are decoded."""
    meet, plain = threading.Barrier(2), labeller.decode

    def decode(record):
        meet.wait(timeout=30)
        return plain(record)

    monkeypatch.setattr(labeller, "decode", decode)
    even = tiny_run.dataset(tmp_path / "even", (4, 2), stride=3)
    predict.run(config(teacher, even, tmp_path / "out", batch=2, cpus_per_worker=2))
    torch.set_num_threads(1)


def test_another_data_set_checkpoint_or_kind_of_machine_is_refused(teacher, pool, tmp_path, alone, monkeypatch):
    predict.run(config(teacher, pool, tmp_path / "out"))
    (tmp_path / "out" / "predictions-00001.arrow").unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    other = tiny_run.dataset(tmp_path / "other", SHARDS, stride=2)
    with pytest.raises(PredictionsError, match="predictions of another data set or checkpoint: choose another --out"):
        predict.run(config(teacher, other, tmp_path / "out"))
    with pytest.raises(PredictionsError, match="predictions of another data set or checkpoint: choose another --out"):
        predict.run(config(save(tmp_path / "second", norm=tiny_run.Norm.FROZEN), pool, tmp_path / "out"))
    monkeypatch.setattr(labeller, "machine_kind", lambda device: "abacus")
    with pytest.raises(PredictionsError, match=r"was begun on .*, this worker is abacus: bits would differ"):
        predict.run(config(teacher, pool, tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "needs batch >= 1"),
        ({"min_workers": 3, "workers": 2}, "min-workers 3 and workers 2, wanted no more"),
        ({"voting_iou": 1.5}, "got voting-iou 1.5, wanted above 0 to 1"),
        ({"voting_iou": 0.0}, "got voting-iou 0.0, wanted above 0 to 1; --merge none does not vote"),
        ({"views": "some"}, "wanted none, fast, paper or short edges"),
    ],
)
def test_what_a_stranger_may_ask_for(teacher, pool, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        predict.run(config(teacher, pool, tmp_path / "out", **changes))


def test_pictures_that_cannot_be_looked_at_are_accounted_for(teacher, tmp_path, alone):
    """Bytes that rotted after the data set was made, and a picture so narrow that a side would vanish."""
    sound = png(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    broken = [record(k, (), (40, 60), image=data) for k, data in enumerate((b"", b"text", sound[:60]), start=1)]
    narrow = record(4, (), (1, 900), image=png(np.zeros((1, 900, 3), np.uint8)))
    shards = [[*broken[:2], narrow], [], [broken[2], record(5, (), (40, 60), image=sound)]]
    pool = write_dataset(tmp_path / "pool", shards)
    made = predict.run(config(teacher, pool, tmp_path / "out", views="fast", results=True))
    assert (made.pictures, made.account) == (5, Account(1, 0, 4))
    found = {picture.image_id: picture for picture in all_pictures(str(tmp_path / "out"), made)}
    assert "would be less than a pixel" in found[4].rejected
    assert all(found[k].rejected for k in (1, 2, 3))
    assert not found[5].rejected
    assert {row["image_id"] for row in json.loads((tmp_path / "out" / "results.json").read_text())} == {5}


def test_an_account_that_does_not_add_up_is_refused():
    with pytest.raises(PredictionsError, match="does not add up: 5 pictures, 1 labelled, 1 empty and 2 rejected"):
        PredictionsManifest("d", "c", CLASSES, (), 5, 0, account=Account(1, 1, 2))


def test_a_full_disk_leaves_no_half_shard(teacher, pool, tmp_path, alone, monkeypatch):
    write, count = commit.write_file, []

    def full(filesystem, path, data, **options):
        count.append(path)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        write(filesystem, path, data, **options)

    monkeypatch.setattr(commit, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        predict.run(config(teacher, pool, tmp_path / "out"))
    assert sorted(files(tmp_path / "out")) == ["predictions-00000.arrow", "predictions-00001.arrow"]
    predict.run(config(teacher, pool, tmp_path / "out"))
    predict.run(config(teacher, pool, tmp_path / "whole"))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_coco_results_hold_what_the_detector_finds(pool, tmp_path, alone):
    person = (ClassInfo(1, "person", ("nose", "left_eye", "right_eye")), ClassInfo(2, "ball"))
    keypoint = KeypointHeadConfig(True, 3, ((1, 2),), 1, 16)
    for name, changes in (("boxes", {"mask": MaskHeadConfig(enabled=False)}), ("points", {"keypoint": keypoint})):
        uri = save(tmp_path / name / "checkpoint", person, **changes)
        made = predict.run(config(uri, pool, tmp_path / name / "out", results=True))
        rows = json.loads((tmp_path / name / "out" / "results.json").read_text())
        assert len(rows) == made.detections > 0
        assert all(("segmentation" in row) is (name == "points") for row in rows)
        assert {len(row["keypoints"]) for row in rows if row["category_id"] == 1} == {9} if name == "points" else True
        assert not any("keypoints" in row for row in rows if row["category_id"] == 2 or name == "boxes")
        truth = COCO()
        truth.dataset = {**to_coco(pool), "categories": [{"id": info.id, "name": info.name} for info in person]}
        truth.createIndex()
        assert len(truth.loadRes(rows).anns) == len(rows)


@pytest.fixture(scope="module")
def local_ray():
    with ray_session(num_cpus=2, object_store_memory=200 * 2**20):
        yield


@pytest.mark.ray
def test_what_a_worker_cannot_load_is_said_as_it_is(pool, tmp_path, local_ray):
    """Its constructor runs in a process of Ray's, which alone would call it dead."""
    uri = save(tmp_path / "checkpoint")
    (model,) = Path(uri).glob("model-*.safetensors")
    flip(model)
    with pytest.raises(checkpoints.CheckpointError, match="is damaged; use another checkpoint"):
        predict.run(config(uri, pool, tmp_path / "out", workers=1))


EDGE = Path(os.environ.get("MASKRAY_TEST_DATA", "")) / "edge_images"


@pytest.mark.ray
@pytest.mark.skipif(not EDGE.is_dir(), reason="needs MASKRAY_TEST_DATA")
def test_hostile_pictures_in_a_pool_are_all_accounted_for(teacher, tmp_path, alone, local_ray):
    images = tmp_path / "images"
    images.mkdir()
    hostile = [path for path in sorted(EDGE.rglob("*")) if path.is_file() and path.name != "MANIFEST.json"]
    for number, path in enumerate(hostile):
        name = f"{number:03d}_{path.name}".replace(
            ".mpo", ".jpg"
        )  # which is no suffix of pictures, but one of the files
        (images / name).write_bytes(path.read_bytes())
    for number in range(7):
        (images / f"sound_{number}.png").write_bytes(tiny_run.scene(number).image)
    made = prepare.run(prepare_config.PrepareImages(images=str(images), out=str(tmp_path / "pool"), max_rejected=1.0))
    pool = Dataset(str(tmp_path / "pool"))
    found = predict.run(config(teacher, pool, tmp_path / "out"))
    account = found.account
    assert made.rows_in == len(hostile) + 7 == 100
    assert made.rows_in == made.rows_rejected + account.labelled + account.empty + account.rejected
    assert account.labelled >= 7


def check_killed_actors(count, teacher, pool, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(predict, "_label_all", in_turn)
        predict.run(config(teacher, pool, tmp_path / "whole"))
    (tmp_path / "marks").mkdir()
    monkeypatch.setattr(predict, "Labeller", dying(kill_points(count, len(SHARDS)), str(tmp_path / "marks")))
    predict.run(config(teacher, pool, tmp_path / "killed", workers=2, min_workers=1))
    assert len(list((tmp_path / "marks").iterdir())) == count
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


FEW_OR_MANY = pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.soak)])


@pytest.mark.ray
@FEW_OR_MANY
def test_killed_actors_change_nothing(teacher, pool, tmp_path, monkeypatch, local_ray, count):
    check_killed_actors(count, teacher, pool, tmp_path, monkeypatch)


DRIVER = """
import sys
from pipelines import predict
predict.run(predict.PredictConfig(sys.argv[1], sys.argv[2], sys.argv[3], workers=2, address=sys.argv[4]))
"""


def check_killed_drivers(count, teacher, pool, tmp_path, monkeypatch):
    """The driver dies when so many shards are there, or some time after; then the same command ends the work."""
    with monkeypatch.context() as patch:
        patch.setattr(predict, "_label_all", in_turn)
        predict.run(config(teacher, pool, tmp_path / "whole"))
    wanted = files(tmp_path / "whole")
    rng = np.random.default_rng(1)
    for number in range(count):
        out = tmp_path / f"killed{number}"
        address = ray.get_runtime_context().gcs_address
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, teacher, pool.uri, str(out), address])
        enough, deadline = int(rng.integers(0, 3)), time.monotonic() + 120
        while time.monotonic() < deadline and driver.poll() is None:
            if len([*out.glob("predictions-*")] if out.is_dir() else []) >= enough:
                break
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.5)))
        driver.kill()
        driver.wait()
        predict.run(config(teacher, pool, out, workers=2))
        left = {name: data for name, data in files(out).items() if ".tmp-" not in name}
        assert left == wanted


@pytest.mark.ray
@FEW_OR_MANY
def test_killed_drivers_change_nothing(teacher, pool, tmp_path, monkeypatch, local_ray, count):
    check_killed_drivers(count, teacher, pool, tmp_path, monkeypatch)

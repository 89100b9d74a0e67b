import dataclasses
import errno
import os
from types import SimpleNamespace

import pytest

from pipelines import check, check_instance, dataset_writer, part_files, shard_task, storage
from pipelines.datasets import coco
from pipelines.rejections import Reason
from pipelines.source_index import RawRow
from tests.pipelines import tiny_coco
from tests.pipelines.tiny_coco import image

RULES = check.Rules(check_instance.Vocabulary({3: 0, 7: 1}, (0, 0)), labelled=True)


def planned(tmp_path, fingerprint="f", **source):
    images, file = tiny_coco.write(tmp_path, **source)
    index = coco.read_index(images, file)
    out = str(tmp_path / "out")
    filesystem, folder = storage.open_uri(out)
    part_files.write(filesystem, folder, fingerprint, [index.rows[:4], index.rows[4:]])
    return shard_task.ShardTask(out, images, fingerprint, RULES)


def test_a_shard_is_made_once_and_found_afterwards(tmp_path):
    task = planned(tmp_path)
    made = shard_task.make_shard(task, 0)
    assert (made.info.rows, made.info.instances, made.was_there) == (4, 4, False)
    found = shard_task.make_shard(task, 0)
    assert found == shard_task.ShardResult(made.info, made.rejections, 4, was_there=True)


def test_a_damaged_shard_is_made_again(tmp_path):
    task = planned(tmp_path)
    made = shard_task.make_shard(task, 0)
    path = tmp_path / "out" / made.info.file
    good = path.read_bytes()
    for bad in (good[:-9], good.replace(b"JFIF", b"JUNK", 1), b""):
        path.write_bytes(bad)
        assert shard_task.make_shard(task, 0) == made
        assert path.read_bytes() == good


def test_a_shard_of_another_plan_is_left_alone(tmp_path):
    made = shard_task.make_shard(planned(tmp_path), 0)
    before = (tmp_path / "out" / made.info.file).read_bytes()
    other = shard_task.ShardTask(str(tmp_path / "out"), str(tmp_path), "other", RULES)
    with pytest.raises(shard_task.PlanConflictError, match="belongs to another data set"):
        shard_task.make_shard(other, 0)
    assert (tmp_path / "out" / made.info.file).read_bytes() == before


def test_unfinished_plans_do_not_mix(tmp_path):
    planned(tmp_path)
    filesystem, folder = storage.open_uri(str(tmp_path / "out"))
    before = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    with pytest.raises(shard_task.PlanConflictError, match="unfinished shards of another data set"):
        part_files.write(filesystem, folder, "other", [[]])
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == before
    part_files.drop(filesystem, folder)
    assert not list((tmp_path / "out").iterdir())


def test_odd_files_are_rejected_unread(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret.jpg").write_bytes(tiny_coco.jpeg())
    (tmp_path / "pictures" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "pictures" / "inside.jpg").symlink_to(tmp_path / "pictures" / "real.jpg")
    (tmp_path / "pictures" / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pictures" / "pipe.jpg")
    names = ["link.jpg", "inside.jpg", "folder.jpg", "pipe.jpg", "none.jpg", "../secret.jpg", "real.jpg"]
    entries = [image(k, file_name=name) for k, name in enumerate(names)]
    task = planned(tmp_path, images=entries, annotations=[], pictures=["real.jpg"])
    results = [shard_task.make_shard(task, n) for n in range(2)]
    reasons = {r.image_id: r.reason for result in results for r in result.rejections}
    assert reasons == {
        0: Reason.UNSAFE_FILE_NAME,
        2: Reason.MISSING_PICTURE,
        3: Reason.MISSING_PICTURE,
        4: Reason.MISSING_PICTURE,
        5: Reason.UNSAFE_FILE_NAME,
    }
    assert sum(r.info.rows for r in results) == 2


def test_names_that_no_disk_can_look_up_are_rejected(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "self.jpg").symlink_to("self.jpg")
    names = ["x" * 300 + ".jpg", "self.jpg", "real.jpg/below.jpg", "real.jpg"]
    entries = [image(k, file_name=name) for k, name in enumerate(names)]
    task = planned(tmp_path, images=entries, annotations=[], pictures=["real.jpg"])
    result = shard_task.make_shard(task, 0)
    assert {r.image_id: r.reason for r in result.rejections} == dict.fromkeys(range(3), Reason.MISSING_PICTURE)
    assert result.info.rows == 1


@pytest.mark.parametrize("at", ["get_file_info", "read_bytes"])
@pytest.mark.parametrize(
    ("code", "is_rejected"), [(errno.EACCES, True), (errno.ELOOP, True), (errno.EIO, False), (errno.ESTALE, False)]
)
def test_a_file_that_cannot_be_read_costs_its_row_and_a_store_that_fails_the_task(tmp_path, at, code, is_rejected):
    folder = shard_task._Folder(str(tmp_path), Reason.MISSING_PICTURE)
    (tmp_path / "a.jpg").write_bytes(b"x")

    def fail(*_):
        raise OSError(code, "told so")

    row = RawRow(1, "a.jpg", None, None, ())
    with pytest.MonkeyPatch.context() as patch:
        if at == "read_bytes":
            patch.setattr(storage, "read_bytes", fail)
        else:
            folder._filesystem = SimpleNamespace(get_file_info=fail)
        if is_rejected:
            found = folder.read(row, "a.jpg", "file_name")
            assert found.reason is Reason.MISSING_PICTURE
        else:
            with pytest.raises(OSError, match="told so"):
                folder.read(row, "a.jpg", "file_name")


def test_large_files_are_rejected_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_task, "MAX_PICTURE_BYTES", 100)
    result = shard_task.make_shard(planned(tmp_path), 0)
    assert {r.reason for r in result.rejections} == {Reason.PICTURE_TOO_LARGE}


def test_shard_names():
    assert dataset_writer.shard_name(7) == "shard-00007.arrow"
    assert shard_task.part_name(7) == "_plan/part-00007.json"


def test_a_plan_that_another_machine_cannot_see_is_told(tmp_path):
    task = planned(tmp_path)
    there = dataclasses.replace(task, out=str(tmp_path / "another machine"))
    with pytest.raises(shard_task.MissingPlanError, match=r"sees no .*part-00000\.json.* several machines --out must"):
        shard_task.make_shard(there, 0)
    assert not (tmp_path / "another machine").exists()

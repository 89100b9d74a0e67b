"""The writer, the manifest and the reader of a data set, together and under damage."""

import json
import pickle
import random

import numpy as np
import pytest

from pipelines import commit, dataset_writer, rejections, storage
from pipelines.dataset import Dataset, DatasetError
from pipelines.manifest import ClassInfo, Manifest, ManifestError
from pipelines.records import Instance, Record, SchemaError

CLASSES = (ClassInfo(3, "dog"), ClassInfo(7, "cat", ("nose", "tail")))
LOST = (rejections.Rejection(rejections.Reason.CORRUPT_PICTURE, "file_name", "x", True, "x.jpg", 99, None, 2),)


def record(number):
    objects = tuple(
        Instance(100 * number + k, k % 2, (0.0, 0.0, 1.0, 1.0), 1.0, k == 2, False, (np.arange(6.0),), None, None)
        for k in range(number % 4)
    )
    return Record(number, f"{number}.jpg", b"x" * number, "0" * 64, 3 + number, 4, objects, number != 5)


def write(folder, counts=(3, 0, 4), lost=LOST):
    filesystem, path = storage.open_uri(str(folder))
    first, infos = 0, []
    for number, count in enumerate(counts):
        rows = [record(i) for i in range(first, first + count)]
        infos.append(dataset_writer.write_shard(filesystem, path, number, rows, {"shard": number}))
        first += count
    draft = dataset_writer.Draft(
        CLASSES,
        tuple(infos),
        lost,
        rows_in=first + sum(r.is_row for r in lost),
        instances_in=sum(i.instances for i in infos) + sum(r.instances for r in lost),
        source={"kind": "test"},
        fingerprint="f",
    )
    return dataset_writer.commit_dataset(filesystem, path, draft)


def test_what_was_written_is_read(tmp_path):
    made = write(tmp_path / "d")
    dataset = Dataset(str(tmp_path / "d"))
    assert dataset.manifest == made
    assert made.hash == commit.sha256_of((tmp_path / "d" / "manifest.json").read_bytes())
    assert len(dataset) == 7
    assert dataset.rows_per_shard.tolist() == [3, 0, 4]
    assert dataset.sizes_hw.dtype == np.int32
    assert dataset.sizes_hw.tolist() == [[3 + i, 4] for i in range(7)]
    assert dataset.image_ids.tolist() == list(range(7))
    assert dataset.labelled.tolist() == [i != 5 for i in range(7)]
    for i in range(7):
        got = dataset.record(i)
        assert (got.image_id, len(got.instances)) == (i, i % 4)
        labels = dataset.labels[dataset.label_offsets[i] : dataset.label_offsets[i + 1]]
        assert labels.tolist() == [o.label for o in got.instances if not o.crowd]
    assert dataset.rejections() == LOST
    assert made.class_counts == (5, 3)
    assert (made.crowds, made.labelled_images, made.rows_rejected, made.instances_rejected) == (1, 6, 1, 2)
    assert made.names == ("dog", "cat")


def test_no_rows_at_all(tmp_path):
    write(tmp_path, counts=())
    assert len(Dataset(str(tmp_path))) == 0


@pytest.mark.parametrize("index", [-1, 7])
def test_records_that_are_not_there(tmp_path, index):
    write(tmp_path)
    with pytest.raises(IndexError, match=f"record {index} of 7"):
        Dataset(str(tmp_path)).record(index)


def test_a_reader_travels_by_its_address(tmp_path):
    write(tmp_path)
    dataset = pickle.loads(pickle.dumps(Dataset(str(tmp_path), verify=False)))
    assert dataset.record(6).image_id == 6


def test_the_same_data_has_the_same_hash(tmp_path):
    assert write(tmp_path / "a").hash == write(tmp_path / "b").hash


def test_a_second_commit_is_a_conflict(tmp_path):
    made = write(tmp_path)
    with pytest.raises(commit.CommitConflictError, match="exists already"):
        write(tmp_path)
    assert Manifest.load(str(tmp_path)) == made


def test_one_image_id_twice_is_refused(tmp_path):
    filesystem, path = storage.open_uri(str(tmp_path))
    infos = tuple(dataset_writer.write_shard(filesystem, path, n, [record(4)], {}) for n in range(2))
    draft = dataset_writer.Draft(CLASSES, infos, (), 2, 0, {}, "f")
    with pytest.raises(ManifestError, match="image id 4 belongs to more than one"):
        dataset_writer.commit_dataset(filesystem, path, draft)


def test_an_account_that_does_not_add_up_is_never_committed(tmp_path):
    filesystem, path = storage.open_uri(str(tmp_path))
    info = dataset_writer.write_shard(filesystem, path, 0, [record(1)], {})
    with pytest.raises(ManifestError, match="rows_in is 3, its parts make 1"):
        dataset_writer.commit_dataset(filesystem, path, dataset_writer.Draft(CLASSES, (info,), (), 3, 1, {}, "f"))
    assert not (tmp_path / "manifest.json").exists()


def test_a_folder_without_manifest_is_no_data_set(tmp_path):
    with pytest.raises(ManifestError, match=r"has no manifest\.json; run `maskray prepare`"):
        Dataset(str(tmp_path))


def edited(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "predictions"}, "is of kind 'predictions', wanted 'dataset'"),
        ({"schema_version": 4}, r"has schema version 4, wanted one of \(1, 2, 3\)"),
        ({"rows_in": 9}, "does not match its own checksum"),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path, changes, match):
    write(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ManifestError, match=match):
        Manifest.load(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_manifest_that_is_none(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"manifest\.json is"):
        Manifest.load(str(tmp_path))


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    made = write(tmp_path)
    body = json.loads(made.to_bytes())
    body["shards"][0]["file"] = "../x.arrow"
    body.pop("checksum")
    canonical = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
    body["checksum"] = commit.sha256_of(canonical)
    forged = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
    (tmp_path / "manifest.json").write_bytes(forged)
    with pytest.raises(ManifestError, match="wanted a name beside it"):
        Manifest.load(str(tmp_path))


def read_all(folder):
    dataset = Dataset(str(folder))
    dataset.rejections()
    return [dataset.record(i) for i in range(len(dataset))]


@pytest.mark.parametrize("name", ["manifest.json", "index.ipc", "rejected.arrow", "shard-00000.arrow"])
def test_every_flipped_bit_of_every_file_is_found(tmp_path, name):
    write(tmp_path)
    good = (tmp_path / name).read_bytes()
    rng = random.Random(1)
    for _ in range(40):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(bad)
        with pytest.raises((ManifestError, DatasetError), match=r"\.(json|ipc|arrow)"):
            read_all(tmp_path)


@pytest.mark.parametrize("name", ["index.ipc", "rejected.arrow", "shard-00002.arrow"])
def test_cut_and_missing_files_are_named(tmp_path, name):
    write(tmp_path)
    data = (tmp_path / name).read_bytes()
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        (tmp_path / name).write_bytes(data[:cut])
        with pytest.raises(DatasetError, match=f"{name} has {cut} bytes, the manifest says {len(data)}"):
            read_all(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=f"{name} is missing"):
        read_all(tmp_path)


def test_without_verifying_the_structure_is_still_checked(tmp_path):
    write(tmp_path)
    path = tmp_path / "shard-00000.arrow"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(SchemaError, match="without an Arrow footer"):
        Dataset(str(tmp_path), verify=False).record(0)

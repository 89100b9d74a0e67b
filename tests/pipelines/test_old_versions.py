"""Data sets written by older versions stay readable, byte for byte the same identity."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import records
from pipelines.dataset import Dataset, DatasetError
from pipelines.distill_outputs import read_without_pictures
from pipelines.geometry import AugmentConfig
from pipelines.inspect import InspectConfig, run
from pipelines.loading import Source, TrainBatches
from tests.pipelines import tiny_run

FOLDER = Path(__file__).parent / "old_datasets"
V1_HASH = "95801c0798bb2609417904826f9bdf016a2e13125130120d3f1d5ef3f1f52b11"
V2_HASH = "7fce7311314165d88f0616f252285c9e89ed484d67faaf1d327f9021785c3230"


def test_there_is_a_fixture_of_every_older_version():
    assert sorted(path.name for path in FOLDER.iterdir()) == [
        f"v{version}" for version in records.READABLE_VERSIONS if version < records.SCHEMA_VERSION
    ]


def test_version_1_reads_as_it_was_written():
    data = Dataset(str(FOLDER / "v1"))
    assert data.manifest.hash == V1_HASH
    assert (len(data), data.manifest.schema_version, data.manifest.semantic_classes) == (3, 1, 0)
    first, second, third = (data.record(index) for index in range(3))
    assert [first.semantic, second.semantic, third.semantic] == [None] * 3
    assert [i.id for i in first.instances] == [10, 11]
    np.testing.assert_array_equal(first.instances[1].keypoints, [[5, 6, 2], [7, 8, 1]])
    assert (second.instances, third.file_name, third.instances[0].crowd) == ((), "three.jpg", True)
    assert third.instances[0].rle is not None
    assert [r.image_id for r in data.rejections()] == [4]
    assert run(InspectConfig(str(FOLDER / "v1"), verify=True)).problems == ()


def test_version_2_reads_as_it_was_written():
    data = Dataset(str(FOLDER / "v2"))
    assert data.manifest.hash == V2_HASH
    assert (len(data), data.manifest.schema_version, data.manifest.semantic_classes) == (3, 2, 9)
    first, second, third = (data.record(index) for index in range(3))
    assert first.semantic is not None
    assert (first.instances[1].score, first.instances[1].loss_weight) == (0.5, 0.25)
    np.testing.assert_array_equal(first.instances[1].keypoints, [[5, 6, 2], [7, 8, 1]])
    assert (second.semantic, second.instances, third.instances[0].ignore) == (None, (), True)
    pseudo = ("view_agreement", "box_spread", "mask_score", "keypoint_scores")
    assert {getattr(i, name) for r in (first, third) for i in r.instances for name in pseudo} == {None}
    assert run(InspectConfig(str(FOLDER / "v2"), verify=True)).problems == ()
    assert [r.image_id for r in read_without_pictures(str(FOLDER / "v2"), "shard-00000.arrow")] == [1, 2]


def test_version_1_trains():
    picture = tiny_run.detector_config().picture
    batch = TrainBatches([Source(Dataset(str(FOLDER / "v1")), 3)], picture, AugmentConfig(), 0)[0]
    assert sorted(batch.image_ids.tolist()) == [1, 2, 3]
    assert int(batch.targets.valid.sum()) == 2


def test_a_damaged_old_shard_is_found(tmp_path):
    shutil.copytree(FOLDER / "v1", tmp_path / "v1")
    shard = tmp_path / "v1" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"JFIF", b"JUNK", 1))
    with pytest.raises(DatasetError, match="does not match its sha256"):
        Dataset(str(tmp_path / "v1")).record(0)

"""Real COCO pictures as a prepared data set, made without Ray."""

import os
from pathlib import Path

import pytest

from pipelines import check, dataset_writer, part_files, shard_task, source_index, storage
from pipelines.check_instance import Vocabulary
from pipelines.dataset import Dataset
from pipelines.datasets import coco


def test_data():
    """The folder of test data; skips where there is none."""
    root = os.environ.get("MASKRAY_TEST_DATA")
    if not root:
        pytest.skip("MASKRAY_TEST_DATA is not set: it names the folder with coco and coco_eval")
    return Path(root)


def prepared(images, annotations, out, rows_per_shard=10):
    """The data set that `maskray prepare coco` makes, shard by shard in this process."""
    index = coco.read_index(str(images), str(annotations))
    vocabulary = Vocabulary(
        {c.id: n for n, c in enumerate(index.classes)}, tuple(len(c.keypoints) for c in index.classes)
    )
    parts = source_index.split(index.rows, rows_per_shard, 0, True)
    filesystem, folder = storage.open_uri(str(out))
    part_files.write(filesystem, folder, "f", parts)
    task = shard_task.ShardTask(str(out), index.images, "f", check.Rules(vocabulary, index.labelled))
    made = [shard_task.make_shard(task, number) for number in range(len(parts))]
    lost = (*index.rejections, *(r for result in made for r in result.rejections))
    draft = dataset_writer.Draft(
        index.classes, tuple(result.info for result in made), lost, index.rows_in, index.instances_in, {}, "f"
    )
    dataset_writer.commit_dataset(filesystem, folder, draft)
    return Dataset(str(out))

"""Real COCO pictures as a prepared data set, made without Ray."""

import os
from pathlib import Path

import pytest

from pipelines.prepare_config import PrepareCoco
from tests.pipelines import plain_prepare


def test_data():
    """The folder of test data; skips where there is none."""
    root = os.environ.get("MASKRAY_TEST_DATA")
    if not root:
        pytest.skip("MASKRAY_TEST_DATA is not set: it names the folder with coco and coco_eval")
    return Path(root)


def prepared(images, annotations, out, rows_per_shard=10):
    """The data set that `maskray prepare coco` makes, shard by shard in this process."""
    return plain_prepare.prepared(
        PrepareCoco(images=str(images), annotations=str(annotations), out=str(out), rows_per_shard=rows_per_shard)
    )

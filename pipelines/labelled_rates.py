"""Objects a class that people annotated, without crowds, ignored regions and the pictures that a teacher held out."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from pipelines import shards, storage
from pipelines.dataset import Dataset

_COLUMNS = ("image_id", "labelled", "label", "crowd", "ignore")


class LabelledCounts(NamedTuple):
    """What people annotated.

    Attributes:
        objects: a class, in the order of labels.
        pictures: labelled ones.
        held_out: labelled pictures that were left out of both.
    """

    objects: tuple[int, ...]
    pictures: int
    held_out: int


def count_labels(dataset: Dataset, held_out: Collection[int]) -> LabelledCounts:
    """Count the objects of a data set.

    Args:
        dataset: with labels; its pictures are not read.
        held_out: ids of pictures whose labels are not looked at.

    Raises:
        SchemaError: a shard is no shard.
    """
    left_out = np.array(sorted(held_out), np.int64)
    counts = np.zeros(len(dataset.manifest.classes), np.int64)
    pictures = without = 0
    filesystem, folder = storage.open_uri(dataset.uri)
    for info in dataset.manifest.shards:
        path = storage.join(folder, info.file)
        with filesystem.open_input_file(path) as source:
            batch = shards.open_ipc(source, path, _COLUMNS).batch
        labelled = batch.column("labelled").to_numpy(zero_copy_only=False)
        out = labelled & np.isin(batch.column("image_id").to_numpy(), left_out)
        counted = labelled & ~out
        pictures, without = pictures + int(counted.sum()), without + int(out.sum())
        label = batch.column("label")
        objects = np.repeat(counted, np.diff(label.offsets.to_numpy()))
        for name in ("crowd", "ignore"):
            objects &= ~batch.column(name).values.to_numpy(zero_copy_only=False)
        counts += np.bincount(label.values.to_numpy()[objects], minlength=len(counts))
    return LabelledCounts(tuple(counts.tolist()), pictures, without)

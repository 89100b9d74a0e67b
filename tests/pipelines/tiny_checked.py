"""A small data set of checked records, for what looks at finished ones."""

import dataclasses

from pipelines import dataset_writer, storage
from pipelines.check import Rules, check
from pipelines.check_instance import Vocabulary
from pipelines.manifest import ClassInfo
from pipelines.source_index import RawRow
from tests.pipelines import tiny_coco

RULES = Rules(Vocabulary({3: 0, 7: 1}, (0, 0)), labelled=True)
CLASSES = (ClassInfo(3, "dog"), ClassInfo(7, "cat"))


def record(number, **changes):
    """As many objects as its number says."""
    objects = [tiny_coco.annotation(10 * number + k, number) for k in range(number)]
    made = check(RawRow(number, f"{number}.jpg", 24, 32, objects), tiny_coco.jpeg(seed=number), RULES).record
    return dataclasses.replace(made, **changes)


def write(folder, rows, lost=(), classes=CLASSES):
    filesystem, path = storage.open_uri(str(folder))
    info = dataset_writer.write_shard(filesystem, path, 0, rows, {})
    draft = dataset_writer.Draft(
        classes,
        (info,),
        lost,
        len(rows) + sum(r.is_row for r in lost),
        info.instances + sum(r.instances for r in lost),
        {"kind": "coco", "images": "here"},
        "f",
    )
    dataset_writer.commit_dataset(filesystem, path, draft)
    return str(folder)

"""A generated pool, a tiny detector, and predict and distill on them: what is measured is the driver."""

from pathlib import Path

import numpy as np

from pipelines import commit, dataset_writer, distill, distill_config, predict, starting_weights, storage
from tests.pipelines import tiny_pictures, tiny_run, tiny_shards

ROWS_PER_SHARD = 50


def make_pool(folder: str, pictures: int) -> None:
    """Write labelled pictures, the pool, and a detector that finds ten objects on each."""
    for name, count, first in (("labelled", 20, 0), ("pool", pictures, 1000)):
        filesystem, path = storage.open_uri(f"{folder}/{name}")
        infos = []
        for number, start in enumerate(range(0, count, ROWS_PER_SHARD)):
            rows = [_record(first + at) for at in range(start, min(start + ROWS_PER_SHARD, count))]
            infos.append(dataset_writer.write_shard(filesystem, path, number, rows, {}))
        objects = sum(info.instances for info in infos)
        draft = dataset_writer.Draft(tiny_shards.CLASSES, tuple(infos), (), count, objects, {}, name)
        dataset_writer.commit_dataset(filesystem, path, draft)
    config = tiny_run.detector_config()
    box = tiny_run.dataclasses.replace(config.box, score_threshold=0.0)
    starting_weights.save(f"{folder}/teacher", tiny_run.build(box=box), tiny_shards.CLASSES, {})


def _record(number: int) -> tiny_shards.Record:
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = tiny_pictures.png(pixels)
    things = [tiny_shards.thing(2 * number + k, (4, 4, 30, 30), k) for k in range(2)]
    return tiny_shards.record(number, things, (64, 64), image=data, sha256=commit.sha256_of(data))


def predict_pool(folder: str) -> None:
    """As `maskray predict`."""
    predict.run(predict.PredictConfig(f"{folder}/teacher", f"{folder}/pool", f"{folder}/labels", workers=1))


def distill_pool(folder: str) -> None:
    """As `maskray distill`."""
    assert Path(folder, "labels").is_dir()
    places = {name: f"{folder}/{name}" for name in ("pool", "labelled")}
    distill.run(distill_config.DistillConfig(f"{folder}/labels", out=f"{folder}/out", min_score=0.0, **places))

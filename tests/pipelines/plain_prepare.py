"""`maskray prepare` without Ray: every shard in this process."""

from pipelines import check, dataset_writer, part_files, prepare_config, shard_task, source_index, storage
from pipelines.check_instance import Vocabulary
from pipelines.dataset import Dataset


def prepared(config):
    """The data set a config makes; the command itself makes the same through Ray."""
    index = prepare_config.read_index(config)
    vocabulary = Vocabulary(
        {c.id: n for n, c in enumerate(index.classes)}, tuple(len(c.keypoints) for c in index.classes)
    )
    rules = check.Rules(
        vocabulary, index.labelled, config.max_pixels, config.full_decode, index.semantic_classes, index.masks_required
    )
    parts = source_index.split(index.rows, config.rows_per_shard, config.seed, config.shuffle)
    filesystem, folder = storage.open_uri(config.out)
    part_files.write(filesystem, folder, "f", parts)
    task = shard_task.ShardTask(config.out, index.images, "f", rules, index.labels, index.semantic)
    made = [shard_task.make_shard(task, number) for number in range(len(parts))]
    lost = (*index.rejections, *(r for result in made for r in result.rejections))
    instances_in = sum(r.instances for r in index.rejections) + sum(result.instances_in for result in made)
    draft = dataset_writer.Draft(
        index.classes, tuple(result.info for result in made), lost, index.rows_in, instances_in, index.source, "f",
        index.semantic_classes,
    )  # fmt: skip
    dataset_writer.commit_dataset(filesystem, folder, draft)
    return Dataset(config.out)

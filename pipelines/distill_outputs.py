"""Pseudo-labels as COCO's instances.json, written as a stream: what is in memory does not grow with the pool."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines import dataset_writer, records, shards, storage
from pipelines.coco_export import annotation, categories, json_list, write_json
from pipelines.manifest import ClassInfo
from pipelines.records import Record

INSTANCES = "instances.json"


def read_without_pictures(uri: str, name: str) -> Iterator[Record]:
    """A shard's records with empty pictures, which are not read.

    Raises:
        SchemaError: it is no shard.
    """
    filesystem, folder = storage.open_uri(uri)
    path = storage.join(folder, name)
    columns = [field.name for field in records.SCHEMA if field.name not in ("image", "semantic")]
    with filesystem.open_input_file(path) as source:
        batch = shards.open_ipc(source, path, columns).batch
    empty = pa.array([b""] * batch.num_rows, pa.large_binary())
    table = pa.Table.from_batches([batch]).append_column("image", empty).combine_chunks()
    whole = table.to_batches()[0] if batch.num_rows else batch
    for row in range(batch.num_rows):
        yield records.from_table(whole, row)


def write_instances(out: str, shard_count: int, classes: Sequence[ClassInfo], round_number: int) -> str:
    """Write instances.json: pictures, labels (ignored regions as crowds) and classes; its sha256.

    Args:
        out: URI of the data set, its shards being there.
        shard_count: of them.
        classes: in the order of labels.
        round_number: of the distillation, kept with each label.
    """
    names = [dataset_writer.shard_name(number) for number in range(shard_count)]

    def images() -> Iterator[dict[str, Any]]:
        for record in (record for name in names for record in read_without_pictures(out, name)):
            yield {
                "id": record.image_id, "file_name": record.file_name, "height": record.height, "width": record.width,
                "sha256": record.sha256,
            }  # fmt: skip

    def annotations() -> Iterator[dict[str, Any]]:
        for record in (record for name in names for record in read_without_pictures(out, name)):
            for instance in record.instances:
                yield annotation(instance, record, classes[instance.label].id) | {
                    "score": instance.score, "loss_weight": instance.loss_weight, "ignore": int(instance.ignore),
                    "source": "pseudo", "round": round_number,
                }  # fmt: skip

    parts = {"images": json_list(images()), "annotations": json_list(annotations())}
    return write_json(out, INSTANCES, _json_object(parts, {"categories": categories(classes)}))


def _json_object(lists: dict[str, Iterator[bytes]], rest: dict[str, Any]) -> Iterator[bytes]:
    yield b"{"
    for name, chunks in lists.items():
        yield json.dumps(name).encode() + b": "
        yield from chunks
        yield b",\n"
    yield json.dumps(rest, sort_keys=True)[1:].encode() + b"\n"

"""Pseudo-labels as COCO's instances.json, written as a stream: what is in memory does not grow with the pool."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines import dataset_writer, predictions, records, shards, storage
from pipelines.coco_export import annotation, categories, json_list, write_json
from pipelines.predictions import PredictionsManifest
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


class Origin(NamedTuple):
    """Where the labels come from.

    Attributes:
        predictions: URI of the detections.
        found: what they say of themselves.
        cap: most detections a picture can have; 0 where it is not known.
        round: of the distillation.
        info: JSON-able; what the file says of itself.
    """

    predictions: str
    found: PredictionsManifest
    cap: int
    round: int
    info: Mapping[str, Any]


def write_instances(out: str, origin: Origin) -> str:
    """Write instances.json: pictures, labels (ignored regions as crowds) and classes; its sha256.

    Args:
        out: URI of the data set, its shards being there.
        origin: of the labels.
    """
    classes, shard_count = origin.found.classes, len(origin.found.shards)
    names = [dataset_writer.shard_name(number) for number in range(shard_count)]

    def images() -> Iterator[dict[str, Any]]:
        for name, shard in zip(names, origin.found.shards, strict=True):
            counts = predictions.count_detections(origin.predictions, shard.file)
            for record in read_without_pictures(out, name):
                yield _image(record, counts[record.image_id], origin)

    def annotations() -> Iterator[dict[str, Any]]:
        for record in (record for name in names for record in read_without_pictures(out, name)):
            for instance in record.instances:
                yield annotation(instance, record, classes[instance.label].id) | {
                    "score": instance.score, "loss_weight": instance.loss_weight, "ignore": int(instance.ignore),
                    "source": "pseudo", "round": origin.round, "view_agreement": instance.view_agreement,
                    "box_spread": instance.box_spread, "mask_score": instance.mask_score,
                    "keypoint_scores": None if (s := instance.keypoint_scores) is None else s.astype(float).tolist(),
                }  # fmt: skip

    parts = {"images": json_list(images()), "annotations": json_list(annotations())}
    rest = {"categories": categories(classes), "info": dict(origin.info)}
    return write_json(out, INSTANCES, _json_object(parts, rest))


def _image(record: Record, detections: int, origin: Origin) -> dict[str, Any]:
    """Pictures of the data set were seen in all views; one that could not be is not in it, with its reason."""
    kept = sum(not instance.ignore for instance in record.instances)
    return {
        "id": record.image_id, "file_name": record.file_name, "height": record.height, "width": record.width,
        "sha256": record.sha256, "n_views_ok": len(origin.found.making.views) if origin.found.making else 1,
        "n_kept": kept, "n_ignored": len(record.instances) - kept,
        "hit_detection_cap": detections >= origin.cap if origin.cap else None, "status": "ok" if kept else "empty",
    }  # fmt: skip


def _json_object(lists: dict[str, Iterator[bytes]], rest: dict[str, Any]) -> Iterator[bytes]:
    yield b"{"
    for name, chunks in lists.items():
        yield json.dumps(name).encode() + b": "
        yield from chunks
        yield b",\n"
    yield json.dumps(rest, sort_keys=True)[1:].encode() + b"\n"

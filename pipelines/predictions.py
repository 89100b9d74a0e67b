"""Committed detections: one Arrow shard for each shard of the data set they were made on, and a manifest, last."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs as pafs
from pyarrow import ipc

from pipelines import commit, storage
from pipelines.manifest import ClassInfo, FileInfo

FILE_NAME = "manifest.json"
KIND = "predictions"
_FORMAT_VERSION = 1

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("rles", pa.list_(pa.binary()), nullable=False),
        pa.field("areas", pa.list_(pa.int64()), nullable=False),
    ]
)


class PredictionsError(ValueError):
    """Predictions that are missing, damaged, or of another data set or detector."""


@dataclasses.dataclass(frozen=True)
class PicturePrediction:
    """Detections on one picture, best score first.

    Attributes:
        image_id: of the picture.
        height: pixels of the upright original.
        width: pixels of the upright original.
        boxes_xyxy: float32 [D, 4], original pixels.
        scores: float32 [D] in 0..1.
        labels: int64 [D].
        rles: COCO compressed counts of the masks at original size.
        areas: int64 [D], mask pixels.
    """

    image_id: int
    height: int
    width: int
    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    rles: tuple[bytes, ...]
    areas: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class PredictionsManifest:
    """The commit of a predictions folder.

    Attributes:
        dataset: hash of the manifest of the data set that was labelled.
        checkpoint: hash of the detector's checkpoint.
        classes: in the order of labels.
        shards: one for each shard of the data set, in its order.
        pictures: labelled pictures.
        detections: in all.
    """

    dataset: str
    checkpoint: str
    classes: tuple[ClassInfo, ...]
    shards: tuple[FileInfo, ...]
    pictures: int
    detections: int

    @property
    def hash(self) -> str:
        """sha256 of the manifest's bytes."""
        return commit.sha256_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The manifest's file, with a checksum over all the rest."""
        return commit.sealed(KIND, _FORMAT_VERSION, dataclasses.asdict(self))

    @staticmethod
    def load(uri: str) -> "PredictionsManifest":
        """Read the manifest of the predictions at `uri`.

        Raises:
            PredictionsError: there is none, or it is damaged.
        """
        filesystem, folder = storage.open_uri(uri)
        path = storage.join(folder, FILE_NAME)
        if not storage.is_file(filesystem, path):
            raise PredictionsError(f"{uri} holds no finished predictions: run `maskray predict` with --out {uri}")
        try:
            body = commit.unsealed(storage.read_bytes(filesystem, path), KIND, _FORMAT_VERSION)
            body["classes"] = tuple(ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in body["classes"])
            body["shards"] = tuple(FileInfo(**shard) for shard in body["shards"])
            return PredictionsManifest(**body)
        except (ValueError, KeyError, TypeError) as error:
            raise PredictionsError(
                f"{path} is no predictions manifest of version {_FORMAT_VERSION} ({error}): "
                "predict again into another --out"
            ) from error


def shard_name(number: int) -> str:
    """File name of a shard, a function of its number alone."""
    return f"predictions-{number:05d}.arrow"


def to_ipc(pictures: Sequence[PicturePrediction], meta: Mapping[str, Any]) -> pa.Buffer:
    """One shard's file; `meta` (JSON-able) is kept in its schema."""
    columns: dict[str, list[Any]] = {
        "image_id": [p.image_id for p in pictures],
        "height": [p.height for p in pictures],
        "width": [p.width for p in pictures],
        "boxes_xyxy": [list(p.boxes_xyxy) for p in pictures],
        "scores": [p.scores for p in pictures],
        "labels": [p.labels.astype(np.int32) for p in pictures],
        "rles": [list(p.rles) for p in pictures],
        "areas": [p.areas for p in pictures],
    }
    schema = SCHEMA.with_metadata({b"maskray": json.dumps(dict(meta), sort_keys=True).encode()})
    batch = pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=schema)
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def read_meta(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """The notes of a finished shard, or None where there is none that can be read."""
    try:
        with filesystem.open_input_file(path) as source:
            schema = ipc.open_file(source).schema
        if not schema.remove_metadata().equals(SCHEMA):
            return None
        meta: dict[str, Any] = json.loads((schema.metadata or {}).get(b"maskray", b"null"))
        return meta
    except (OSError, ValueError):
        return None


def read_pictures(uri: str, shard: FileInfo) -> list[PicturePrediction]:
    """One shard's predictions in order, after checking its hash and schema.

    Raises:
        PredictionsError: the file is missing or damaged.
    """
    filesystem, folder = storage.open_uri(uri)
    path = storage.join(folder, shard.file)
    try:
        data = storage.read_bytes(filesystem, path)
    except FileNotFoundError as error:
        raise PredictionsError(f"{path} is missing: predict again into another --out") from error
    if commit.sha256_of(data) != shard.sha256:
        raise PredictionsError(f"{path} does not match its sha256 in the manifest: predict again into another --out")
    table = ipc.open_file(pa.BufferReader(data)).read_all()
    if not table.schema.remove_metadata().equals(SCHEMA):
        raise PredictionsError(f"{path} has the columns {table.schema.names}, wanted {SCHEMA.names}")
    return [
        PicturePrediction(
            image_id=row["image_id"],
            height=row["height"],
            width=row["width"],
            boxes_xyxy=np.array(row["boxes_xyxy"], np.float32).reshape(-1, 4),
            scores=np.array(row["scores"], np.float32),
            labels=np.array(row["labels"], np.int64),
            rles=tuple(row["rles"]),
            areas=np.array(row["areas"], np.int64),
        )
        for row in table.to_pylist()
    ]


def all_pictures(uri: str, manifest: PredictionsManifest) -> Iterator[PicturePrediction]:
    """Every picture's prediction, in the data set's order."""
    for shard in manifest.shards:
        yield from read_pictures(uri, shard)


def to_results(picture: PicturePrediction, classes: Sequence[ClassInfo]) -> list[dict[str, Any]]:
    """COCO result rows of one picture: bbox in xywh, segmentation as compressed RLE, source category ids."""
    return [
        {
            "image_id": picture.image_id,
            "category_id": classes[int(label)].id,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
            "segmentation": {"size": [picture.height, picture.width], "counts": rle.decode("ascii")},
        }
        for (x1, y1, x2, y2), score, label, rle in zip(
            picture.boxes_xyxy.astype(float), picture.scores, picture.labels, picture.rles, strict=True
        )
    ]

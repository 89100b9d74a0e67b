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
from pipelines.making import Account, Making
from pipelines.manifest import ClassInfo, FileInfo

FILE_NAME = "manifest.json"
KIND = "predictions"
_FORMAT_VERSION = 2
_META_KEY = b"maskray"
_CONTENT = "content_sha256"

_FIELDS_1 = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
    pa.field("scores", pa.list_(pa.float32()), nullable=False),
    pa.field("labels", pa.list_(pa.int32()), nullable=False),
    pa.field("rles", pa.list_(pa.binary()), nullable=False),
    pa.field("areas", pa.list_(pa.int64()), nullable=False),
]
_SCHEMA_1 = pa.schema(_FIELDS_1)
SCHEMA = pa.schema(
    [
        *(field.with_nullable(True) if field.name == "rles" else field for field in _FIELDS_1),
        pa.field("view_agreement", pa.list_(pa.float32()), nullable=False),
        pa.field("box_spread", pa.list_(pa.float32()), nullable=False),
        pa.field("mask_agreement", pa.list_(pa.float32())),
        # Three numbers a keypoint, one list a detection.
        pa.field("keypoints", pa.list_(pa.list_(pa.float32()))),
        pa.field("rejected", pa.string()),
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
        rles: COCO compressed counts of the masks at original size; None of a detector without a mask head.
        areas: int64 [D], mask pixels; without masks those of the box.
        view_agreement: float32 [D] in 0..1, share of the views that found the object; 1 of one view.
        box_spread: float32 [D], standard deviation of the views' box edges over the box's sides; 0 of one view.
        mask_agreement: float32 [D] in 0..1, mean IoU of the views' masks with the merged one; None without masks.
        keypoints: float32 [D, J, 3], x and y in original pixels and the score of the heat map's peak; None of a
            detector without a keypoint head.
        rejected: why the picture could not be looked at; empty where it was.
    """

    image_id: int
    height: int
    width: int
    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    rles: tuple[bytes, ...] | None
    areas: npt.NDArray[np.int64]
    view_agreement: npt.NDArray[np.float32]
    box_spread: npt.NDArray[np.float32]
    mask_agreement: npt.NDArray[np.float32] | None = None
    keypoints: npt.NDArray[np.float32] | None = None
    rejected: str = ""


@dataclasses.dataclass(frozen=True)
class PredictionsManifest:
    """The commit of a predictions folder.

    Attributes:
        dataset: hash of the manifest of the data set that was labelled.
        checkpoint: hash of the detector's checkpoint.
        classes: in the order of labels.
        shards: one for each shard of the data set, in its order.
        pictures: all of them; labelled, empty and rejected.
        detections: in all.
        making: how they were made; None of format 1, which had one view in float32.
        account: what became of the pictures; None of format 1.
        machines: kinds of machine that made them; bits are equal only on the same kind.
    """

    dataset: str
    checkpoint: str
    classes: tuple[ClassInfo, ...]
    shards: tuple[FileInfo, ...]
    pictures: int
    detections: int
    making: Making | None = None
    account: Account | None = None
    machines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the account.

        Raises:
            PredictionsError: pictures were lost or counted twice.
        """
        if self.account and self.pictures != sum(dataclasses.astuple(self.account)):
            raise PredictionsError(
                f"the account does not add up: {self.pictures} pictures, {self.account.labelled} labelled, "
                f"{self.account.empty} empty and {self.account.rejected} rejected"
            )

    @property
    def hash(self) -> str:
        """sha256 of the manifest's bytes."""
        return commit.sha256_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The manifest's file, with a checksum over all the rest; of format 1 if it was read from such a one."""
        body = dataclasses.asdict(self)
        if self.making is not None:
            return commit.sealed(KIND, _FORMAT_VERSION, body)
        for name in ("making", "account", "machines"):
            del body[name]
        return commit.sealed(KIND, 1, body)

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
            data = storage.read_bytes(filesystem, path)
            version = json.loads(data)["format_version"]
            body = commit.unsealed(data, KIND, 1 if version == 1 else _FORMAT_VERSION)
            body["classes"] = tuple(ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in body["classes"])
            body["shards"] = tuple(FileInfo(**shard) for shard in body["shards"])
            if version != 1:
                body["making"] = Making(**{**body["making"], "views": tuple(body["making"]["views"])})
                body["account"] = Account(**body["account"])
                body["machines"] = tuple(body["machines"])
            return PredictionsManifest(**body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PredictionsError(
                f"{path} is no predictions manifest of version 1 or {_FORMAT_VERSION} ({error}): "
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
        "rles": [None if p.rles is None else list(p.rles) for p in pictures],
        "areas": [p.areas for p in pictures],
        "view_agreement": [p.view_agreement for p in pictures],
        "box_spread": [p.box_spread for p in pictures],
        "mask_agreement": [p.mask_agreement for p in pictures],
        "keypoints": [None if p.keypoints is None else [k.ravel() for k in p.keypoints] for p in pictures],
        "rejected": [p.rejected or None for p in pictures],
    }
    batch = pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)
    return _to_file(batch, {**meta, _CONTENT: _digest(batch, meta)})


def _digest(batch: pa.RecordBatch, meta: Mapping[str, Any]) -> str:
    """The sha256 of a shard's rows and notes."""
    noted = json.dumps(dict(meta), sort_keys=True).encode()
    return commit.sha256_of(noted + bytes(batch.replace_schema_metadata(None).serialize()))


def _to_file(batch: pa.RecordBatch, meta: Mapping[str, Any]) -> pa.Buffer:
    schema = SCHEMA.with_metadata({_META_KEY: json.dumps(dict(meta), sort_keys=True).encode()})
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return sink.getvalue()


def read_intact(filesystem: pafs.FileSystem, path: str) -> tuple[dict[str, Any], FileInfo] | None:
    """Notes and identity of a shard that no manifest vouches for yet.

    Returns:
        None where a single byte is not as its writer left it, or where there is no such shard.
    """
    try:
        data = storage.read_bytes(filesystem, path)
        reader = ipc.open_file(pa.BufferReader(data))
        noted: dict[str, Any] = dict(json.loads((reader.schema.metadata or {})[_META_KEY]))
        batch = reader.get_batch(0)
        batch.validate(full=True)
        if not batch.schema.remove_metadata().equals(SCHEMA) or not _to_file(batch, noted).equals(pa.py_buffer(data)):
            return None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    content = noted.pop(_CONTENT, None)
    info = FileInfo(path.rsplit("/", 1)[-1], len(data), commit.sha256_of(data))
    return (noted, info) if content == _digest(batch, noted) else None


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
    if not any(table.schema.remove_metadata().equals(schema) for schema in (SCHEMA, _SCHEMA_1)):
        raise PredictionsError(f"{path} has the columns {table.schema.names}, wanted {SCHEMA.names}")
    return [_from_row(row) for row in table.to_pylist()]


def _from_row(row: Mapping[str, Any]) -> PicturePrediction:
    """A picture's prediction; one of format 1 was made in one view, with masks and without keypoints."""
    count = len(row["scores"])
    optional = {name: row.get(name) for name in ("rles", "mask_agreement", "keypoints")}
    if "view_agreement" not in row:
        optional["mask_agreement"] = [1.0] * count
    points = optional["keypoints"]
    return PicturePrediction(
        image_id=row["image_id"],
        height=row["height"],
        width=row["width"],
        boxes_xyxy=np.array(row["boxes_xyxy"], np.float32).reshape(-1, 4),
        scores=np.array(row["scores"], np.float32),
        labels=np.array(row["labels"], np.int64),
        rles=None if optional["rles"] is None else tuple(optional["rles"]),
        areas=np.array(row["areas"], np.int64),
        view_agreement=np.array(row.get("view_agreement", [1.0] * count), np.float32),
        box_spread=np.array(row.get("box_spread", [0.0] * count), np.float32),
        mask_agreement=None if optional["mask_agreement"] is None else np.array(optional["mask_agreement"], np.float32),
        keypoints=None if points is None else np.array(points, np.float32).reshape(count, -1 if count else 0, 3),
        rejected=row.get("rejected") or "",
    )


def count_detections(uri: str, file: str) -> dict[int, int]:
    """Detections a picture of a shard, by image id; nothing else of it is read."""
    filesystem, folder = storage.open_uri(uri)
    with filesystem.open_input_file(storage.join(folder, file)) as source:
        names = ipc.open_file(source).schema.names
        fields = [names.index(name) for name in ("image_id", "scores")]
        table = ipc.open_file(source, options=ipc.IpcReadOptions(included_fields=fields)).read_all()
    counts = [0 if scores is None else len(scores) for scores in table.column("scores").to_pylist()]
    return dict(zip(table.column("image_id").to_pylist(), counts, strict=True))


def all_pictures(uri: str, manifest: PredictionsManifest) -> Iterator[PicturePrediction]:
    """Every picture's prediction, in the data set's order."""
    for shard in manifest.shards:
        yield from read_pictures(uri, shard)


def to_results(picture: PicturePrediction, classes: Sequence[ClassInfo]) -> list[dict[str, Any]]:
    """COCO result rows of one picture: bbox in xywh, source category ids; what the detector has of the rest.

    That is the segmentation as compressed RLE, and for classes with keypoints x, y and the score of each. How far the
    views agree stands beside COCO's own fields, which readers of results leave alone.
    """
    rows = []
    for i, (x1, y1, x2, y2) in enumerate(picture.boxes_xyxy.astype(float).tolist()):
        info = classes[int(picture.labels[i])]
        row: dict[str, Any] = {
            "image_id": picture.image_id,
            "category_id": info.id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(picture.scores[i]),
            "view_agreement": float(picture.view_agreement[i]),
            "box_spread": float(picture.box_spread[i]),
        }
        if picture.mask_agreement is not None:
            row["mask_score"] = float(picture.mask_agreement[i])
        if picture.rles is not None:
            counts = picture.rles[i].decode("ascii")
            row["segmentation"] = {"size": [picture.height, picture.width], "counts": counts}
        if picture.keypoints is not None and info.keypoints:
            # Annotations name pixels by their index, predictions by their place: a pixel's centre is at .5.
            row["keypoints"] = (picture.keypoints[i].astype(float) - [0.5, 0.5, 0.0]).ravel().tolist()
        rows.append(row)
    return rows

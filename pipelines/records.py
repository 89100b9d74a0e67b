"""The data contract: what one picture with its objects is, and the one Arrow schema that holds it.

Plain Arrow types only. Extension types are refused because reading one can run code that came with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
FloatArray = npt.NDArray[np.float64]

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        # large_: 32-bit offsets overflow at 2 GiB when batches of pictures are concatenated.
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("labelled", pa.bool_(), nullable=False),
        pa.field("instance_id", pa.list_(pa.int64()), nullable=False),
        pa.field("label", pa.list_(pa.int32()), nullable=False),
        pa.field("box_xyxy", pa.list_(pa.list_(pa.float64(), 4)), nullable=False),
        pa.field("area", pa.list_(pa.float64()), nullable=False),
        pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("ignore", pa.list_(pa.bool_()), nullable=False),
        # float64, as annotated: a polygon rounded to float32 rasterises differently along its border.
        pa.field("polygons", pa.list_(pa.list_(pa.list_(pa.float64()))), nullable=False),
        pa.field("rle", pa.list_(pa.binary()), nullable=False),
        pa.field("keypoints", pa.list_(pa.list_(pa.float32())), nullable=False),
        pa.field("score", pa.list_(pa.float32()), nullable=False),
        pa.field("loss_weight", pa.list_(pa.float32()), nullable=False),
        pa.field("semantic", pa.large_binary()),
        # Of pseudo-labels alone: empty for a picture that people labelled, or for an object without them.
        pa.field("view_agreement", pa.list_(pa.float32())),
        pa.field("box_spread", pa.list_(pa.float32())),
        pa.field("mask_score", pa.list_(pa.float32())),
        pa.field("keypoint_scores", pa.list_(pa.list_(pa.float32()))),
    ]
)
_PSEUDO = ("view_agreement", "box_spread", "mask_score", "keypoint_scores")
_SCHEMA_2 = pa.schema([field for field in SCHEMA if field.name not in _PSEUDO])
_SCHEMA_1 = pa.schema([field for field in _SCHEMA_2 if field.name != "semantic"])


class SchemaError(ValueError):
    """Data that has neither exactly `SCHEMA` nor exactly that of an older version."""


class Instance(NamedTuple):  # not a frozen dataclass, which takes four times as long to make: a picture has dozens
    """One object of a picture.

    Attributes:
        id: the source's annotation id.
        label: 0..K-1, contiguous in ascending source category id.
        box_xyxy: absolute pixels of the upright picture, x2 > x1 and y2 > y1; as annotated, so it may reach
            outside.
        area: square pixels as annotated (COCO's size ranges are defined on it).
        crowd: a region of many objects (COCO iscrowd); never a positive.
        ignore: neither a positive nor a negative.
        polygons: rings [2n] of x0, y0, x1, y1, ... in pixels, n >= 3; None where the mask is `rle` or
            unknown.
        rle: COCO compressed counts at full picture size, column-major, canonical; None where polygons hold
            the mask.
        keypoints: float32 [K, 3] of x, y (pixels) and visibility 0, 1 or 2; None where there are none.
        score: 1.0 for human labels, in 0..1 for pseudo-labels.
        loss_weight: weight of this object's losses, >= 0.
        view_agreement: share of a detector's views that found it, 0..1; None for human labels.
        box_spread: standard deviation of its box's edges over the views, over the box's sides; None likewise.
        mask_score: mean IoU of the views' masks with the merged one, 0..1; None without.
        keypoint_scores: float32 [K], peaks of the heat maps; None without.
    """

    id: int
    label: int
    box_xyxy: tuple[float, float, float, float]
    area: float
    crowd: bool
    ignore: bool
    polygons: tuple[FloatArray, ...] | None
    rle: bytes | None
    keypoints: npt.NDArray[np.float32] | None
    score: float = 1.0
    loss_weight: float = 1.0
    view_agreement: float | None = None
    box_spread: float | None = None
    mask_score: float | None = None
    keypoint_scores: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Record:
    """One picture as it was found, and its objects.

    Attributes:
        image_id: the source's id.
        file_name: as in the source, relative to the folder of pictures.
        image: the original compressed bytes; decode with `pipelines.decode.decode_rgb`.
        sha256: of `image`, 64 hexadecimal digits.
        height: pixels, after EXIF orientation.
        width: pixels, after EXIF orientation.
        instances: kept objects in the source's order.
        labelled: False where nobody looked for objects, so that no instances does not mean no objects.
        semantic: PNG of one class a pixel, at this height and width, 255 where it is not known; decode with
            `pipelines.decode.decode_map`. None where there is no map.
    """

    image_id: int
    file_name: str
    image: bytes
    sha256: str
    height: int
    width: int
    instances: tuple[Instance, ...]
    labelled: bool
    semantic: bytes | None = None


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records as a table of `SCHEMA`, one row each, in one chunk a column."""
    rows = list(records)
    columns: dict[str, list[object]] = {
        "image_id": [r.image_id for r in rows],
        "file_name": [r.file_name for r in rows],
        "image": [r.image for r in rows],
        "sha256": [r.sha256 for r in rows],
        "height": [r.height for r in rows],
        "width": [r.width for r in rows],
        "labelled": [r.labelled for r in rows],
        "instance_id": [[i.id for i in r.instances] for r in rows],
        "label": [[i.label for i in r.instances] for r in rows],
        "box_xyxy": [[i.box_xyxy for i in r.instances] for r in rows],
        "area": [[i.area for i in r.instances] for r in rows],
        "crowd": [[i.crowd for i in r.instances] for r in rows],
        "ignore": [[i.ignore for i in r.instances] for r in rows],
        "polygons": [[None if i.polygons is None else list(i.polygons) for i in r.instances] for r in rows],
        "rle": [[i.rle for i in r.instances] for r in rows],
        "keypoints": [[None if i.keypoints is None else i.keypoints.ravel() for i in r.instances] for r in rows],
        "score": [[i.score for i in r.instances] for r in rows],
        "loss_weight": [[i.loss_weight for i in r.instances] for r in rows],
        "semantic": [r.semantic for r in rows],
    }
    for name in _PSEUDO:
        values = [[getattr(i, name) for i in r.instances] for r in rows]
        columns[name] = [None if all(value is None for value in of) else of for of in values]
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


class Rows:
    """The rows of a table as records, whose columns are looked up once."""

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        """Take data of `SCHEMA` or an older version; checked by `check_schema` when its file was opened, not here."""
        self._columns = {name: table.column(name) for name in table.schema.names}
        self._count = table.num_rows

    def __getitem__(self, row: int) -> Record:
        """One row as a record; its arrays are copies and stay valid when the table's memory goes.

        Raises:
            IndexError: not 0 <= row < number of rows.
        """
        if not 0 <= row < self._count:
            raise IndexError(f"row {row} of {self._count}")
        one = {name: column[row] for name, column in self._columns.items()}
        return Record(
            image_id=one["image_id"].as_py(),
            file_name=one["file_name"].as_py(),
            image=one["image"].as_py(),
            sha256=one["sha256"].as_py(),
            height=one["height"].as_py(),
            width=one["width"].as_py(),
            instances=_instances(one),
            labelled=one["labelled"].as_py(),
            semantic=one["semantic"].as_py() if "semantic" in one else None,
        )


def from_table(table: pa.Table | pa.RecordBatch, row: int) -> Record:
    """`Rows(table)[row]`, where only one is wanted."""
    return Rows(table)[row]


def check_schema(schema: pa.Schema, where: str) -> None:
    """Refuse anything but exactly `SCHEMA` or that of version 1, extension types in disguise included.

    Args:
        schema: what a file claims to hold; its own key-value metadata is free, its fields' is not.
        where: the file, for the message.

    Raises:
        SchemaError: another column, type, order or nullability, or field metadata.
    """
    wanted = next((known for known in (_SCHEMA_1, _SCHEMA_2) if schema.names == known.names), SCHEMA)
    if schema.names != wanted.names:
        raise SchemaError(f"{where} has the columns {schema.names}, wanted {SCHEMA.names}: prepare the data again")
    for have, want in zip(schema, wanted, strict=True):
        if not have.equals(want) or _has_metadata(have):
            raise SchemaError(f"{where}: column {want.name} is {_shown(have)}, wanted {_shown(want)}: prepare again")


def _instances(one: dict[str, pa.Scalar]) -> tuple[Instance, ...]:
    ids = one["instance_id"].as_py()
    if not ids:
        return ()
    boxes = one["box_xyxy"].as_py()
    labels, areas = one["label"].as_py(), one["area"].as_py()
    crowds, ignores = one["crowd"].as_py(), one["ignore"].as_py()
    rles, keypoints = one["rle"].as_py(), one["keypoints"].as_py()
    scores, weights = one["score"].as_py(), one["loss_weight"].as_py()
    polygons = _polygons(one["polygons"].values)
    nothing = [None] * len(ids)
    pseudo = {name: (one[name].as_py() if name in one else None) or nothing for name in _PSEUDO}
    return tuple(
        Instance(
            id=ids[i],
            label=labels[i],
            box_xyxy=tuple(boxes[i]),
            area=areas[i],
            crowd=crowds[i],
            ignore=ignores[i],
            polygons=polygons[i],
            rle=rles[i],
            keypoints=None if keypoints[i] is None else np.array(keypoints[i], np.float32).reshape(-1, 3),
            score=scores[i],
            loss_weight=weights[i],
            view_agreement=pseudo["view_agreement"][i],
            box_spread=pseudo["box_spread"][i],
            mask_score=pseudo["mask_score"][i],
            keypoint_scores=None if (own := pseudo["keypoint_scores"][i]) is None else np.array(own, np.float32),
        )
        for i in range(len(ids))
    )


def _polygons(per_instance: pa.ListArray) -> list[tuple[FloatArray, ...] | None]:
    # Offsets are absolute positions in `.values` also for a slice: those of the whole column.
    rings = per_instance.values
    first = per_instance.offsets.to_numpy()
    start = rings.offsets.to_numpy()[first[0] : first[-1] + 1]
    flat = rings.values.to_numpy()[start[0] : start[-1]].copy()  # all at once: the rings share it
    first, start = first - first[0], start - start[0]
    known = per_instance.is_valid().to_numpy(zero_copy_only=False)
    return [
        tuple([flat[start[r] : start[r + 1]] for r in range(first[i], first[i + 1])]) if known[i] else None
        for i in range(len(per_instance))
    ]


def _has_metadata(field: pa.Field) -> bool:
    if field.metadata or isinstance(field.type, pa.BaseExtensionType):
        return True
    return any(_has_metadata(field.type.field(i)) for i in range(field.type.num_fields))


def _shown(field: pa.Field) -> str:
    extra = " with field metadata" if _has_metadata(field) else ""
    return f"{field.type}{'' if field.nullable else ' not null'}{extra}"

"""What was set aside and why: the reasons, one rejection, and the file that keeps them beside the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import pyarrow as pa
from pyarrow import ipc

FILE_NAME = "rejected.arrow"
_SHOWN_CHARACTERS = 200


class Reason(Enum):
    """Why a picture or an object was set aside."""

    BAD_IMAGE_ID = "bad_image_id"
    DUPLICATE_IMAGE_ID = "duplicate_image_id"
    UNSAFE_FILE_NAME = "unsafe_file_name"
    MISSING_PICTURE = "missing_picture"
    EMPTY_PICTURE = "empty_picture"
    UNSUPPORTED_PICTURE = "unsupported_picture"
    PICTURE_TOO_LARGE = "picture_too_large"
    CORRUPT_PICTURE = "corrupt_picture"
    BAD_SIZE = "bad_size"
    SIZE_MISMATCH = "size_mismatch"
    UNKNOWN_IMAGE_ID = "unknown_image_id"
    UNKNOWN_CATEGORY = "unknown_category"
    BAD_INSTANCE_ID = "bad_instance_id"
    DUPLICATE_INSTANCE_ID = "duplicate_instance_id"
    BAD_BOX = "bad_box"
    BAD_AREA = "bad_area"
    BAD_FLAG = "bad_flag"
    BAD_SEGMENTATION = "bad_segmentation"
    BAD_KEYPOINTS = "bad_keypoints"
    NO_MASK = "no_mask"
    MISSING_LABELS = "missing_labels"
    BAD_LABELS = "bad_labels"
    MISSING_MAP = "missing_map"
    BAD_MAP = "bad_map"


@dataclass(frozen=True)
class Rejection:
    """One picture or object that is not in the shards.

    Attributes:
        reason: why.
        field: the field at fault, as the source names it.
        value: what was found there, escaped and cut to 200 characters.
        is_row: True for a whole picture, False for one object.
        file_name: of the picture, escaped; empty where unknown.
        image_id: the source's id of the picture; None where it has no usable one.
        instance_id: the source's id of the object; None for pictures and where unusable.
        instances: objects lost by it: 1 for an object, all of its objects for a picture.
    """

    reason: Reason
    field: str
    value: str
    is_row: bool
    file_name: str = ""
    image_id: int | None = None
    instance_id: int | None = None
    instances: int = 0


SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),
        pa.field("is_row", pa.bool_(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        pa.field("instance_id", pa.int64()),
        pa.field("instances", pa.int64(), nullable=False),
    ]
)


def shown(value: object) -> str:
    """A stranger's value for messages and files: ASCII, escaped, at most 200 characters."""
    if isinstance(value, int) and value.bit_length() > 200:  # str() of a huge integer raises
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict) and len(value) > 40:
        return f"a {type(value).__name__} of {len(value)} values"
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def to_dict(rejection: Rejection) -> dict[str, object]:
    """A rejection as JSON-able values by column name."""
    return {**vars(rejection), "reason": rejection.reason.value}


def from_dict(row: dict[str, object]) -> Rejection:
    """The rejection that `to_dict` wrote.

    Raises:
        ValueError: an unknown reason.
    """
    return Rejection(**{**row, "reason": Reason(row["reason"])})  # type: ignore[arg-type]


def to_ipc(rejections: Sequence[Rejection]) -> pa.Buffer:
    """All rejections as the bytes of one Arrow IPC file."""
    table = pa.Table.from_pylist([to_dict(r) for r in rejections], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_ipc(data: bytes) -> tuple[Rejection, ...]:
    """The rejections of a file that `to_ipc` made and the manifest's hash vouches for.

    Raises:
        ValueError: not such a file.
    """
    table = ipc.open_file(pa.BufferReader(data)).read_all()
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{FILE_NAME} has the columns {table.schema.names}, wanted {SCHEMA.names}")
    return tuple(from_dict(row) for row in table.to_pylist())


def summary(rejections: Sequence[Rejection], top: int = 3) -> str:
    """The commonest reasons with their counts and one example each, on one line."""
    counts = Counter(r.reason for r in rejections)
    parts = []
    for reason, count in counts.most_common(top):
        example = next(r for r in rejections if r.reason is reason)
        where = f" of {example.file_name}" if example.file_name else ""
        parts.append(f"{count} x {reason.value} (such as {example.field} = {example.value}{where})")
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(top))
    return "; ".join(parts) + (f"; {rest} more of other reasons" if rest else "")

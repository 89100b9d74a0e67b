"""The gate of the data: a raw picture with its objects becomes a `Record`, or a `Rejection` that says why.

Pure functions of their arguments: no file, no clock, no Ray. A bad picture rejects its row; a bad object is
set aside alone.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace

from pipelines import commit, decode
from pipelines.check_instance import InstanceError, Vocabulary, check_instance
from pipelines.check_semantic import MapError, check_map, paint
from pipelines.datasets import cityscapes
from pipelines.records import Instance, Record
from pipelines.rejections import Reason, Rejection, shown
from pipelines.source_index import RawRow, as_id

_MAX_NAME_BYTES = 1024
_ENCODED = ("%2e", "%2f", "%5c", "%00")
_UNSEEN = ("Cc", "Cf", "Zl", "Zp")  # controls, marks that turn the direction of writing, ends of lines
_REASON_OF_FAULT = {
    decode.DecodeFault.EMPTY: Reason.EMPTY_PICTURE,
    decode.DecodeFault.UNSUPPORTED: Reason.UNSUPPORTED_PICTURE,
    decode.DecodeFault.TOO_LARGE: Reason.PICTURE_TOO_LARGE,
    decode.DecodeFault.CORRUPT: Reason.CORRUPT_PICTURE,
}


@dataclass(frozen=True)
class Rules:
    """What a check depends on beside the data.

    Attributes:
        vocabulary: the classes.
        labelled: whether somebody looked for objects in these pictures.
        max_pixels: refuse larger pictures, by their header.
        full_decode: decode every pixel; else only the header is read, and a cut file passes.
        semantic_classes: values of semantic maps are below this.
        masks_required: set objects without a mask aside.
    """

    vocabulary: Vocabulary
    labelled: bool
    max_pixels: int = decode.MAX_PIXELS
    full_decode: bool = True
    semantic_classes: int = 0
    masks_required: bool = False


@dataclass(frozen=True)
class Checked:
    """A picture that is kept.

    Attributes:
        record: the picture and its good objects.
        rejections: its bad ones.
    """

    record: Record
    rejections: tuple[Rejection, ...]


def check(
    row: RawRow, data: bytes, rules: Rules, semantic: bytes | None = None, labels: bytes | None = None
) -> Checked | Rejection:
    """Judge one picture and its objects.

    Args:
        row: what the source lists.
        data: the picture's file, whole.
        rules: classes and limits.
        semantic: the file of its semantic map, whole; None where the source has none or lists it as masks.
        labels: the file of its size and objects, whole; None where the row lists them.
    """
    if labels is not None:
        labelled = _with_labels(row, labels, rules)
        if isinstance(labelled, Rejection):
            return labelled
        row = labelled
    try:
        header = decode.read_header(data, rules.max_pixels)
        if rules.full_decode:
            decode.decode_rgb(data, rules.max_pixels)
    except decode.DecodeError as error:
        return reject_row(row, _REASON_OF_FAULT[error.fault], "file_name", str(error))
    mismatch = _size_problem(row, header)
    if mismatch is not None:
        return mismatch
    problems: list[str] = []
    if semantic is not None:
        try:
            check_map(semantic, header.height, header.width, rules.semantic_classes)
        except MapError as error:
            return reject_row(row, Reason.BAD_MAP, "semantic", str(error))
    elif isinstance(row.semantic, list):
        semantic, problems = paint(row.semantic, header.height, header.width)
        if problems and len(problems) == len(row.semantic):  # else a map of nothing would be learned
            return reject_row(row, Reason.BAD_MAP, "semantic", f"none of its masks can be used; {problems[0]}")
    checked = _with_instances(row, data, header, rules)
    # A mask of the map that cannot be painted costs no object: those are judged by themselves.
    lost = (_rejection(row, Reason.BAD_MAP, "semantic", text) for text in problems)
    return Checked(replace(checked.record, semantic=semantic), (*checked.rejections, *lost))


def check_file_name(row: RawRow) -> Rejection | None:
    """Judge a file name before anything is opened by it: only plain relative paths below the folder pass."""
    problem = _name_problem(row.file_name)
    if problem is None:
        return None
    return reject_row(row, Reason.UNSAFE_FILE_NAME, "file_name", f"{shown(row.file_name)} {problem}")


def reject_row(row: RawRow, reason: Reason, field: str, value: str) -> Rejection:
    """The rejection of a whole picture; its objects are lost with it and counted."""
    return Rejection(
        reason=reason,
        field=field,
        value=value,
        is_row=True,
        file_name=_name_shown(row),
        image_id=row.image_id,
        instances=len(row.annotations),
    )


def _with_labels(row: RawRow, labels: bytes, rules: Rules) -> RawRow | Rejection:
    """The row with the size and the objects that its label file says."""
    try:
        found = cityscapes.read_labels(labels, str(row.labels), rules.max_pixels)
    except cityscapes.LabelsError as error:
        return reject_row(row, Reason.BAD_LABELS, "labels", f"{shown(row.labels)}: {error}")
    return replace(row, height=found.height, width=found.width, annotations=found.objects)


def _size_problem(row: RawRow, header: decode.Header) -> Rejection | None:
    for field, claimed, found in (("height", row.height, header.height), ("width", row.width, header.width)):
        if claimed is None:
            continue
        size = as_id(claimed)
        if size is None or size < 1:
            return reject_row(row, Reason.BAD_SIZE, field, f"{shown(claimed)}, wanted a positive integer")
        if size != found:
            turned = f" (EXIF orientation {header.orientation})" if header.orientation > 1 else ""
            return reject_row(row, Reason.SIZE_MISMATCH, field, f"{size}, the picture has {found}{turned}")
    return None


def _with_instances(row: RawRow, data: bytes, header: decode.Header, rules: Rules) -> Checked:
    kept: list[Instance] = []
    rejections: list[Rejection] = []
    for raw in row.annotations:
        try:
            instance = check_instance(raw, header.height, header.width, rules.vocabulary)
            if rules.masks_required and instance.polygons is None and instance.rle is None:
                raise InstanceError(Reason.NO_MASK, "segmentation", "there is no mask")
            kept.append(instance)
        except InstanceError as fault:
            instance_id = as_id(raw.get("id")) if isinstance(raw, dict) else None
            lost = _rejection(row, fault.reason, fault.field, fault.value)
            rejections.append(replace(lost, instance_id=instance_id, instances=1))
    record = Record(
        image_id=row.image_id,
        file_name=str(row.file_name),
        image=data,
        sha256=commit.sha256_of(data),
        height=header.height,
        width=header.width,
        instances=tuple(kept),
        labelled=rules.labelled,
    )
    return Checked(record, tuple(rejections))


def _rejection(row: RawRow, reason: Reason, field: str, value: str) -> Rejection:
    return Rejection(reason, field, value, is_row=False, file_name=_name_shown(row), image_id=row.image_id)


def _name_shown(row: RawRow) -> str:
    # Plain names are shown as they are, so that they can be found; anything odd is escaped.
    name = row.file_name
    return name if isinstance(name, str) and name.isascii() and name.isprintable() and len(name) < 200 else shown(name)


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return "is not a file name"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    parts = name.split("/")
    tests = (
        (length > _MAX_NAME_BYTES, f"is longer than {_MAX_NAME_BYTES} bytes"),
        (any(unicodedata.category(c) in _UNSEEN for c in name), "holds control characters"),
        ("\\" in name, "holds a backslash"),
        ("://" in name or name[1:2] == ":", "begins as URLs or drives do"),
        (any(code in name.lower() for code in _ENCODED), "holds percent-encoded path characters"),
        (name.startswith(("/", "~")), "is not relative to the folder of pictures"),
        (any(part in ("", ".", "..") for part in parts), "has empty or dotted parts"),
        (any(part.endswith((".", " ")) for part in parts), "has a part that ends in a dot or a space"),
        (unicodedata.normalize("NFC", name) != name, "is not in Unicode normal form C"),
    )
    return next((problem for failed, problem in tests if failed), None)

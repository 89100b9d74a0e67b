"""nuImages: pictures of key frames with the ten detection classes, straight from the JSON tables.

Of each key frame: objects as boxes with run lengths in base64, and, from all masks of objects and surfaces, a semantic
map of 32 values as nuScenes' own tool paints it. Categories outside of the ten (animals, debris, ...) are no objects
here; they stand in the map. The area of an object is that of its box, as the published results count it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines import storage
from pipelines.manifest import ClassInfo
from pipelines.rejections import Reason, Rejection, shown
from pipelines.source_index import Index, RawRow, id_of_name

_NAMES = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
)  # fmt: skip
CLASSES = tuple(ClassInfo(number, name) for number, name in enumerate(_NAMES))
"""The ten classes of the detection benchmark; their ids are their labels."""

_CLASS_OF = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.trailer": "trailer",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bicycle": "bicycle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
VERSIONS = ("v1.0-mini", "v1.0-train", "v1.0-val", "v1.0-test")
SEMANTIC_CLASSES = 32
_SURFACES = {"flat.driveable_surface": 24, "vehicle.ego": 31}
_MAX_TABLE_BYTES = 8 * 2**30
# The tables in use and the fields that link them.
_LINKS = {
    "category": ("token", "name"),
    "sample": ("key_camera_token",),
    "sample_data": ("token",),
    "object_ann": ("token", "sample_data_token", "category_token"),
    "surface_ann": ("token", "sample_data_token", "category_token"),
}

Row = Mapping[str, Any]


class NuimagesError(ValueError):
    """Tables that are not nuImages'; the message is one line that says what to do."""


def read_index(root: str, version: str, semantic: bool) -> Index:
    """Read the tables of a version.

    Args:
        root: path or URI of the folder that holds `samples` and the folder of tables.
        version: one of `VERSIONS`; the pictures of "v1.0-test" count as unlabelled.
        semantic: paint semantic maps too.

    Raises:
        NuimagesError: a table is missing or is not of nuImages' form.
    """
    if version not in VERSIONS:
        raise NuimagesError(f"nuImages has no version {version!r}: choose one of {', '.join(VERSIONS)}")
    digest, tables = hashlib.sha256(), {}
    for name in _LINKS:
        raw, where = _read(root, version, name)
        digest.update(hashlib.sha256(raw).digest())
        tables[name] = _parse(raw, name, where)
    labelled = version != "v1.0-test"
    semantic = semantic and labelled
    names = {row["token"]: row["name"] for row in tables["category"]}
    frames, rejections = _frames(tables["sample"], tables["sample_data"])
    things, orphans = _by_frame(tables["object_ann"] if labelled else [], frames, names)
    surfaces, strays = _by_frame(tables["surface_ann"] if labelled else [], frames, names)
    values = _semantic_values(names.values()) if semantic else {}
    rows = []
    for token, frame in frames.items():
        own = sorted(things.get(token, []), key=lambda ann: str(ann["token"]))
        layers = [
            [values[names[ann["category_token"]]], _rle(ann["mask"])]
            for ann in (*surfaces.get(token, []), *own)
            if semantic and ann.get("mask") is not None
        ]
        objects = [
            _annotation(ann, _CLASS_OF[names[ann["category_token"]]])
            for ann in own
            if names[ann["category_token"]] in _CLASS_OF
        ]
        size = frame.get("height"), frame.get("width")
        rows.append(
            RawRow(id_of_name(token), frame.get("filename"), *size, objects, semantic=layers if semantic else None)
        )
    return Index(
        kind="nuimages",
        images=storage.canonical_uri(root),
        classes=CLASSES,
        rows=tuple(rows),
        rejections=(*rejections, *orphans, *strays),
        labelled=labelled,
        identity=digest.hexdigest(),
        source={"version": version, "semantic": str(semantic)},
        semantic_classes=SEMANTIC_CLASSES if semantic else 0,
        masks_required=True,
    )


def _read(root: str, version: str, name: str) -> tuple[bytes, str]:
    filesystem, path = storage.open_uri(root)
    where = storage.join(path, version, f"{name}.json")
    info = filesystem.get_file_info(where)
    if not storage.is_file(filesystem, where):
        raise NuimagesError(f"there is no table {where}: give the folder that holds `samples` and `{version}`")
    if (info.size or 0) > _MAX_TABLE_BYTES:
        raise NuimagesError(f"{where} has {info.size} bytes, the limit is {_MAX_TABLE_BYTES}")
    return storage.read_bytes(filesystem, where), where


def _parse(raw: bytes, name: str, where: str) -> list[Row]:
    try:
        rows = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise NuimagesError(f"{where} is not JSON ({str(error)[:200]}): give nuImages' own tables") from error
    if not isinstance(rows, list):
        raise NuimagesError(f"{where} holds a {type(rows).__name__}, wanted a list: give nuImages' own tables")
    for row in rows:
        for field in _LINKS[name]:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                found = row.get(field) if isinstance(row, dict) else row
                raise NuimagesError(f"{where}: {field} is {shown(found)}, wanted text: give nuImages' own tables")
    return rows


def _frames(samples: Sequence[Row], rows: Sequence[Row]) -> tuple[dict[str, Row], list[Rejection]]:
    """Key frames of the camera by token; lidar's key frames and sweeps between are no pictures of the data set."""
    tokens = [row["key_camera_token"] for row in samples]
    wanted = set(tokens)
    pictures = {row["token"]: row for row in rows if row["token"] in wanted}
    frames: dict[str, Row] = {}
    rejections = []
    for token in tokens:
        if token in pictures and token not in frames:
            frames[token] = pictures[token]
            continue
        reason = Reason.DUPLICATE_IMAGE_ID if token in frames else Reason.MISSING_PICTURE
        rejections.append(Rejection(reason, "key_camera_token", shown(token), True, image_id=id_of_name(token)))
    return frames, rejections


def _by_frame(
    anns: Sequence[Row], frames: Mapping[str, Row], names: Mapping[str, str]
) -> tuple[dict[str, list[Row]], list[Rejection]]:
    """Annotations by key frame, and those of no frame or no category; these count where they may be objects."""
    grouped: dict[str, list[Row]] = {}
    rejections = []
    for ann in anns:
        name = names.get(ann["category_token"])
        if name is not None and ann["sample_data_token"] in frames:
            grouped.setdefault(ann["sample_data_token"], []).append(ann)
            continue
        reason, field = Reason.UNKNOWN_IMAGE_ID, "sample_data_token"
        if name is None:
            reason, field = Reason.UNKNOWN_CATEGORY, "category_token"
        count = int("bbox" in ann and (name is None or name in _CLASS_OF))
        rejections.append(
            Rejection(reason, field, shown(ann[field]), False, instance_id=id_of_name(ann["token"]), instances=count)
        )
    return grouped, rejections


def _semantic_values(names: Iterable[str]) -> dict[str, int]:
    """Objects from 1 on by name, surfaces as nuScenes' tool numbers them."""
    objects = sorted(set(names) - set(_SURFACES))
    if len(objects) >= min(_SURFACES.values()):
        raise NuimagesError(f"the table of categories has {len(objects)} besides the surfaces, wanted at most 23")
    return {**{name: number for number, name in enumerate(objects, 1)}, **_SURFACES}


def _annotation(ann: Row, name: str) -> dict[str, object]:
    box = ann.get("bbox")
    try:
        x1, y1, x2, y2 = box  # type: ignore[misc]
        box = [x1, y1, x2 - x1, y2 - y1]
    except (TypeError, ValueError):
        pass  # left as it is for the check to reject
    return {
        "id": id_of_name(ann["token"]),
        "category_id": _NAMES.index(name),
        "bbox": box,
        "segmentation": _rle(ann.get("mask")),
    }


def _rle(mask: object) -> object:
    """A mask with its counts out of base64; what is no such thing is left for the check to reject."""
    if not isinstance(mask, dict):
        return mask
    try:
        counts = base64.b64decode(mask["counts"], validate=True).decode("ascii")
    except (KeyError, TypeError, ValueError):
        return {**mask, "counts": None}
    return {**mask, "counts": counts}

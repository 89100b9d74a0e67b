"""Cityscapes: pictures by city below leftImg8bit, objects in gtFine as an instance image or as polygons.

Both forms give the same objects: polygons are drawn in their order, later ones over earlier ones, as Cityscapes' own
tool makes the instance images. A pixel of an instance image is `class id * 1000 + number` for an object and `class id`
for a region of many (a group), which is kept as ignored.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pyarrow import fs as pafs

from pipelines import decode, masks, storage
from pipelines.manifest import ClassInfo
from pipelines.rejections import shown
from pipelines.source_index import Index, RawRow, id_of_name, identity_of

CLASSES = (
    ClassInfo(24, "person"),
    ClassInfo(25, "rider"),
    ClassInfo(26, "car"),
    ClassInfo(27, "truck"),
    ClassInfo(28, "bus"),
    ClassInfo(31, "train"),
    ClassInfo(32, "motorcycle"),
    ClassInfo(33, "bicycle"),
)
"""The eight classes that are evaluated by instance, with Cityscapes' own ids."""

_UNCOUNTED = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk",
    "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup",
    "traffic light", "traffic sign", "vegetation", "terrain", "sky",
)  # fmt: skip
# By name: id, and whether each polygon is an object of its own; -1 is never drawn.
_LABELS = {name: (number, False) for number, name in enumerate(_UNCOUNTED)}
_LABELS |= {info.name: (info.id, True) for info in CLASSES}
_LABELS |= {"caravan": (29, True), "trailer": (30, True), "license plate": (-1, False)}

SPLITS = ("train", "val", "test", "train_extra")
_UNLABELLED = ("test", "train_extra")  # of the extra pictures there are only coarse labels
_PICTURE = "_leftImg8bit.png"
_INSTANCES, _POLYGONS = "_gtFine_instanceIds.png", "_gtFine_polygons.json"
_PER_CLASS = 1000
_MAX_VERTICES = 1_000_000


class CityscapesError(ValueError):
    """No Cityscapes where it was looked for; the message is one line that says what to do."""


class LabelsError(ValueError):
    """The label file of one picture cannot be used; the message says what was found and wanted."""


class Labels(NamedTuple):
    """What a label file says.

    Attributes:
        height: of the labelled picture, pixels.
        width: of the labelled picture, pixels.
        objects: with COCO's keys; groups have ignore 1.
    """

    height: int
    width: int
    objects: list[Mapping[str, object]]


def read_index(root: str, split: str, polygons: bool) -> Index:
    """List the pictures of a split; their label files are read by the tasks that make the shards.

    Args:
        root: path or URI of the folder that holds leftImg8bit and gtFine.
        split: one of `SPLITS`; the pictures of "test" and "train_extra" count as unlabelled.
        polygons: read the polygons, else the instance images.

    Raises:
        CityscapesError: another split, or no such pictures.
    """
    if split not in SPLITS:
        raise CityscapesError(f"Cityscapes has no split {split!r}: choose one of {', '.join(SPLITS)}")
    filesystem, path = storage.open_uri(root)
    pictures = [(n, size) for n, size in _listed(filesystem, path, "leftImg8bit", split) if n.endswith(_PICTURE)]
    if not pictures:
        raise CityscapesError(
            f"{root} has no leftImg8bit/{split}/CITY/*{_PICTURE}: give the folder that holds leftImg8bit and gtFine"
        )
    labelled, suffix = split not in _UNLABELLED, _POLYGONS if polygons else _INSTANCES
    files = [(n, size) for n, size in _listed(filesystem, path, "gtFine", split) if labelled and n.endswith(suffix)]
    rows = [
        RawRow(id_of_name(name), name, None, None, (), name.removesuffix(_PICTURE) + suffix if labelled else None)
        for name, _ in pictures
    ]
    base = storage.canonical_uri(root)
    labels = storage.child_uri(base, "gtFine", split)
    return Index(
        kind="cityscapes",
        images=storage.child_uri(base, "leftImg8bit", split),
        classes=CLASSES,
        rows=tuple(rows),
        rejections=(),
        labelled=labelled,
        identity=identity_of([(suffix, 0), *pictures, *files]),
        source={"split": split, "labels": labels, "form": "polygons" if polygons else "instanceIds"},
        labels=labels if labelled else "",
    )


def _listed(filesystem: pafs.FileSystem, *folders: str) -> list[tuple[str, int]]:
    """Names and sizes of the files of a split; none where there is no such folder."""
    try:
        return storage.list_names(filesystem, storage.join(*folders))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_labels(data: bytes, name: str, max_pixels: int = decode.MAX_PIXELS) -> Labels:
    """The objects of one picture.

    Args:
        data: its label file, whole.
        name: of that file, which tells the form.
        max_pixels: refuse labels of larger pictures.

    Raises:
        LabelsError: not such a file.
    """
    ids = draw_polygons(data, max_pixels) if name.endswith(_POLYGONS) else _instance_image(data, max_pixels)
    return Labels(ids.shape[0], ids.shape[1], _objects(ids))


def _instance_image(data: bytes, max_pixels: int) -> npt.NDArray[np.uint16]:
    try:
        if decode.read_header(data, max_pixels).format != "PNG":
            raise LabelsError("the instance image is no PNG")
        values = np.array(Image.open(io.BytesIO(data), formats=("PNG",)))
    except decode.DecodeError as error:
        raise LabelsError(str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on broken PNGs
        raise LabelsError(f"the instance image cannot be decoded ({type(error).__name__})") from error
    if values.ndim != 2 or values.dtype == np.bool_ or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise LabelsError(f"the instance image is {values.dtype} {list(values.shape)}, wanted one 16-bit channel")
    return values.astype(np.uint16)


def draw_polygons(data: bytes, max_pixels: int = decode.MAX_PIXELS) -> npt.NDArray[np.uint16]:
    """The instance image [H, W] of a polygon file.

    Raises:
        LabelsError: not such a file.
    """
    try:
        body = json.loads(data)
        height, width, things = body["imgHeight"], body["imgWidth"], body["objects"]
        shapes = [(t["label"], [(x, y) for x, y in t["polygon"]], bool(t.get("deleted", 0))) for t in things]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LabelsError(f"not a polygon file ({type(error).__name__}: {shown(str(error))})") from error
    if not all(type(side) is int and side > 0 for side in (height, width)):
        raise LabelsError(f"the polygons' picture is {shown(height)}x{shown(width)}, wanted positive integers")
    if height * width > max_pixels:
        raise LabelsError(f"the polygons' picture is {shown(height)}x{shown(width)}, the limit is {max_pixels} pixels")
    limit = 2 * max(height, width)
    # Not-a-number and infinity fail the comparison.
    numbers = [v for _, ring, _ in shapes for point in ring for v in point]
    if len(numbers) > 2 * _MAX_VERTICES or not all(type(v) in (int, float) and -limit <= v <= limit for v in numbers):
        raise LabelsError(f"polygons hold values that are no coordinates in a picture of {height}x{width}")
    picture = Image.new("I", (width, height), 0)
    pen = ImageDraw.Draw(picture)
    counts: dict[str, int] = {}
    for label, ring, deleted in shapes:
        number = -1 if deleted else _drawn_id(label, counts)
        if number >= 0 and len(ring) >= 2:
            pen.polygon(ring, fill=number)
    return np.array(picture).astype(np.uint16)


def _drawn_id(label: object, counts: dict[str, int]) -> int:
    """The value a polygon is drawn with; the tool counts the objects of each class, hidden ones too."""
    is_group = isinstance(label, str) and label not in _LABELS and label.endswith("group")
    name = label.removesuffix("group") if isinstance(label, str) and is_group else label
    if not isinstance(name, str) or name not in _LABELS:
        raise LabelsError(f"a polygon has the label {shown(label)}, which Cityscapes does not know")
    number, counted = _LABELS[name]
    if not counted or is_group:
        return number
    counts[name] = counts.get(name, -1) + 1
    if counts[name] >= _PER_CLASS:
        raise LabelsError(f"more than {_PER_CLASS} objects are labelled {name!r}")
    return number * _PER_CLASS + counts[name]


def _objects(ids: npt.NDArray[np.uint16]) -> list[Mapping[str, object]]:
    height, width = ids.shape
    flat = np.ascontiguousarray(ids.T).ravel()  # by columns, as run lengths go
    wanted = {info.id for info in CLASSES}
    present = [int(v) for v in np.flatnonzero(np.bincount(flat)) if (v // _PER_CLASS or v) in wanted]
    if not present:
        return []
    chosen = np.zeros(np.iinfo(np.uint16).max + 1, bool)
    chosen[present] = True
    places = np.flatnonzero(chosen[flat])
    values = flat[places]
    order = np.argsort(values, kind="stable")  # within an object, places stay in ascending order
    made: list[Mapping[str, object]] = []
    for number, own in zip(present, np.split(places[order], np.flatnonzero(np.diff(values[order])) + 1), strict=True):
        columns, rows = np.divmod(own, height)
        x, y = int(columns[0]), int(rows.min())
        counts = masks.encode_places(own, height * width)
        made.append(
            {
                "id": number,
                "category_id": number // _PER_CLASS or number,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows.max()) + 1 - y],
                "area": own.size,
                "ignore": int(number < _PER_CLASS),
                "segmentation": {"size": [height, width], "counts": counts},
            }
        )
    return made

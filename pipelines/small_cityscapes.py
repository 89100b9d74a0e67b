"""The generated shapes as a small copy of Cityscapes: its folders, polygons, and the images drawn from them.

As in Cityscapes, a polygon is a whole object, later ones hide earlier ones, and what is seen through a hole belongs to
the object; a crowd is a group.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.datasets import cityscapes
from pipelines.outlines import to_traces
from pipelines.shapes import Picture, ShapesConfig, claim, render

NAMES = ("car", "person", "bicycle", "truck", "motorcycle")
"""What the shapes are called, in the order of `shapes.CATEGORIES`."""

# Split and city of each split of the shapes.
_PLACES = {"train": ("train", "aachen"), "val": ("val", "frankfurt"), "unlabeled": ("train_extra", "augsburg")}
_PER_CLASS = 1000


def generate(config: ShapesConfig, out: Path) -> None:
    """Write train, val and, without labels, train_extra below ``out``; the same again gives the same bytes.

    Raises:
        ValueError: ``out`` holds something else.
    """
    claim(config, out, "cityscapes")
    for split, count in (("train", config.train), ("val", config.val), ("unlabeled", config.unlabelled)):
        for index in range(count):
            _write(out, split, index, render(config, split, index))


def _write(out: Path, split: str, index: int, picture: Picture) -> None:
    place, city = _PLACES[split]
    name = f"{city}_{index:06d}_000019"
    files = {f"leftImg8bit/{place}/{city}/{name}_leftImg8bit.png": _png(picture.rgb)}
    if split != "unlabeled":
        polygons = json.dumps(_polygons(picture)).encode()
        instances = cityscapes.draw_polygons(polygons)
        labels = np.where(instances < _PER_CLASS, instances, instances // _PER_CLASS).astype(np.uint8)
        base = f"gtFine/{place}/{city}/{name}_gtFine"
        files |= {
            f"{base}_polygons.json": polygons,
            f"{base}_instanceIds.png": _png(instances),
            f"{base}_labelIds.png": _png(labels),
        }
    for file, data in files.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes(data)


def _polygons(picture: Picture) -> dict[str, Any]:
    height, width = picture.rgb.shape[:2]
    right, middle, bottom = width - 1, height // 2, height - 1
    things = [
        {"label": "sky", "polygon": [[0, 0], [right, 0], [right, middle], [0, middle]]},
        {"label": "road", "polygon": [[0, middle], [right, middle], [right, bottom], [0, bottom]]},
    ]
    for (label, crowd, _), whole in zip(picture.objects, picture.whole, strict=True):
        # A part of one or two pixels is no polygon; the smaller parts of a shape, such as the tip of a star, neither.
        parts = [part for part in to_traces(whole) if len(part) > 2]
        name = NAMES[label] + ("group" if crowd else "")
        things += [{"label": name, "polygon": [list(p) for p in part]} for part in (parts if crowd else parts[:1])]
    return {"imgHeight": height, "imgWidth": width, "objects": things}


def _png(pixels: npt.NDArray[Any]) -> bytes:
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()

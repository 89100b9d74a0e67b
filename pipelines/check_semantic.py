"""Semantic maps, one class a pixel: a source's own PNG judged, or painted from a source's masks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines import decode, masks
from pipelines.rejections import shown
from pipelines.source_index import as_id


class MapError(ValueError):
    """A semantic map, or one mask of it, that cannot be used; the message says what was found and wanted."""


def check_map(data: bytes, height: int, width: int, classes: int) -> None:
    """Judge a PNG of one class a pixel.

    Args:
        data: the whole file.
        height: of the picture, pixels.
        width: of the picture, pixels.
        classes: values must be below, or 255.

    Raises:
        MapError: not such a PNG, of another size, or a value between `classes` and 255.
    """
    try:
        # A picture was judged by its own limit; its map is not to be larger than it.
        values = decode.decode_map(data, max(height * width, decode.MAX_PIXELS))
    except decode.DecodeError as error:
        raise MapError(str(error)) from error
    if values.shape != (height, width):
        raise MapError(f"the map is {values.shape[0]}x{values.shape[1]}, the picture {height}x{width}")
    wrong = (values >= classes) & (values != decode.UNKNOWN_CLASS)
    if wrong.any():
        raise MapError(
            f"the map holds the value {int(values[wrong][0])}, wanted 0 to {classes - 1}, or 255 for unknown"
        )


def paint(layers: Sequence[object], height: int, width: int) -> tuple[bytes, list[str]]:
    """A map painted from masks, later ones over earlier ones, 0 where there is none.

    Args:
        layers: pairs of a value 1..254 and a mask as COCO RLE (size and counts), as a source lists them.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        The PNG, and what is wrong with each layer that was left out.
    """
    values = np.zeros((height, width), np.uint8)
    problems = []
    for number, layer in enumerate(layers):
        try:
            _paint_layer(values, layer)
        except MapError as error:
            problems.append(f"layer {number}: {error}")
    return _png(values), problems


def _paint_layer(values: npt.NDArray[np.uint8], layer: object) -> None:
    value, mask = layer if isinstance(layer, list | tuple) and len(layer) == 2 else (None, None)
    number = as_id(value)
    if number is None or not 0 < number < decode.UNKNOWN_CLASS or not isinstance(mask, Mapping):
        raise MapError(f"{shown(layer)}, wanted a value 1 to 254 and an RLE")
    size = mask.get("size")
    if not isinstance(size, list | tuple) or [as_id(side) for side in size] != list(values.shape):
        raise MapError(f"size is {shown(size)}, wanted {list(values.shape)} of the picture")
    try:
        y0, x0, bits = masks.crop_rle(masks.validate_rle(mask.get("counts"), *values.shape), *values.shape)
    except masks.MaskError as error:
        raise MapError(str(error)) from error
    if not bits.size:
        raise MapError("the mask covers no pixel")
    values[y0 : y0 + bits.shape[0], x0 : x0 + bits.shape[1]][bits != 0] = number


def _png(values: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", compress_level=6)
    return stream.getvalue()

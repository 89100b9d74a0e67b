"""Objects' masks on a placed picture as tight bitmaps: polygons are placed and then drawn, run lengths drawn first."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.ops.masks import polygon_crops
from pipelines.geometry import FloatArray, Placement
from pipelines.masks import crop, crop_rle
from pipelines.records import Instance, Record


class MaskCrop(NamedTuple):
    """A tight bitmap: bits uint8 [h, w], placed at row y0 and column x0 of the whole mask."""

    y0: int
    x0: int
    bits: npt.NDArray[np.uint8]


def mask_crops(things: Sequence[Instance], record: Record, placement: Placement) -> list[MaskCrop | None]:
    """The objects' masks on the placed picture; None for one that has none."""
    crops: list[MaskCrop | None] = [None] * len(things)
    outlined = [(number, rings) for number, thing in enumerate(things) if (rings := thing.polygons) is not None]
    if outlined:  # all at once, since each call costs more than an object
        flat = [ring.reshape(-1, 2) for _, rings in outlined for ring in rings]
        points = placement.points(np.concatenate(flat))
        found = crop_polygons(points, [len(ring) for ring in flat], [len(r) for _, r in outlined], placement.size_hw)
        for (number, _), made in zip(outlined, found, strict=True):
            crops[number] = made
    for number, thing in enumerate(things):
        if thing.polygons is None and thing.rle is not None:
            y0, x0, bits = placement.crop(*crop_rle(thing.rle, record.height, record.width))
            top, left, tight = crop(bits)
            crops[number] = MaskCrop(y0 + top, x0 + left, tight) if tight.size else MaskCrop(0, 0, tight)
    return crops


def crop_polygons(
    points: FloatArray, corners: Sequence[int], rings: Sequence[int], size_hw: tuple[int, int]
) -> list[MaskCrop]:
    """Tight bitmaps of many objects at once, the pixels of `pipelines.masks.rasterise`.

    Args:
        points: corners of all rings, one after the other, x and y in pixels [P, 2].
        corners: of each ring, at least 3.
        rings: of each object.
        size_hw: height and width of the picture, pixels.
    """
    ring_ends, object_ends = (torch.from_numpy(np.cumsum(counts, dtype=np.int64)) for counts in (corners, rings))
    bits, extents = polygon_crops(torch.from_numpy(np.ascontiguousarray(points)), ring_ends, object_ends, *size_hw)
    pixels, start, found = bits.numpy(), 0, []
    for y0, x0, height, width in extents.tolist():
        found.append(MaskCrop(y0, x0, pixels[start : start + height * width].reshape(height, width)))
        start += height * width
    return found

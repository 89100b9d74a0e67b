"""Polygons of strangers, judged before the rasteriser sees them: finite, near the picture, bounded in work."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipelines.masks import MaskError, check_size, described

MAX_VERTICES = 100_000
"""Most vertices of one object; COCO's largest has about 1,500."""

# pycocotools walks 5 steps a pixel of every edge and keeps each step in memory.
_STEPS_PER_PX = 5
_MAX_BOUNDARY_STEPS = 20_000_000
_SEQUENCES = (list, tuple, np.ndarray)
FloatArray = npt.NDArray[np.float64]


def validate_polygons(rings: object, height: int, width: int) -> tuple[FloatArray, ...]:
    """Check the polygon form of a segmentation.

    Args:
        rings: as found in the json: a list of lists x0, y0, x1, y1, ... in pixels.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        Rings as float64 [2n], n >= 3; rings of one or two points, which cover nothing, are left out.

    Raises:
        MaskError: not such a list, an odd number of values, not finite, further than one picture size outside
            the picture, too many vertices, or no ring of three points left.
    """
    check_size(height, width)
    if not isinstance(rings, list | tuple) or not rings:
        raise MaskError(f"polygons are {described(rings)}, wanted a list of rings")
    if sum([len(ring) for ring in rings if isinstance(ring, _SEQUENCES)]) > 2 * MAX_VERTICES:
        raise MaskError(f"polygons have more than {MAX_VERTICES} vertices")
    kept = tuple([ring for raw in rings if (ring := _ring(raw, height, width)).size >= 6])
    if not kept:
        raise MaskError("no ring has three points")
    # No edge is longer than three pictures: exact only where that does not settle it.
    steps = (3 * _STEPS_PER_PX * max(height, width) + 1) * sum([ring.size for ring in kept]) // 2
    if steps > _MAX_BOUNDARY_STEPS:
        steps = sum(_boundary_steps(ring) for ring in kept)
    if steps > _MAX_BOUNDARY_STEPS:
        raise MaskError(f"the outline has {steps} steps of 1/{_STEPS_PER_PX} px, the limit is {_MAX_BOUNDARY_STEPS}")
    return kept


def _ring(raw: object, height: int, width: int) -> FloatArray:
    # As few calls as can be: a picture has dozens of rings, and each call of numpy costs as much as a short one.
    if isinstance(raw, np.ndarray):
        raw = raw.tolist()
    if not isinstance(raw, (list, tuple)):
        raise MaskError(f"a ring is {described(raw)}, wanted a list of x, y, x, y, ...")
    if len(raw) % 2:
        raise MaskError(f"a ring has {len(raw)} values, wanted an even number")
    if not {float, int}.issuperset(map(type, raw)):
        raise MaskError("a ring holds values that are not numbers")
    try:
        ring = np.array(raw, np.float64)
    except OverflowError as error:
        raise MaskError("a ring holds numbers that do not fit 64 bits") from error
    near = min(height, width)
    # On the list, since most rings are short. With a NaN the sum is none either, and min and max mean nothing.
    if raw and not (math.isfinite(sum(raw)) and min(raw) >= -near and max(raw) <= 2 * near):
        _check_reach(ring, height, width)
    return ring


def _check_reach(ring: FloatArray, height: int, width: int) -> None:
    if not np.isfinite(ring).all():
        raise MaskError("a ring holds NaN or infinity")
    for name, size, values in (("x", width, ring[0::2]), ("y", height, ring[1::2])):
        low, high = values.min(), values.max()
        if low < -size or high > 2 * size:
            raise MaskError(f"{name} reaches from {low:g} to {high:g} in a picture of {height}x{width}")


def _boundary_steps(ring: FloatArray) -> int:
    points = ring.reshape(-1, 2)
    edges = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    return int(_STEPS_PER_PX * edges.sum()) + len(points)

"""Exact COCO segmentations of binary masks: outlines without holes, and uncompressed run lengths.

An outline here follows the edges between pixels, so rasterising it gives the mask back. COCO polygons cannot
have holes; a region with a hole is cut along a row through the hole, which turns it into plain outlines.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_Vertex = tuple[int, int]
_Edges = dict[_Vertex, list[_Vertex]]


def to_polygons(mask: NDArray[np.uint8]) -> list[list[float]]:
    """Outlines [x0, y0, x1, y1, ...] in pixels whose union is ``mask``, none with a hole.

    Args:
        mask: [H, W], non-zero inside.

    Returns:
        One list of at least eight numbers a 4-connected part, in scan order; no list for an empty mask.

    Raises:
        ValueError: ``mask`` is not two-dimensional.
    """
    inside = _as_bool(mask)
    loops = _loops(inside)
    hole = next((loop for loop in loops if _signed_area(loop) < 0), None)
    if hole is None:
        return [[float(v) for vertex in loop for v in vertex] for loop in loops]
    rows = [y for _, y in hole]
    # Any row from the hole's first to its last opens it, on both sides of the cut.
    cut = (min(rows) + max(rows)) // 2
    upper, lower = inside.copy(), inside.copy()
    upper[cut:] = False
    lower[:cut] = False
    return to_polygons(upper.astype(np.uint8)) + to_polygons(lower.astype(np.uint8))


def to_traces(mask: NDArray[np.uint8]) -> list[list[tuple[int, int]]]:
    """The border pixels (x, y) around each 4-connected part of ``mask``, the largest part first; holes are part of it.

    Joined by lines that are drawn too, as Cityscapes' tool does with Pillow, they give the part with its holes filled.

    Args:
        mask: [H, W], non-zero inside.

    Raises:
        ValueError: ``mask`` is not two-dimensional.
    """
    around = [loop for loop in _paths(_as_bool(mask)) if _signed_area(loop) > 0]
    return [_border_pixels(loop) for loop in sorted(around, key=_signed_area, reverse=True)]


def to_run_lengths(mask: NDArray[np.uint8]) -> list[int]:
    """COCO's uncompressed counts: runs of 0 and 1 in turn, column by column, beginning with 0.

    Args:
        mask: [H, W], non-zero inside.

    Returns:
        Counts that add up to H * W; the first is 0 where the first pixel is inside.

    Raises:
        ValueError: ``mask`` is not two-dimensional.
    """
    flat = _as_bool(mask).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    counts = [int(n) for n in np.diff(bounds)]
    return [0, *counts] if flat.size and flat[0] else counts


def tight_box_xywh(mask: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """The smallest box (x, y, width, height) in pixels around the non-zero pixels of ``mask`` [H, W].

    Raises:
        ValueError: ``mask`` is not two-dimensional or has no non-zero pixel.
    """
    inside = _as_bool(mask)
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if columns.size == 0:
        raise ValueError("a tight box needs at least one pixel inside, the mask has none: drop such objects")
    x, y = float(columns[0]), float(rows[0])
    return x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y


def _as_bool(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    if mask.ndim != 2:
        raise ValueError(f"a mask is an array [H, W], got shape {list(mask.shape)}: pass one mask at a time")
    return np.not_equal(mask, 0)


def _loops(inside: NDArray[np.bool_]) -> list[list[_Vertex]]:
    """All boundary loops, corners only; clockwise on screen around regions, anticlockwise around holes."""
    return [_corners(path) for path in _paths(inside)]


def _paths(inside: NDArray[np.bool_]) -> Iterator[list[_Vertex]]:
    """The same, one vertex a unit edge."""
    edges = _boundary_edges(inside)
    for start in sorted(edges, key=lambda vertex: (vertex[1], vertex[0])):
        while edges.get(start):
            yield _walk(edges, start)


def _border_pixels(path: list[_Vertex]) -> list[_Vertex]:
    """The pixels on the right of a closed unit-edge path, where their way turns."""
    beside = {(1, 0): (0, 0), (0, 1): (-1, 0), (-1, 0): (-1, -1), (0, -1): (0, -1)}
    pixels: list[_Vertex] = []
    for (ax, ay), (bx, by) in zip(path, path[1:] + path[:1], strict=True):
        dx, dy = beside[bx - ax, by - ay]
        if pixels[-1:] != [(ax + dx, ay + dy)]:
            pixels.append((ax + dx, ay + dy))
    return _corners(pixels) if len(pixels) > 2 else pixels


def _boundary_edges(inside: NDArray[np.bool_]) -> _Edges:
    """Unit edges between inside and outside, by their first vertex (x, y), the inside always on the right."""
    padded = np.pad(inside, 1)
    here = padded[1:-1, 1:-1]
    edges: _Edges = {}
    # For each side of a pixel: who lies across it, and where its edge starts and ends relative to (x, y).
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    for across, (ax, ay), (bx, by) in sides:
        ys, xs = np.nonzero(here & ~across)
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
            edges.setdefault((x + ax, y + ay), []).append((x + bx, y + by))
    return edges


def _walk(edges: _Edges, start: _Vertex) -> list[_Vertex]:
    """Take the loop through ``start`` out of ``edges``, one vertex a unit edge."""
    path, at = [start], edges[start].pop()
    while at != start:
        choices = edges[at]
        if len(choices) == 2:
            # Two pixels touch at a corner. Turning right stays on this pixel, so the parts are 4-connected.
            dx, dy = at[0] - path[-1][0], at[1] - path[-1][1]
            choices.sort(key=lambda to: to == (at[0] - dy, at[1] + dx))
        path.append(at)
        at = choices.pop()
    return path


def _corners(path: list[_Vertex]) -> list[_Vertex]:
    """The vertices of a closed unit-edge path where it turns."""
    corners = []
    for before, at, after in zip(path[-1:] + path[:-1], path, path[1:] + path[:1], strict=True):
        if (at[0] - before[0], at[1] - before[1]) != (after[0] - at[0], after[1] - at[1]):
            corners.append(at)
    return corners


def _signed_area(loop: list[_Vertex]) -> float:
    """Shoelace area in square pixels: positive around a region, negative around a hole."""
    pairs = zip(loop, loop[1:] + loop[:1], strict=True)
    return 0.5 * sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)

"""COCO segmentations: judged here before any compiled code sees them, then turned into bitmaps.

pycocotools trusts its input: mutated run lengths crash it or make it return uninitialised memory. So run
lengths are parsed, checked and decoded by this module alone, and polygons reach pycocotools' rasteriser only
when they are finite, near the picture and bounded in work. Run lengths are COCO's: column-major, starting
with a run of zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

_MAX_GROUPS = 7  # 5 bits each: 35 bits hold any difference of runs in a picture of 2**31 pixels
_MAX_PIXELS = 2**31 - 1

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]


class MaskError(ValueError):
    """A segmentation that cannot be a mask of its picture; the message says what was found and wanted."""


def validate_rle(counts: object, height: int, width: int) -> bytes:
    """Check run lengths, compressed or not, and bring them into COCO's canonical compressed form.

    Args:
        counts: a compressed string (str or bytes) or a list of runs.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        The canonical compressed counts of the same mask: no run but the first is zero.

    Raises:
        MaskError: not such a thing, a string that no encoder writes, a negative run, or runs that do not sum
            to height * width.
    """
    check_size(height, width)
    if isinstance(counts, str | bytes):
        runs = parse_counts(counts)
    elif isinstance(counts, list | tuple):
        runs = _listed_runs(counts, height * width)
    else:
        raise MaskError(f"counts are {described(counts)}, wanted a compressed string or a list of runs")
    if runs.size == 0:
        raise MaskError("counts are empty")
    if runs.min() < 0:
        raise MaskError(f"run {int(runs.argmin())} is {int(runs.min())}, wanted >= 0")
    if runs.max() > height * width or int(runs.sum()) != height * width:
        raise MaskError(f"runs sum to {int(runs.sum())}, wanted {height} x {width} = {height * width}")
    if not runs[1:].all():
        return format_counts(_without_empty_runs(runs))
    if isinstance(counts, list | tuple):
        return format_counts(runs)
    return counts if isinstance(counts, bytes) else counts.encode("ascii")  # parsed, so canonical but for its runs


def parse_counts(text: str | bytes) -> IntArray:
    """Runs [n] of a compressed string: groups of 5 bits, low first, from the third run on as differences.

    Raises:
        MaskError: characters outside the alphabet, an unfinished number, or one in more groups than it needs.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as error:
        raise MaskError("counts hold characters that are not ASCII") from error
    symbols = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if symbols.size == 0:
        return np.zeros(0, np.int64)
    if symbols.min() < 0 or symbols.max() > 63:
        raise MaskError(f"counts hold the byte {raw[int(np.argmax((symbols < 0) | (symbols > 63)))]}, wanted 48 to 111")
    last = (symbols & 0x20) == 0
    if not last[-1]:
        raise MaskError("counts end inside a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        raise MaskError(f"counts hold a number of {int(lengths.max())} groups, wanted at most {_MAX_GROUPS}")
    place = np.arange(symbols.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((symbols & 0x1F) << (5 * place), starts)
    values -= np.where(symbols[ends] & 0x10, np.int64(1) << (5 * lengths), 0)  # two's complement of 5 * length bits
    if _has_redundant_group(symbols, ends, lengths).any():
        raise MaskError("counts are not canonical: a number is written in more groups than it needs")
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])  # the first run is written plain and starts no chain of differences
    return runs


def format_counts(runs: IntArray) -> bytes:
    """The compressed string of runs [n], as COCO's own encoder writes it."""
    if runs.size == 0:
        return b""
    values = runs.astype(np.int64, copy=True)
    values[3:] -= runs[1:-2]
    lengths = _groups_needed(values)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    symbols = (np.repeat(values, lengths) >> (5 * place)) & 0x1F
    symbols[place < np.repeat(lengths, lengths) - 1] |= 0x20
    return (symbols + 48).astype(np.uint8).tobytes()


def polygons_to_rle(polygons: Sequence[FloatArray], height: int, width: int) -> bytes:
    """Canonical compressed counts of the union of rings that `validate_polygons` returned for this size."""
    parts = coco_mask.frPyObjects([np.ascontiguousarray(ring, np.float64) for ring in polygons], height, width)
    return bytes(coco_mask.merge(parts)["counts"])


def rasterise(segmentation: Sequence[FloatArray] | bytes, height: int, width: int) -> ByteArray:
    """The full bitmap, equal to pycocotools' bit for bit.

    Args:
        segmentation: rings as `validate_polygons` returns them, or counts as `validate_rle` returns them.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        uint8 [height, width] of 0 and 1.

    Raises:
        MaskError: counts that do not fit the size.
    """
    counts = segmentation if isinstance(segmentation, bytes) else polygons_to_rle(segmentation, height, width)
    runs = _fitting_runs(counts, height, width)
    return np.ascontiguousarray(_values(runs).reshape(width, height).T)


def crop(mask: ByteArray) -> tuple[int, int, ByteArray]:
    """The tight bitmap of a full mask.

    Args:
        mask: uint8 [H, W] of 0 and 1.

    Returns:
        y0, x0 and uint8 [h, w] such that the mask is zero outside of rows y0..y0+h and columns x0..x0+w; an
        empty mask gives 0, 0 and an array of shape [0, 0].
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, np.zeros((0, 0), np.uint8)
    y0, x0 = int(rows[0]), int(columns[0])
    return y0, x0, np.ascontiguousarray(mask[y0 : int(rows[-1]) + 1, x0 : int(columns[-1]) + 1])


def crop_rle(counts: bytes, height: int, width: int) -> tuple[int, int, ByteArray]:
    """`crop(rasterise(counts, ...))` without ever making the full mask; see `crop` for what comes back."""
    runs = _fitting_runs(counts, height, width)
    ends = np.cumsum(runs)[1::2]
    starts = (ends - runs[1::2])[runs[1::2] > 0]
    ends = ends[runs[1::2] > 0]
    if starts.size == 0:
        return 0, 0, np.zeros((0, 0), np.uint8)
    x0, x1 = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    flat = np.zeros((x1 - x0) * height + 1, np.int8)
    flat[starts - x0 * height] = 1
    flat[ends - x0 * height] -= 1
    columns = np.cumsum(flat[:-1], dtype=np.int8).view(np.uint8).reshape(x1 - x0, height).T
    y0, inner, bits = crop(columns)
    return y0, x0 + inner, bits


def encode(mask: ByteArray) -> bytes:
    """Canonical compressed counts of a bitmap uint8 [H, W]; any value but 0 counts as 1."""
    return encode_places(np.flatnonzero(mask.T), mask.size)


def encode_places(places: IntArray, pixels: int) -> bytes:
    """Canonical compressed counts of the pixels at `places` [n], column by column, ascending, of `pixels` in all."""
    if not places.size:
        return format_counts(np.array([pixels], np.int64))
    breaks = np.flatnonzero(np.diff(places) != 1)
    starts, ends = places[np.r_[0, breaks + 1]], places[np.r_[breaks, places.size - 1]] + 1
    runs = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0, append=pixels)
    return format_counts(runs if runs[-1] else runs[:-1])


def area(counts: bytes) -> int:
    """Number of pixels set, from canonical compressed counts."""
    return int(parse_counts(counts)[1::2].sum())


def is_empty(counts: bytes) -> bool:
    """Whether no pixel is set, from canonical compressed counts: then they are one run."""
    return len(counts) <= _MAX_GROUPS and parse_counts(counts).size == 1


def check_size(height: int, width: int) -> None:
    """Refuse a picture of no or too many pixels.

    Raises:
        MaskError: it is one.
    """
    if height < 1 or width < 1 or height * width > _MAX_PIXELS:
        raise MaskError(f"the picture is {height}x{width}, wanted at least 1x1 and at most {_MAX_PIXELS} pixels")


def described(value: object) -> str:
    """A stranger's value, short enough for a message."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "an integer of more than 60 digits"
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:80]


def _listed_runs(counts: Sequence[object], pixels: int) -> IntArray:
    if {int}.issuperset(map(type, counts)) and counts:  # nearly always
        with contextlib.suppress(OverflowError):
            runs = np.array(counts, np.int64)
            if runs.min() >= 0 and runs.max() <= pixels:
                return runs
    for position, value in enumerate(counts):
        if not isinstance(value, int) or isinstance(value, bool):
            raise MaskError(f"run {position} is {described(value)}, wanted an integer")
        if not 0 <= value <= pixels:
            raise MaskError(f"run {position} is {described(value)}, wanted 0 to {pixels}")
    return np.array(counts, np.int64)


def _without_empty_runs(runs: IntArray) -> IntArray:
    colours = np.arange(runs.size) % 2
    runs, colours = runs[runs > 0], colours[runs > 0]
    first = np.flatnonzero(np.diff(colours, prepend=-1))
    merged = np.add.reduceat(runs, first)
    return np.concatenate([[0], merged]) if colours[0] == 1 else merged


def _fitting_runs(counts: bytes, height: int, width: int) -> IntArray:
    runs = parse_counts(counts)
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width or int(runs.sum()) != height * width:
        raise MaskError(f"runs do not cover {height} x {width} pixels; pass counts through validate_rle first")
    return runs


def _values(runs: IntArray) -> ByteArray:
    return np.repeat((np.arange(runs.size) % 2).astype(np.uint8), runs)


def _has_redundant_group(symbols: IntArray, ends: IntArray, lengths: IntArray) -> npt.NDArray[np.bool_]:
    """For each number whether its last group only repeats the sign, which no encoder writes."""
    sign = np.where(symbols[ends - 1] & 0x10, 0x1F, 0)
    return np.asarray((lengths > 1) & (symbols[ends] == sign))


def _groups_needed(values: IntArray) -> IntArray:
    magnitude = np.where(values < 0, ~values, values)  # a sign bit on top of the magnitude's bits
    limits = np.int64(1) << np.arange(4, 5 * 12, 5)
    return np.asarray(1 + np.searchsorted(limits, magnitude, side="right"), np.int64)

"""Many run lengths judged at once: what is certainly sound passes, the rest is left to `masks.validate_rle`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_AT_ONCE_BYTES = 1 << 20
_MAX_GROUPS = 6  # 30 bits: less than `validate_rle` allows, so that no sum here can overflow


def areas(counts: Sequence[bytes], pixels: IntArray) -> IntArray:
    """Areas of the compressed counts that `masks.validate_rle` would return unchanged.

    Args:
        counts: n compressed strings, as strangers wrote them.
        pixels: int64 [n], height * width of each one's picture.

    Returns:
        int64 [n], pixels set; -1 where the counts must be looked at alone: unsound, or not canonical, or huge.
    """
    found = np.full(len(counts), -1, np.int64)
    sizes = np.array([len(text) for text in counts], np.int64)
    usable = np.flatnonzero(sizes > 0)
    # In pieces, since every step below makes arrays of eight bytes a symbol.
    piece = np.cumsum(sizes[usable]) // _AT_ONCE_BYTES
    for part in np.split(usable, np.flatnonzero(np.diff(piece)) + 1):
        if part.size:
            found[part] = _judge(b"".join([counts[i] for i in part]), sizes[part], pixels[part])
    return found


def _judge(joined: bytes, sizes: IntArray, pixels: IntArray) -> IntArray:
    symbols = np.frombuffer(joined, np.uint8).astype(np.int32) - 48  # 32 bits hold six groups, at half the bytes
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    known = np.logical_and.reduceat((symbols >= 0) & (symbols <= 63), bounds[:-1])
    last = (symbols & 0x20) == 0
    known &= last[bounds[1:] - 1]
    last[bounds[1:] - 1] = True  # so that what is wrong with one string stays in it
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    sign = np.where(symbols[ends - 1] & 0x10, 0x1F, 0)
    good = (lengths <= _MAX_GROUPS) & ~((lengths > 1) & (symbols[ends] == sign))
    place = np.arange(symbols.size, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    np.minimum(place, _MAX_GROUPS - 1, out=place)
    place *= 5
    values = np.add.reduceat((symbols & 0x1F) << place, starts).astype(np.int64)
    values -= np.where(symbols[ends] & 0x10, np.int64(1) << (5 * np.minimum(lengths, _MAX_GROUPS)), 0)
    first = np.searchsorted(starts, bounds[:-1])  # of each string's numbers
    runs, number = _summed(values, first)
    good &= (runs > 0) | ((number == 0) & (runs == 0))
    known &= np.logical_and.reduceat(good, first)
    known &= np.add.reduceat(runs, first) == pixels
    return np.where(known, np.add.reduceat(np.where(number % 2, runs, 0), first), -1)


def _summed(values: IntArray, first: IntArray) -> tuple[IntArray, IntArray]:
    """Runs from values, and each one's number in its string: from the fourth on a value adds to the run two before."""
    counts = np.diff(first, append=values.size)
    number = np.arange(values.size) - np.repeat(first, counts)
    runs = np.empty_like(values)
    for parity in (0, 1):
        chain = np.flatnonzero((number % 2 == parity) & (number > 0))
        sums = np.cumsum(values[chain])
        heads = np.flatnonzero(number[chain] <= 2)
        before = sums[heads] - values[chain][heads]
        runs[chain] = sums - np.repeat(before, np.diff(heads, append=chain.size))
    runs[first] = values[first]
    return runs, number

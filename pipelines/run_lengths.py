"""Many run lengths judged at once: what is certainly sound passes, the rest is left to `masks.validate_rle`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.ops.masks import rle_areas

IntArray = npt.NDArray[np.int64]


def areas(counts: Sequence[bytes], pixels: IntArray) -> IntArray:
    """Areas of the compressed counts that `masks.validate_rle` would return unchanged.

    Args:
        counts: n compressed strings, as strangers wrote them.
        pixels: int64 [n], height * width of each one's picture.

    Returns:
        int64 [n], pixels set; -1 where the counts must be looked at alone: unsound, or not canonical, or huge.
    """
    ends = np.cumsum([len(text) for text in counts], dtype=np.int64)
    joined = torch.frombuffer(bytearray(b"".join(counts)) or bytearray(1), dtype=torch.uint8)
    return np.asarray(rle_areas(joined, torch.from_numpy(ends), torch.from_numpy(np.asarray(pixels, np.int64))).numpy())

"""The picture pipeline a checkpoint brings with it: the size a picture is resized to, the resize, the padding."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from model.config import PictureConfig, ResizeKernel, ResizeRounding
from model.ops.pictures import resize_bytes
from model.structures import Images

ByteArray = npt.NDArray[np.uint8]


def resized_hw(height: int, width: int, short_edge_px: int, config: PictureConfig) -> tuple[int, int]:
    """Height and width after the resize.

    The shorter side becomes `short_edge_px`, unless the longer one would then exceed `config.long_edge_px`.

    Raises:
        ValueError: the picture is so narrow that a side would vanish.
    """
    scale = min(short_edge_px / min(height, width), config.long_edge_px / max(height, width))
    half = 0.5 if config.rounding is ResizeRounding.HALF_UP else 0.0
    new = int(height * scale + half), int(width * scale + half)
    if min(new) < 1:
        raise ValueError(
            f"a picture of {width} x {height} px cannot be resized to a longer side of {config.long_edge_px} px: "
            "one side would be less than a pixel; leave it out of the data set"
        )
    return new


def resize(pixels: Tensor, size_hw: tuple[int, int], kernel: ResizeKernel) -> Tensor:
    """Resize a picture [3, H, W] to [3, h, w], RGB, 0..255, by the rule of the framework a detector comes from.

    The float kernel (torchvision: bilinear without antialias, in float32 on normalised values; both are linear, so
    the order does not matter beyond rounding) takes uint8 or float and gives float32. Pillow's and OpenCV's take and
    give uint8; each library runs itself, since its rounding is part of the result.

    Args:
        pixels: the picture.
        size_hw: height and width wanted.
        kernel: whose rule.

    Raises:
        ValueError: pixels that are not uint8, for a kernel on bytes.
    """
    is_float = kernel is ResizeKernel.FLOAT_BILINEAR
    if not is_float and pixels.dtype != torch.uint8:
        raise ValueError(f"{kernel.value} resizes bytes, got {pixels.dtype}: give the decoded picture as it is")
    if tuple(pixels.shape[-2:]) == size_hw:
        return pixels.to(torch.float32) if is_float else pixels
    if is_float:
        return F.interpolate(pixels.to(torch.float32)[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    resized = _by_library(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), size_hw, kernel)
    return torch.from_numpy(resized).permute(2, 0, 1)


def place_bytes(
    picture: ByteArray,
    size_hw: tuple[int, int],
    kernel: ResizeKernel,
    *,
    mirrored: bool = False,
    window: tuple[int, int, int, int] | None = None,
    out: ByteArray | None = None,
) -> ByteArray:
    """A picture [H, W, 3] of bytes, mirrored or not, resized and cut to a window [h, w, 3] of bytes: for training.

    Pillow's and OpenCV's rules as `resize` has them. The float kernel is OpenCV's too, so its result is rounded to
    whole grey levels: within one of the exact value, in a twentieth of the time.

    Args:
        picture: uint8.
        size_hw: height and width of the whole resized.
        kernel: whose rule.
        mirrored: mirror left and right first.
        window: (y0, x0, h, w) of the whole that is wanted; None for all of it.
        out: uint8 [h, w, 3], where the result goes, perhaps a part of a batch; None for new memory.
    """
    y0, x0, height, width = window or (0, 0, *size_hw)
    place = np.empty((height, width, 3), np.uint8) if out is None else out
    is_half = picture.shape[:2] == (2 * size_hw[0], 2 * size_hw[1])  # where OpenCV has a rule of its own
    if kernel is not ResizeKernel.PIL_BILINEAR and picture.shape[:2] != size_hw and not is_half:
        resize_bytes(torch.from_numpy(picture), torch.from_numpy(place), size_hw, (y0, x0), mirrored=mirrored)
        return place
    turned = np.asarray(cv2.flip(picture, 1), np.uint8) if mirrored else picture
    np.copyto(place, _by_library(turned, size_hw, kernel)[y0 : y0 + height, x0 : x0 + width])
    return place


def _by_library(picture: ByteArray, size_hw: tuple[int, int], kernel: ResizeKernel) -> ByteArray:
    """A picture [H, W, 3] of bytes, resized by Pillow or OpenCV itself."""
    height, width = size_hw
    if picture.shape[:2] == size_hw:
        return picture
    if kernel is ResizeKernel.PIL_BILINEAR:
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _round_up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor


def padded_hw(sizes_hw: Sequence[tuple[int, int]], short_edge_px: int, config: PictureConfig) -> tuple[int, int]:
    """The one of four padded sizes (square, landscape, portrait, all) that holds every picture of a batch.

    Few sizes mean few compiled graphs. `short_edge_px` is the largest short edge in use.
    """
    short = _round_up(short_edge_px, config.size_divisor)
    long = _round_up(config.long_edge_px, config.size_divisor)
    height, width = max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)
    for size in ((short, short), (short, long), (long, short)):
        if height <= size[0] and width <= size[1]:
            return size
    return long, long


def tight_hw(sizes_hw: Sequence[tuple[int, int]], config: PictureConfig) -> tuple[int, int]:
    """The smallest padded size that holds every picture of a batch: what inference pads to."""
    return tuple(_round_up(max(side), config.size_divisor) for side in zip(*sizes_hw, strict=True))  # type: ignore[return-value]


def empty_batch(sizes_hw: Sequence[tuple[int, int]], size_hw: tuple[int, int], dtype: torch.dtype) -> Images:
    """A batch of `size_hw`, channels last, for pictures of `sizes_hw` that are not written yet; the padding is zero."""
    shape = (len(sizes_hw), *size_hw, 3)
    batch = torch.empty(shape, dtype=dtype)
    for slot, (height, width) in zip(batch, sizes_hw, strict=True):
        slot[height:].zero_()
        slot[:height, width:].zero_()
    return Images(batch.permute(0, 3, 1, 2), torch.tensor(sizes_hw, dtype=torch.int64).reshape(-1, 2))


def pad(pictures: Sequence[Tensor], size_hw: tuple[int, int]) -> Images:
    """Pictures [3, h, w] padded at the bottom and right with zeros to one batch of `size_hw`, channels last."""
    first = pictures[0]
    shape = (len(pictures), 3, *size_hw)
    batch = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last).zero_()
    for slot, picture in zip(batch, pictures, strict=True):
        slot[:, : picture.shape[1], : picture.shape[2]] = picture
    sizes = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.int64)
    return Images(batch, sizes)

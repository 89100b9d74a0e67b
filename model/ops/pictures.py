"""Pictures of bytes, resized."""

import torch
from torch import Tensor

from model.ops import extension

extension.load()


def resize_bytes(
    picture: Tensor,
    out: Tensor,
    size_hw: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
    *,
    mirrored: bool = False,
) -> None:
    """Resize a picture, or the part of it that is asked for, on the CPU: the bytes of OpenCV's ``INTER_LINEAR``.

    One exception: shrunk to exactly half of both sides, OpenCV takes the mean of four pixels instead.

    Args:
        picture: uint8 [H, W, 3].
        out: uint8 [h, w, 3], written; its rows may lie apart, as those of a window of a batch do.
        size_hw: Height and width of the whole picture resized; the size of ``out`` by default.
        corner: Row and column of the whole where ``out`` begins.
        mirrored: Mirror left and right first.

    Raises:
        ValueError: A type, shape, stride or device does not fit, a side is zero, or ``out`` reaches out of the whole.
    """
    for name, tensor in (("a picture", picture), ("a place", out)):
        if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[2] != 3 or tensor.device.type != "cpu":
            raise ValueError(
                f"resize got {name} of {tensor.dtype} {list(tensor.shape)} on {tensor.device}, wanted uint8 [H, W, 3] "
                "on the CPU"
            )
    if out.stride()[1:] != (3, 1):
        raise ValueError(f"resize got a place with strides {list(out.stride())}, wanted 3 and 1 within a row")
    height, width = size_hw or out.shape[:2]
    extension.call(torch.ops.maskray.resize_bytes, picture, out, height, width, *corner, mirrored)


def _resize_bytes_fake(
    picture: Tensor, out: Tensor, height: int, width: int, top: int, left: int, mirrored: bool
) -> None:
    return None


torch.library.register_fake("maskray::resize_bytes", _resize_bytes_fake)

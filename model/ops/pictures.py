"""Pictures of bytes, resized."""

import torch
from torch import Tensor

from model.ops import extension

extension.load()


def resize_bytes(picture: Tensor, out: Tensor, *, mirrored: bool = False) -> None:
    """Resize a picture to the size of ``out``, on the CPU: the bytes of OpenCV's ``INTER_LINEAR``.

    One exception: shrunk to exactly half of both sides, OpenCV takes the mean of four pixels instead.

    Args:
        picture: uint8 [H, W, 3].
        out: uint8 [h, w, 3], written; its rows may lie apart, as those of a window of a batch do.
        mirrored: Mirror left and right first.

    Raises:
        ValueError: A type, shape, stride or device does not fit, or a side is zero.
    """
    for name, tensor in (("a picture", picture), ("a place", out)):
        if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[2] != 3 or tensor.device.type != "cpu":
            raise ValueError(
                f"resize got {name} of {tensor.dtype} {list(tensor.shape)} on {tensor.device}, wanted uint8 [H, W, 3] "
                "on the CPU"
            )
    if out.stride()[1:] != (3, 1):
        raise ValueError(f"resize got a place with strides {list(out.stride())}, wanted 3 and 1 within a row")
    extension.call(torch.ops.maskray.resize_bytes, picture, out, mirrored)


def _resize_bytes_fake(picture: Tensor, out: Tensor, mirrored: bool) -> None:
    return None


torch.library.register_fake("maskray::resize_bytes", _resize_bytes_fake)

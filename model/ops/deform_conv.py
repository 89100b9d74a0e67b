"""Deformable convolution (Dai et al. 2017; modulated: Zhu et al. 2019), by torchvision's kernel in float32."""

from typing import cast

import torch
import torchvision
from torch import Tensor


def deform_conv2d(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolve x, each tap of the kernel displaced by an offset of its own at each output cell.

    Runs in float32 also under autocast: torchvision's kernel has no bfloat16 on a CPU. Its gradient on a GPU adds
    in an order that changes from run to run, so the same input can give other last bits there.

    Args:
        x: [N, C, H, W].
        weight: [K, C / groups, k, k]; the groups follow from its shape.
        offset: [N, 2 g k k, h, w], for each of g offset groups and each tap, row by row: (dy, dx) in cells.
        mask: [N, g k k, h, w] in 0..1, factor of each tap's sample; None for 1.
        stride: cells along y and x.
        padding: cells along y and x.
        dilation: cells from tap to tap along y and x, before the offsets.

    Returns:
        [N, K, h, w] in the type of `x`.
    """
    with torch.autocast(x.device.type, enabled=False):
        out = torchvision.ops.deform_conv2d(
            x.float(),
            offset.float(),
            weight.float(),
            stride=stride,
            padding=padding,
            dilation=dilation,
            mask=None if mask is None else mask.float(),
        )
    return cast(Tensor, out).to(x.dtype)

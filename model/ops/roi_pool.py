"""RoIPool, which RoIAlign is compared with in the paper's ablation."""

from typing import cast

import torch
import torchvision
from torch import Tensor


def roi_pool(features: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """Largest cell of each bin, of RoIs and bins rounded to whole cells: ``torchvision.ops.roi_pool`` itself.

    Corners are rounded to the nearest cell, both included; a bin runs from its lower edge rounded down to its
    upper edge rounded up. On a GPU torchvision's gradient is not deterministic.

    Args:
        features: [N, C, H, W], float32, float64, bfloat16 or float16.
        rois: [R, 5], image index in 0..N-1, then x1, y1, x2, y2 in pixels of the picture.
        output_size: Bins along y and x; one number for both.
        spatial_scale: Cells of the map per pixel of the picture, e.g. 1/16.

    Returns:
        [R, C, h, w] in the type of ``features``; an empty bin is 0.

    Raises:
        ValueError: A shape or device does not fit, or (seen on a CPU) an image index is out of range.
    """
    _check(features, rois)
    # Looking at values would break a compiled graph, as it would make a GPU wait.
    can_look = rois.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and not bool(((rois[:, 0] >= 0) & (rois[:, 0] < len(features))).all()):
        raise ValueError(
            f"RoI pooling got batch indices {sorted(set(rois[:, 0].tolist()))}, wanted 0..{len(features) - 1}: "
            "column 0 of rois is the image's index in the batch"
        )
    wide = features if features.dtype == torch.float64 else features.float()
    # torchvision reads contiguous memory and would copy in any case.
    pooled = torchvision.ops.roi_pool(wide, rois.detach().to(wide.dtype), output_size, spatial_scale)
    return cast(Tensor, pooled).to(features.dtype)


def _check(features: Tensor, rois: Tensor) -> None:
    if features.dim() != 4 or rois.dim() != 2 or rois.shape[1] != 5 or rois.device != features.device:
        raise ValueError(
            f"RoI pooling got features {list(features.shape)} on {features.device} and rois {list(rois.shape)} on "
            f"{rois.device}, wanted [N, C, H, W] and [R, 5] (image index, x1, y1, x2, y2) on one device"
        )

"""Instance masks: packed crops to training targets, predicted probabilities to COCO run lengths.

A packed crop is the tight bitmap of one instance: ``data`` uint8 [S] holds the crops' rows one after another, and each
instance has an ``offset`` into it and an ``extent`` (y0, x0, h, w, H, W) - rows y0..y0+h and columns x0..x0+w of an
H x W mask that is zero elsewhere.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from model.ops import extension

extension.load()


class MaskRuns(NamedTuple):
    """D masks as COCO compressed run lengths."""

    counts: list[bytes]
    """The ``counts`` string of each mask, as ``pycocotools.mask.encode`` writes it."""
    areas: Tensor
    """Pixels in each mask, int64 [D]."""
    boxes_xywh: Tensor
    """The tight box of each mask in pixels, float32 [D, 4]; zeros for an empty mask."""


def mask_targets(
    data: Tensor,
    offsets: Tensor,
    extents: Tensor,
    rois: Tensor,
    crop_index: Tensor,
    size: int,
    *,
    aligned: bool,
    binarise: bool,
) -> Tensor:
    """Mask of each RoI's instance inside the RoI, on a ``size`` x ``size`` grid.

    Exactly RoIAlign (scale 1, adaptive sampling, float32) of the whole mask that the crop stands for, so that the rule
    at the border of a mask and of a picture is the whole mask's. MMDetection and Detectron2 use aligned and binarised
    targets, torchvision neither. Not differentiable.

    Args:
        data: Mask pixels 0 or 1, uint8 [S].
        offsets: Start of each crop in ``data``, int64 [T].
        extents: (y0, x0, h, w, H, W) of each crop, int64 [T, 6].
        rois: x1, y1, x2, y2 in pixels, [R, 4].
        crop_index: Which crop belongs to each RoI, int64 [R], 0..T-1; -1 gives a target of zeros.
        size: Side of a target in bins, 14 or 28.
        aligned: As for :func:`model.ops.roi_align.roi_align`.
        binarise: True: 1 where the average is at least 0.5, else 0; False: the average, 0..1.

    Returns:
        float32 [R, size, size].

    Raises:
        ValueError: A shape, type or device does not fit, a crop reaches out of its data or picture, or an index is out
            of range.
    """
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"mask data is {data.dtype} {list(data.shape)}, wanted uint8 [S] of 0 and 1")
    if offsets.dtype != torch.int64 or extents.dtype != torch.int64 or crop_index.dtype != torch.int64:
        raise ValueError(
            f"mask targets got offsets of {offsets.dtype}, extents of {extents.dtype} and crop_index of "
            f"{crop_index.dtype}, wanted int64 for all three"
        )
    if offsets.dim() != 1 or extents.shape != (*offsets.shape, 6):
        raise ValueError(
            f"mask targets got offsets {list(offsets.shape)} and extents {list(extents.shape)}, wanted [T] and [T, 6]"
        )
    if rois.dim() != 2 or rois.shape[1] != 4 or crop_index.shape != rois.shape[:1] or size < 1:
        raise ValueError(
            f"mask targets got rois {list(rois.shape)}, crop_index {list(crop_index.shape)} and size {size}, wanted "
            "[R, 4], [R] and at least 1"
        )
    extension.check_device("mask data", data)
    targets = torch.ops.maskray.mask_targets(
        data, offsets, extents, rois.detach().float(), crop_index, size, aligned, binarise
    )
    return cast(Tensor, targets)


@torch.library.register_fake("maskray::mask_targets")
def _mask_targets_fake(
    data: Tensor, offsets: Tensor, extents: Tensor, rois: Tensor, crop_index: Tensor, size: int, *rules: bool
) -> Tensor:
    return rois.new_empty((rois.shape[0], size, size), dtype=torch.float32)

"""Non-maximum suppression of a whole batch: fixed shapes in, a keep mask of the same shape out."""

from typing import cast

import torch
from torch import Tensor

from model.ops import extension

extension.load()


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression inside each image and group (class or pyramid level).

    The best valid box is kept, every box of its group with IoU above the threshold is dropped, and so on; of
    equal scores the lower index comes first. Boxes are the same as ``torchvision.ops.nms`` keeps for each
    group. Not differentiable.

    Args:
        boxes: [B, N, 4] x1, y1, x2, y2; compared in float32.
        scores: [B, N], higher is better.
        groups: int64 [B, N]; boxes of different groups never suppress each other.
        valid: bool [B, N]; False marks padding, which is never kept and costs next to nothing.
        iou_threshold: Overlap above which (not at which) the lesser box goes, 0..1.

    Returns:
        Which boxes to keep, bool [B, N].

    Raises:
        ValueError: A shape, type or device does not fit.
    """
    shape = valid.shape
    if valid.dim() != 2 or boxes.shape != (*shape, 4) or scores.shape != shape or groups.shape != shape:
        raise ValueError(
            f"nms got boxes {list(boxes.shape)}, scores {list(scores.shape)}, groups {list(groups.shape)} "
            f"and valid {list(shape)}, wanted [B, N, 4] and three times [B, N]"
        )
    if valid.dtype != torch.bool or groups.dtype != torch.int64:
        raise ValueError(f"nms got valid of {valid.dtype} and groups of {groups.dtype}, wanted bool and int64")
    if len({boxes.device, scores.device, groups.device, valid.device}) != 1:
        raise ValueError(
            f"nms got boxes on {boxes.device}, scores on {scores.device}, groups on {groups.device} and "
            f"valid on {valid.device}: move them to one device"
        )
    extension.check_device("boxes", boxes)
    keep = extension.call(
        torch.ops.maskray.nms,
        boxes.detach().float(),
        scores.detach().float(),
        groups,
        valid,
        float(iou_threshold),
    )
    return cast(Tensor, keep)


def _nms_fake(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid, memory_format=torch.contiguous_format)


torch.library.register_fake("maskray::nms", _nms_fake)

"""Box arithmetic: overlap, clipping, and the deltas a network regresses.

All functions accept any leading batch dimensions and are free of host synchronisation. Boxes are xyxy pixels.
"""

import math

import torch
from torch import Tensor

# A regressed log-size beyond ln(1000 / 16) would blow a 16 px anchor up to more than 1000 px (Detectron).
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union [..., N, M] of boxes [..., N, 4] and others [..., M, 4]; 0 for two empty boxes."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    inter = width * height
    union = area(boxes)[..., :, None] + area(others)[..., None, :] - inter
    return torch.where(union > 0, inter / union, torch.zeros_like(inter))


def covered_by(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box that lies in its best region: [..., N] in 0..1 of boxes [..., N, 4], regions [..., M, 4]."""
    a, b = boxes[..., :, None, :], regions[..., None, :, :]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    share = width * height / area(boxes)[..., :, None].clamp(min=1e-6)
    return share.amax(dim=-1)


def clip(boxes: Tensor, sizes_hw: Tensor) -> Tensor:
    """Boxes [B, ..., 4] limited to pictures of sizes_hw [B, 2]."""
    limits = sizes_hw.to(boxes.dtype).flip(-1).repeat(1, 2)  # w, h, w, h
    limits = limits.view(limits.shape[0], *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Deltas [..., 4] that turn anchors [..., 4] into boxes [..., 4] (R-CNN, appendix C), times `weights`.

    Anchors and boxes without extent give finite deltas of no meaning; the caller masks them.
    """
    anchor_size = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1e-6)
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    anchor_centre = anchors[..., :2] + 0.5 * anchor_size
    centre = boxes[..., :2] + 0.5 * size
    deltas = torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1)
    # One factor at a time: a tensor of them would be copied to the device on every call, which waits for it.
    return torch.stack([deltas[..., i] * weights[i] for i in range(4)], dim=-1)


def decode(
    deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float], limit_shrink: bool = False
) -> Tensor:
    """Boxes [..., 4] from deltas [..., 4] against anchors [..., 4] (broadcast); not clipped to any picture.

    Log-sizes are limited to `MAX_LOG_SCALE`, with `limit_shrink` to its negative too (MMDetection).
    """
    least = -MAX_LOG_SCALE if limit_shrink else None
    dx, dy, dw, dh = (deltas[..., i] / weights[i] for i in range(4))
    width, height = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    centre_x, centre_y = anchors[..., 0] + 0.5 * width, anchors[..., 1] + 0.5 * height
    x, y = dx * width + centre_x, dy * height + centre_y
    w = torch.exp(dw.clamp(least, MAX_LOG_SCALE)) * width
    h = torch.exp(dh.clamp(least, MAX_LOG_SCALE)) * height
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], dim=-1)

"""Anchor boxes of the pyramid levels: one size a level, several ratios, centred on the cells' corners."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import AnchorConfig


def cell_anchors(size_px: float, ratios: Sequence[float], rounded: bool) -> Tensor:
    """Anchors [A, 4] of one cell, centred on the origin, in the order of `ratios` (height / width)."""
    ratio = torch.tensor(ratios)
    height = ratio.sqrt() * size_px
    width = size_px / ratio.sqrt()
    anchors = torch.stack([-width, -height, width, height], dim=1) / 2
    return anchors.round() if rounded else anchors


def pyramid_anchors(config: AnchorConfig, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Anchors [h * w * A, 4] of each level, flattened in the order y, x, anchor.

    Args:
        config: sizes and ratios; one size a level.
        features: feature maps [B, C, h, w], finest first.
        strides: network-input pixels a cell, a level each.
    """
    levels = []
    for feature, stride, size in zip(features, strides, config.sizes_px, strict=True):
        cell = cell_anchors(size, config.ratios, config.rounded).to(feature.device)
        height, width = feature.shape[-2:]
        y = torch.arange(height, device=feature.device, dtype=torch.float32) * stride
        x = torch.arange(width, device=feature.device, dtype=torch.float32) * stride
        corner = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).repeat(1, 1, 2)
        levels.append((corner[:, :, None, :] + cell).reshape(-1, 4))
    return levels

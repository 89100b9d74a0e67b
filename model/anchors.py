"""Anchor boxes centred on the cells' corners: on a pyramid one size a level, on a single map all sizes in a cell."""

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


def anchors_per_cell(config: AnchorConfig, num_levels: int) -> int:
    """Anchors of one cell."""
    return len(config.ratios) * (len(config.sizes_px) if num_levels == 1 else 1)


def all_cell_anchors(config: AnchorConfig, num_levels: int) -> Tensor:
    """Anchors [L, A, 4] of one cell of each level; on a single level ratio first, then size (MMDetection's order)."""
    by_size = torch.stack([cell_anchors(size, config.ratios, config.rounded) for size in config.sizes_px])
    return by_size if num_levels > 1 else by_size.transpose(0, 1).reshape(1, -1, 4)


def pyramid_anchors(
    cells: Tensor, features: Sequence[Tensor], strides: Sequence[int], fitted: bool = False
) -> list[Tensor]:
    """Anchors [h * w * A, 4] of each level, flattened in the order y, x, anchor.

    Args:
        cells: anchors [L, A, 4] of one cell of each level, on the features' device.
        features: feature maps [B, C, h, w], finest first.
        strides: network-input pixels a cell, a level each.
        fitted: divide the input's sides by the level's instead, rounding down (see `AnchorConfig`).
    """
    height_px, width_px = (side * strides[0] for side in features[0].shape[-2:])
    levels = []
    for feature, stride, cell in zip(features, strides, cells, strict=True):
        height, width = feature.shape[-2:]
        step_y, step_x = (height_px // height, width_px // width) if fitted else (stride, stride)
        y = torch.arange(height, device=feature.device, dtype=torch.float32) * step_y
        x = torch.arange(width, device=feature.device, dtype=torch.float32) * step_x
        corner = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).repeat(1, 1, 2)
        levels.append((corner[:, :, None, :] + cell).reshape(-1, 4))
    return levels

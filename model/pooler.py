"""From boxes to crops: on a pyramid each RoI is pooled from the level that fits its size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import LevelRule, PoolerConfig, PoolOperation
from model.ops.roi_align import pyramid_roi_align, roi_warp
from model.ops.roi_pool import roi_pool

# A 224 px RoI (the ImageNet crop) belongs to level 4, counted as log2 of the stride.
_CANONICAL_SIZE_PX = 224.0
_CANONICAL_LEVEL = 4


def assign_levels(boxes: Tensor, strides: Sequence[int], rule: LevelRule) -> Tensor:
    """Index into the pyramid for each box (FPN paper, equation 1).

    Args:
        boxes: [R, 4].
        strides: strides of the levels, each twice the one before.
        rule: where the epsilon stands.

    Returns:
        int64 [R] in 0..len(strides) - 1.
    """
    finest = strides[0].bit_length() - 1
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    if rule is LevelRule.TORCHVISION:
        level = (_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE_PX) + 1e-6).floor() - finest
    elif rule is LevelRule.DETECTRON2:
        level = (_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE_PX + 1e-8)).floor() - finest
    else:
        level = torch.log2(size / 56.0 + 1e-6).floor()
    # Boxes that are not numbers would be undefined as integers; they go to the finest level and pool to zero.
    return level.nan_to_num(0.0).clamp(min=0, max=len(strides) - 1).to(torch.int64)


class PyramidPooler(nn.Module):
    """Pools boxes of a batch from the levels the RoI heads use (P2..P5, or the one map)."""

    def __init__(self, config: PoolerConfig, strides: Sequence[int]) -> None:
        """Take the settings and the strides of the levels, finest first."""
        super().__init__()
        self.config = config
        self.strides = tuple(strides)

    def forward(self, features: Sequence[Tensor], boxes: Tensor, output_size: int) -> Tensor:
        """Crops [B * R, C, output_size, output_size] of boxes [B, R, 4] from maps [B, C, h, w], finest first."""
        batch, count = boxes.shape[:2]
        flat = boxes.reshape(-1, 4)
        picture = torch.arange(batch, device=boxes.device, dtype=flat.dtype)[:, None].expand(batch, count)
        rois = torch.cat([picture.reshape(-1, 1), flat], dim=1)
        maps, scales = list(features[: len(self.strides)]), [1.0 / stride for stride in self.strides]
        levels = assign_levels(flat, self.strides, self.config.level_rule)
        config = self.config
        if config.operation is PoolOperation.ALIGN:
            return pyramid_roi_align(
                maps, rois, levels, output_size, scales, config.sampling_ratio, config.aligned, config.reduction.value
            )
        return self._compared(maps, rois, levels, output_size, scales)

    def _compared(
        self, maps: list[Tensor], rois: Tensor, levels: Tensor, output_size: int, scales: list[float]
    ) -> Tensor:
        """RoIPool or RoIWarp: every RoI on every level, then each from its own. For ablations, where time is none."""
        config = self.config
        crops = [
            roi_pool(map_, rois, output_size, scale) if config.operation is PoolOperation.POOL
            else roi_warp(map_, rois, output_size, scale, config.sampling_ratio, config.reduction.value)
            for map_, scale in zip(maps, scales, strict=True)
        ]  # fmt: skip
        chosen = crops[0]
        for level, crop in enumerate(crops[1:], start=1):
            chosen = torch.where((levels == level)[:, None, None, None], crop, chosen)
        return chosen

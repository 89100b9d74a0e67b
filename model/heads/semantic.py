"""Semantic segmentation beside the cascade: a map of classes, and a feature for the heads (HTC, section 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import SemanticHeadConfig
from model.ops.conv import Conv2d

_UNKNOWN = 255
_FINEST_STRIDE = 4


class SemanticHead(nn.Module):
    """All pyramid levels resized to one and summed, convolutions, then classes and an embedding."""

    def __init__(self, in_channels: int, num_levels: int, config: SemanticHeadConfig) -> None:
        """Take the width and number of the pyramid's levels."""
        super().__init__()
        width = config.channels
        self.config = config
        self.lateral = nn.ModuleList(nn.Conv2d(in_channels, in_channels, 1) for _ in range(num_levels))
        self.convs = nn.ModuleList(
            Conv2d(width if i else in_channels, width, 3, padding=1) for i in range(config.num_convs)
        )
        last = width if config.num_convs else in_channels
        self.embedding = nn.Conv2d(last, width, 1)
        self.logits = nn.Conv2d(last, config.num_classes, 1)
        for layer in [*self.lateral, *self.convs, self.embedding, self.logits]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits [B, K, h, w] and the embedding [B, C, h, w] of the pyramid's levels, finest first."""
        level = self.config.fusion_level
        size = features[level].shape[-2:]
        x = F.relu(self.lateral[level](features[level]))
        for i, (lateral, feature) in enumerate(zip(self.lateral, features, strict=True)):
            if i != level:
                resized = F.interpolate(feature, size=size, mode="bilinear", align_corners=True)
                x = x + F.relu(lateral(resized))
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return self.logits(x), F.relu(self.embedding(x))

    def loss(self, logits: Tensor, semantic: Tensor) -> Tensor:
        """Cross entropy, mean over all cells, those that are not learned counting 0 (MMDetection), times its weight.

        Args:
            logits: [B, K, h, w].
            semantic: uint8 [B, H, W]; the cell takes its first pixel's class.
        """
        config = self.config
        step = _FINEST_STRIDE << config.fusion_level
        wanted = semantic[:, ::step, ::step].to(torch.int64)
        wanted = torch.where(wanted == config.ignore_label, _UNKNOWN, wanted)
        # As a list of cells: on maps the loss has no deterministic form on a GPU.
        cells = logits.float().permute(0, 2, 3, 1).flatten(0, 2)
        loss = F.cross_entropy(cells, wanted.flatten(), reduction="none", ignore_index=_UNKNOWN)
        return loss.mean() * config.loss_weight

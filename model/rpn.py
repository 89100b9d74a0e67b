"""Region proposal network (Ren et al. 2015): objectness, box deltas, proposals and their losses, on all levels.

A = anchors of all levels; the flatten order is level, y, x, anchor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import boxes as box_ops
from model.anchors import all_cell_anchors, pyramid_anchors
from model.config import AnchorConfig, LossDivisor, RpnConfig
from model.matching import Sample, ignored, match, object_weights, sample
from model.ops.conv import Conv2d
from model.ops.nms import nms
from model.structures import Proposals, Targets

_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_SAMPLE_STREAM = 1


class RpnHead(nn.Module):
    """3 x 3 convolutions and two 1 x 1 outputs, shared by all levels."""

    def __init__(self, channels: int, num_anchors: int, num_convs: int = 1) -> None:
        """Take the width of the pyramid, the anchors a cell and the number of convolutions."""
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for layer in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits [B, A_l] and deltas [B, A_l, 4] of each level, float32."""
        logits, deltas = [], []
        for feature in features:
            hidden = feature
            for conv in self.convs:
                hidden = F.relu(conv(hidden), inplace=True)
            batch = feature.shape[0]
            # Channels are anchor-major, so that y, x, anchor is one permutation away (free in channels-last memory).
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).reshape(batch, -1).float())
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(batch, -1, 4).float())
        return logits, deltas


class RpnOutput(NamedTuple):
    """Raw predictions beside their anchors, a level each.

    Attributes:
        logits: float32 [B, A_l] a level.
        deltas: float32 [B, A_l, 4] a level.
        anchors: float32 [A_l, 4] a level.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RegionProposals(nn.Module):
    """The head, the anchors, the choice of proposals and the losses."""

    def __init__(
        self, head: RpnHead, anchors: AnchorConfig, strides: Sequence[int], config: RpnConfig, size_divisor: int = 1
    ) -> None:
        """Take the built head, the anchors, the strides of the levels it sees and what pictures are padded to."""
        super().__init__()
        self.head = head
        # On the device, so that a step never waits for a copy; not in checkpoints, since the config fixes them.
        self.register_buffer("cells", all_cell_anchors(anchors, len(strides)), persistent=False)
        self.strides = tuple(strides)
        self.fitted_anchors = anchors.fitted
        self.config = config
        self.size_divisor = size_divisor

    cells: Tensor

    def forward(self, features: Sequence[Tensor]) -> RpnOutput:
        """Predict on feature maps [B, C, h, w], finest first."""
        logits, deltas = self.head(features)
        return RpnOutput(logits, deltas, pyramid_anchors(self.cells, features, self.strides, self.fitted_anchors))

    @torch.no_grad()
    def proposals(self, output: RpnOutput, sizes_hw: Tensor) -> Proposals:
        """The best boxes after NMS in each level: [B, P] with P fixed by the config and the feature sizes.

        Args:
            output: raw predictions.
            sizes_hw: int64 [B, 2], pictures without padding; boxes are clipped to them.
        """
        config = self.config
        pre_nms = config.pre_nms_train if self.training else config.pre_nms_test
        post_nms = config.post_nms_train if self.training else config.post_nms_test
        boxes, scores, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(*output, strict=True)):
            top, index = logits.topk(min(pre_nms, logits.shape[1]), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(box_ops.decode(chosen, anchors[index], _DELTA_WEIGHTS, config.limit_shrink))
            scores.append(top.sigmoid())
            levels.append(torch.full_like(index, level))
        all_boxes = box_ops.clip(torch.cat(boxes, dim=1), sizes_hw)
        all_scores = torch.cat(scores, dim=1)
        size = all_boxes[..., 2:] - all_boxes[..., :2]
        # `> 0` and `>= min` together: a box without extent is never a proposal.
        valid = ((size > 0) & (size >= config.min_size_px)).all(dim=-1) & all_scores.isfinite()
        keep = nms(all_boxes, all_scores, torch.cat(levels, dim=1), valid, config.nms_iou)
        best, index = torch.where(keep, all_scores, -1.0).topk(min(post_nms, keep.shape[1]), dim=1)
        chosen_boxes = all_boxes.gather(1, index[..., None].expand(-1, -1, 4))
        is_valid = best >= 0
        return Proposals(torch.where(is_valid[..., None], chosen_boxes, 0.0), best.clamp(min=0), is_valid)

    def losses(self, output: RpnOutput, targets: Targets, sizes_hw: Tensor) -> dict[str, Tensor]:
        """Objectness and box loss over the sampled anchors of the batch, each divided by `config.divisor`.

        Args:
            output: raw predictions.
            targets: the objects.
            sizes_hw: int64 [B, 2], pictures without padding.
        """
        config = self.config
        logits, deltas = torch.cat(output.logits, dim=1), torch.cat(output.deltas, dim=1)
        anchors = torch.cat(output.anchors)
        with torch.no_grad():
            taking_part = self._taking_part(output, sizes_hw)
            matches = match(anchors, targets.boxes, targets.valid, config.min_best_iou, taking_part)
            positive = (matches.iou >= config.positive_iou) | matches.is_best
            negative = ~positive & (matches.iou < config.negative_iou) & ~ignored(anchors, targets)
            if taking_part is not None:
                positive, negative = positive & taking_part, negative & taking_part
            drawn = sample(positive, negative, targets.seeds, config.samples, config.positive_share, _SAMPLE_STREAM)
            object_index = torch.where(matches.is_best, matches.best_of, matches.best) if config.reassign_best \
                else matches.best  # fmt: skip
            objects = object_index.gather(1, drawn.place)
            object_boxes = _gather_boxes(targets.boxes, objects)
            drawn_anchors = anchors[drawn.place]
            wanted = box_ops.encode(object_boxes, drawn_anchors, _DELTA_WEIGHTS)
            weight = object_weights(targets, objects, drawn.positive)
            count = self._divisor(drawn)
        objectness = F.binary_cross_entropy_with_logits(
            logits.gather(1, drawn.place), drawn.positive.to(logits.dtype), reduction="none"
        )
        box = F.smooth_l1_loss(_gather_boxes(deltas, drawn.place), wanted, beta=config.smooth_l1_beta, reduction="none")
        zero = objectness.new_zeros(())
        return {
            "rpn_cls": torch.where(drawn.valid, objectness * weight, zero).sum() / count,
            "rpn_box": torch.where(drawn.positive[..., None], box * weight[..., None], zero).sum() / count,
        }

    def _divisor(self, drawn: Sample) -> Tensor:
        config = self.config
        if config.divisor is LossDivisor.CONFIGURED:
            return torch.full_like(drawn.place[0, 0], config.samples * drawn.valid.shape[0])
        count = drawn.valid.sum()
        if config.divisor is LossDivisor.ONE_POSITIVE:
            count = count + (~drawn.positive.any(dim=1)).sum()
        return count.clamp(min=1)

    def _taking_part(self, output: RpnOutput, sizes_hw: Tensor) -> Tensor | None:
        """Which anchors [B, A] are trained on at all; None for all of them."""
        config = self.config
        if config.border_px < 0 and not config.own_padding_only:
            return None
        anchors = torch.cat(output.anchors)
        height, width = sizes_hw[:, 0, None], sizes_hw[:, 1, None]
        inside = torch.ones((sizes_hw.shape[0], anchors.shape[0]), dtype=torch.bool, device=anchors.device)
        if config.border_px >= 0:
            inside = (anchors[:, 0] >= -config.border_px) & (anchors[:, 1] >= -config.border_px)
            inside = inside & (anchors[:, 2] < width + config.border_px) & (anchors[:, 3] < height + config.border_px)
        if not config.own_padding_only:
            return inside
        # The cell an anchor belongs to begins at the anchor's centre; half a pixel covers the rounding.
        centre_x, centre_y = (anchors[:, 0] + anchors[:, 2] + 1) / 2, (anchors[:, 1] + anchors[:, 3] + 1) / 2
        divisor = self.size_divisor
        padded_h, padded_w = -(-height // divisor) * divisor, -(-width // divisor) * divisor
        return inside & (centre_x < padded_w) & (centre_y < padded_h)


def _gather_boxes(boxes: Tensor, index: Tensor) -> Tensor:
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))

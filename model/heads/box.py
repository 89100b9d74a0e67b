"""The box head: class scores and box deltas of each RoI, their losses, and the choice of detections.

Label K, the last, is background; deltas are class-specific.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import boxes as box_ops
from model.config import BoxHeadConfig
from model.ops.nms import nms


class BoxHead(nn.Module):
    """Two hidden layers, then scores and deltas."""

    def __init__(self, in_channels: int, roi_size: int, num_classes: int, config: BoxHeadConfig) -> None:
        """Take the width and side of a RoI crop and the number of foreground classes."""
        super().__init__()
        self.fc1 = nn.Linear(in_channels * roi_size * roi_size, config.channels)
        self.fc2 = nn.Linear(config.channels, config.channels)
        self.scores = nn.Linear(config.channels, num_classes + 1)
        self.deltas = nn.Linear(config.channels, num_classes * 4)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.scores, self.deltas):
            nn.init.zeros_(layer.bias)
        self.num_classes = num_classes

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and deltas [R, K, 4] of RoI crops [R, C, s, s], float32."""
        # The first layer reads channel, row, column, as every published checkpoint does.
        hidden = F.relu(self.fc2(F.relu(self.fc1(crops.flatten(start_dim=1)))))
        return self.scores(hidden).float(), self.deltas(hidden).float().unflatten(1, (self.num_classes, 4))


class BoxTargets(NamedTuple):
    """What the sampled RoIs are trained towards.

    Attributes:
        rois: float32 [B, S, 4].
        labels: int64 [B, S], K for background.
        boxes: float32 [B, S, 4], the matched object.
        positive: bool [B, S].
        valid: bool [B, S], false for padding.
    """

    rois: Tensor
    labels: Tensor
    boxes: Tensor
    positive: Tensor
    valid: Tensor


def box_losses(logits: Tensor, deltas: Tensor, targets: BoxTargets, config: BoxHeadConfig) -> dict[str, Tensor]:
    """Cross entropy over the sampled RoIs, and smooth L1 over the positive ones; both divided by the sampled.

    Args:
        logits: [B * S, K + 1].
        deltas: [B * S, K, 4].
        targets: the sampled RoIs.
        config: the head's settings.
    """
    valid, positive = targets.valid.flatten(), targets.positive.flatten()
    labels = targets.labels.flatten()
    count = valid.sum().clamp(min=1)
    zero = logits.new_zeros(())
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    wanted = box_ops.encode(targets.boxes, targets.rois, config.delta_weights).flatten(0, 1)
    own_class = labels.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
    own_deltas = deltas.gather(1, own_class).squeeze(1)
    box = F.smooth_l1_loss(own_deltas, wanted, beta=config.smooth_l1_beta, reduction="none")
    return {
        "cls": torch.where(valid, cross_entropy, zero).sum() / count,
        "box": torch.where(positive[:, None], box, zero).sum() / count,
    }


class BoxDetections(NamedTuple):
    """Detections before their masks: boxes [B, D, 4], scores [B, D], labels [B, D], valid [B, D]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


def select_detections(
    logits: Tensor, deltas: Tensor, rois: Tensor, roi_valid: Tensor, sizes_hw: Tensor, config: BoxHeadConfig
) -> BoxDetections:
    """Decode every class of every RoI, drop low scores, suppress class by class, keep the best.

    Args:
        logits: [B * P, K + 1].
        deltas: [B * P, K, 4].
        rois: [B, P, 4].
        roi_valid: bool [B, P].
        sizes_hw: int64 [B, 2], pictures without padding; boxes are clipped to them.
        config: the head's settings.
    """
    batch, count = roi_valid.shape
    num_classes = deltas.shape[1]
    scores = logits.softmax(dim=1)[:, :num_classes].reshape(batch, count * num_classes)
    all_deltas = deltas.view(batch, count, num_classes, 4)
    boxes = box_ops.decode(all_deltas, rois[:, :, None, :], config.delta_weights)
    boxes = box_ops.clip(boxes.reshape(batch, count * num_classes, 4), sizes_hw)
    labels = torch.arange(num_classes, device=rois.device).repeat(count).expand(batch, -1)
    size = boxes[..., 2:] - boxes[..., :2]
    valid = ((size > 0) & (size >= config.min_size_px)).all(dim=-1) & (scores > config.score_threshold)
    valid = valid & roi_valid.repeat_interleave(num_classes, dim=1)
    keep = nms(boxes, scores, labels, valid, config.nms_iou)
    best, index = torch.where(keep, scores, -1.0).topk(min(config.max_detections, keep.shape[1]), dim=1)
    is_valid = best >= 0
    chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return BoxDetections(
        torch.where(is_valid[..., None], chosen, 0.0), best.clamp(min=0), labels.gather(1, index), is_valid
    )

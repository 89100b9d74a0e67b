"""The box head: class scores and box deltas of each RoI, their losses, and the choice of detections.

Label K, the last, is background; deltas have no slot for it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import boxes as box_ops
from model.config import BoxHeadConfig
from model.norms import ConvNorm
from model.ops.nms import nms
from model.structures import SampledRoIs

DeltaWeights = tuple[float, float, float, float]


class BoxHead(nn.Module):
    """Hidden layers, then scores and deltas."""

    def __init__(self, in_channels: int, roi_size: int, num_classes: int, config: BoxHeadConfig) -> None:
        """Take the width and side of a RoI crop and the number of foreground classes."""
        super().__init__()
        widths = [in_channels] + [config.conv_channels] * config.num_convs
        self.convs = nn.ModuleList(ConvNorm(widths[i], widths[i + 1], 3, config.norm) for i in range(config.num_convs))
        # Without fully connected layers the crop is averaged, so its side does not matter.
        inputs = widths[-1] * (roi_size * roi_size if config.num_fcs else 1)
        self.fcs = nn.ModuleList(
            nn.Linear(config.channels if i else inputs, config.channels) for i in range(config.num_fcs)
        )
        outputs = config.channels if config.num_fcs else inputs
        self.num_classes = num_classes
        self.num_deltas = 1 if config.class_agnostic else num_classes
        self.scores = nn.Linear(outputs, num_classes + 1)
        self.deltas = nn.Linear(outputs, self.num_deltas * 4)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("convs.") and parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
            elif name.startswith("fcs.") and parameter.ndim == 2:
                nn.init.kaiming_uniform_(parameter, a=1)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)

    def forward(self, crops: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and deltas [R, K, 4] ([R, 1, 4] class-agnostic), float32, of crops [R, C, s, s].

        `valid` bool [R] says which RoIs are real, for batch statistics; None: all.
        """
        hidden = crops
        for conv in self.convs:
            hidden = F.relu(conv(hidden, valid), inplace=True)
        # The first layer reads channel, row, column, as every published checkpoint does.
        hidden = hidden.flatten(start_dim=1) if len(self.fcs) else hidden.mean(dim=(2, 3))
        for layer in self.fcs:
            hidden = F.relu(layer(hidden), inplace=True)
        return self.scores(hidden).float(), self.deltas(hidden).float().unflatten(1, (self.num_deltas, 4))


def own_deltas(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas [R, 4] of each RoI's class, from [R, K, 4] or class-agnostic [R, 1, 4], and labels [R]."""
    index = labels.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
    return deltas.gather(1, index).squeeze(1)


def box_losses(
    logits: Tensor, deltas: Tensor, targets: SampledRoIs, config: BoxHeadConfig, weights: DeltaWeights | None = None
) -> dict[str, Tensor]:
    """Cross entropy over the sampled RoIs, and smooth L1 over the positive ones; both divided by the sampled.

    Args:
        logits: [B * S, K + 1].
        deltas: [B * S, K or 1, 4].
        targets: the sampled RoIs.
        config: the head's settings.
        weights: factors of the deltas where a cascade's stage has its own; None takes the head's.
    """
    valid, positive = targets.valid.flatten(), targets.positive.flatten()
    labels = targets.labels.flatten()
    factor = targets.weights.expand(targets.valid.shape).flatten()
    count = valid.sum().clamp(min=1)
    zero = logits.new_zeros(())
    cross_entropy = F.cross_entropy(logits, labels, reduction="none") * factor
    wanted = box_ops.encode(targets.boxes, targets.rois, weights or config.delta_weights).flatten(0, 1)
    box = F.smooth_l1_loss(own_deltas(deltas, labels), wanted, beta=config.smooth_l1_beta, reduction="none")
    return {
        "cls": torch.where(valid, cross_entropy, zero).sum() / count,
        "box": torch.where(positive[:, None], box * factor[:, None], zero).sum() / count,
    }


class BoxDetections(NamedTuple):
    """Detections before their masks: boxes [B, D, 4], scores [B, D], labels [B, D], valid [B, D]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


def select_detections(
    scores: Tensor, deltas: Tensor, rois: Tensor, roi_valid: Tensor, sizes_hw: Tensor, config: BoxHeadConfig,
    weights: DeltaWeights | None = None,
) -> BoxDetections:  # fmt: skip
    """Decode every class of every RoI, drop low scores, suppress class by class, keep the best.

    Args:
        scores: [B * P, K + 1], class probabilities.
        deltas: [B * P, K or 1, 4].
        rois: [B, P, 4].
        roi_valid: bool [B, P].
        sizes_hw: int64 [B, 2], pictures without padding; boxes are clipped to them.
        config: the head's settings.
        weights: factors of the deltas where a cascade's last stage has its own; None takes the head's.
    """
    batch, count = roi_valid.shape
    num_classes = scores.shape[1] - 1
    flat_scores = scores[:, :num_classes].reshape(batch, count * num_classes)
    all_deltas = deltas.view(batch, count, -1, 4)
    boxes = box_ops.decode(all_deltas, rois[:, :, None, :], weights or config.delta_weights, config.limit_shrink)
    boxes = box_ops.clip(boxes, sizes_hw).expand(-1, -1, num_classes, -1).reshape(batch, count * num_classes, 4)
    labels = torch.arange(num_classes, device=rois.device).repeat(count).expand(batch, -1)
    size = boxes[..., 2:] - boxes[..., :2]
    valid = ((size > 0) & (size >= config.min_size_px)).all(dim=-1) & (flat_scores > config.score_threshold)
    valid = valid & roi_valid.repeat_interleave(num_classes, dim=1)
    keep = nms(boxes, flat_scores, labels, valid, config.nms_iou)
    best, index = torch.where(keep, flat_scores, -1.0).topk(min(config.max_detections, keep.shape[1]), dim=1)
    is_valid = best >= 0
    found = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return BoxDetections(
        torch.where(is_valid[..., None], found, 0.0), best.clamp(min=0), labels.gather(1, index), is_valid
    )

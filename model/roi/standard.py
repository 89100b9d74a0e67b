"""The second stage of Mask R-CNN: one box head and one mask head on the same pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import BoxHeadConfig, MaskHeadConfig
from model.heads.box import BoxDetections, BoxHead, BoxTargets, box_losses, select_detections
from model.heads.mask import MaskHead, mask_loss, select_class
from model.matching import match, positive_quota, sample
from model.pooler import PyramidPooler
from model.structures import Detections, Proposals, Targets

_SAMPLE_STREAM = 2


class StandardRoI(nn.Module):
    """Samples proposals, trains both heads, and turns proposals into detections with masks."""

    def __init__(
        self,
        pooler: PyramidPooler,
        box_head: BoxHead,
        mask_head: MaskHead,
        box_config: BoxHeadConfig,
        mask_config: MaskHeadConfig,
    ) -> None:
        """Take the built parts and their settings."""
        super().__init__()
        self.pooler = pooler
        self.box_head = box_head
        self.mask_head = mask_head
        self.box_config = box_config
        self.mask_config = mask_config

    def losses(self, features: Sequence[Tensor], proposals: Proposals, targets: Targets) -> dict[str, Tensor]:
        """Class, box and mask loss on proposals and ground-truth boxes sampled together."""
        sampled, objects = self._sample(proposals, targets)
        logits, deltas = self.box_head(self.pooler(features, sampled.rois, self.pooler.config.box_size))
        losses = box_losses(logits, deltas, sampled, self.box_config)
        # A sample begins with its positives, so its first `quota` slots hold all the mask head needs.
        available = proposals.boxes.shape[1] + targets.boxes.shape[1]
        quota = positive_quota(self.box_config.samples, self.box_config.positive_share, available)
        rois, positive = sampled.rois[:, :quota], sampled.positive[:, :quota]
        mask_logits = self.mask_head(self.pooler(features, rois, self.pooler.config.mask_size))
        losses["mask"] = mask_loss(
            mask_logits,
            rois,
            objects[:, :quota],
            sampled.labels[:, :quota],
            positive,
            targets.masks,
            self.mask_config,
        )
        return losses

    @torch.no_grad()
    def _sample(self, proposals: Proposals, targets: Targets) -> tuple[BoxTargets, Tensor]:
        boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
        valid = torch.cat([proposals.valid, targets.valid], dim=1)
        matches = match(boxes, targets.boxes, targets.valid)
        positive = valid & (matches.iou >= self.box_config.positive_iou)
        drawn = sample(
            positive, valid & ~positive, targets.seeds,
            self.box_config.samples, self.box_config.positive_share, _SAMPLE_STREAM,
        )  # fmt: skip
        objects = matches.best.gather(1, drawn.place)
        background = self.box_head.num_classes
        labels = torch.where(drawn.positive, targets.labels.gather(1, objects), background)
        rois = boxes.gather(1, drawn.place[..., None].expand(-1, -1, 4))
        object_boxes = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
        return BoxTargets(rois, labels, object_boxes, drawn.positive, drawn.valid), objects

    def detect(self, features: Sequence[Tensor], proposals: Proposals, sizes_hw: Tensor) -> BoxDetections:
        """Detections without masks, [B, D], of proposals [B, P] on pictures of sizes_hw [B, 2]."""
        logits, deltas = self.box_head(self.pooler(features, proposals.boxes, self.pooler.config.box_size))
        return select_detections(logits, deltas, proposals.boxes, proposals.valid, sizes_hw, self.box_config)

    def masks(self, features: Sequence[Tensor], found: BoxDetections) -> Detections:
        """Add to detections [B, D] the mask probabilities of their own class."""
        batch, count = found.valid.shape
        logits = self.mask_head(self.pooler(features, found.boxes, self.pooler.config.mask_size))
        probabilities = select_class(logits, found.labels.flatten()).sigmoid()
        side = probabilities.shape[-1]
        return Detections(*found, probabilities.view(batch, count, side, side))

"""Cascade Mask R-CNN (Cai and Vasconcelos 2018), by the rules of MMDetection or of Detectron2."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import MaskHeadConfig
from model.heads.box import BoxDetections, box_losses
from model.heads.mask import mask_loss, mask_probabilities
from model.pooler import PyramidPooler
from model.roi.sampling import first_positives, label_rois, sample_rois
from model.roi.stages import BoxStages, Refined, scale_gradient
from model.structures import Detections, Proposals, SampledRoIs, Targets

_SAMPLE_STREAM = 2  # of the first stage; the others follow


class CascadeRoI(nn.Module):
    """Three box heads one after the other, and a mask head for each of them or one for the first."""

    def __init__(
        self,
        pooler: PyramidPooler,
        box_heads: nn.ModuleList,
        mask_heads: nn.ModuleList,
        stages: BoxStages,
        mask_config: MaskHeadConfig,
    ) -> None:
        """Take the built parts and their settings; without masks `mask_heads` is empty."""
        super().__init__()
        self.pooler = pooler
        self.box_heads = box_heads
        self.mask_heads = mask_heads
        self.stages = stages
        self.mask_config = mask_config

    def losses(
        self, features: Sequence[Tensor], proposals: Proposals, targets: Targets, sizes_hw: Tensor
    ) -> dict[str, Tensor]:
        """The losses of all stages, each on the boxes refined by the one before; pictures of sizes_hw [B, 2]."""
        losses: dict[str, Tensor] = {}
        candidates = Refined(proposals.boxes, proposals.valid)
        for stage, weight in enumerate(self.stages.cascade.loss_weights):
            sampled = self._sample(stage, candidates, targets)
            crops = self.pooler(features, sampled.rois, self.pooler.config.box_size)
            crops = scale_gradient(crops, self.stages.cascade.feature_gradient)
            logits, deltas = self.box_heads[stage](crops, sampled.valid.flatten())
            found = box_losses(logits, deltas, sampled, self.stages.box, self.stages.cascade.delta_weights[stage])
            losses.update({f"stage{stage}_{name}": value * weight for name, value in found.items()})
            if stage < len(self.mask_heads):
                available = candidates.boxes.shape[1] + targets.boxes.shape[1]
                losses[f"stage{stage}_mask"] = self._mask_loss(stage, features, sampled, targets, available) * weight
            candidates = self.stages.refine(stage, deltas, logits, sampled, sizes_hw)
        return losses

    def _sample(self, stage: int, candidates: Refined, targets: Targets) -> SampledRoIs:
        background = self.stages.num_classes
        iou = self.stages.cascade.ious[stage]
        if stage and not self.stages.cascade.resample:
            return label_rois(candidates.boxes, candidates.valid, targets, background, iou)
        return sample_rois(
            candidates.boxes, candidates.valid, targets, background, self.stages.box, iou, _SAMPLE_STREAM + stage
        )

    def _mask_loss(
        self, stage: int, features: Sequence[Tensor], sampled: SampledRoIs, targets: Targets, available: int
    ) -> Tensor:
        positives = first_positives(sampled, self.stages.box, available)
        crops = self.pooler(features, positives.rois, self.pooler.config.mask_size)
        logits = self.mask_heads[stage](crops, positives.positive.flatten())
        return mask_loss(logits, positives, targets.masks, self.mask_config)

    def prepare(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What `detect` and `complete` look at: the feature maps as they are."""
        return [*features]

    def detect(self, features: Sequence[Tensor], proposals: Proposals, sizes_hw: Tensor) -> BoxDetections:
        """Detections without masks, [B, D], of proposals [B, P] on pictures of sizes_hw [B, 2]."""
        return self.stages.detect(self.box_heads, lambda boxes: self.crops(features, boxes), proposals, sizes_hw)

    def crops(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The box heads' crops of boxes [B, R, 4]."""
        crops: Tensor = self.pooler(features, boxes, self.pooler.config.box_size)
        return crops

    def mask_logits(self, features: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
        """Logits [B * R, K, M, M] of each mask head on boxes [B, R, 4]."""
        crops = self.pooler(features, boxes, self.pooler.config.mask_size)
        return [head(crops) for head in self.mask_heads]

    def complete(self, features: Sequence[Tensor], found: BoxDetections) -> Detections:
        """Add to detections [B, D] the mean of the mask heads' probabilities of their own class."""
        if not len(self.mask_heads):
            return Detections(*found)
        labels = found.labels.flatten()
        logits = self.mask_logits(features, found.boxes)
        masks = [mask_probabilities(stage, labels, self.mask_config) for stage in logits]
        return Detections(*found, torch.stack(masks).mean(dim=0).view(*found.valid.shape, *masks[0].shape[1:]))

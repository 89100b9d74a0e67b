"""The second stage of Mask R-CNN: a box head and, beside it, a mask head and a keypoint head on the same features."""

from collections.abc import Sequence

from torch import Tensor, nn

from model.config import BoxHeadConfig, MaskHeadConfig
from model.heads.box import BoxDetections, BoxHead, box_losses, select_detections
from model.heads.keypoint import KeypointHead, keypoint_loss
from model.heads.mask import mask_loss, mask_probabilities
from model.pooler import PyramidPooler
from model.roi.sampling import first_positives, sample_rois
from model.structures import Detections, Proposals, SampledRoIs, Targets

_SAMPLE_STREAM = 2


class StandardRoI(nn.Module):
    """Samples proposals, trains the heads, and turns proposals into detections."""

    def __init__(
        self,
        pooler: PyramidPooler,
        box_head: BoxHead,
        box_config: BoxHeadConfig,
        *,
        mask_head: nn.Module | None = None,
        mask_config: MaskHeadConfig,
        keypoint_head: KeypointHead | None = None,
        res5: nn.Module | None = None,
    ) -> None:
        """Take the built parts and their settings; `res5` is the fifth stage where it runs on each RoI (C4)."""
        super().__init__()
        self.pooler = pooler
        self.res5 = res5
        self.box_head = box_head
        self.mask_head = mask_head
        self.keypoint_head = keypoint_head
        self.box_config = box_config
        self.mask_config = mask_config

    def crops(self, features: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """Crops of boxes [B, R, 4], through the fifth stage where it runs on each RoI."""
        crops: Tensor = self.pooler(features, boxes, size)
        return crops if self.res5 is None else self.res5(crops)

    def losses(
        self, features: Sequence[Tensor], proposals: Proposals, targets: Targets, sizes_hw: Tensor
    ) -> dict[str, Tensor]:
        """The losses on proposals and ground-truth boxes sampled together; `sizes_hw` int64 [B, 2] is not needed."""
        config, size = self.box_config, self.pooler.config
        sampled = sample_rois(
            proposals.boxes, proposals.valid, targets, self.box_head.num_classes, config, config.positive_iou,
            _SAMPLE_STREAM,
        )  # fmt: skip
        crops = self.crops(features, sampled.rois, size.box_size)
        logits, deltas = self.box_head(crops, sampled.valid.flatten())
        losses = box_losses(logits, deltas, sampled, config)
        positives = first_positives(sampled, config, proposals.boxes.shape[1] + targets.boxes.shape[1])
        if self.mask_head is not None:
            if self.res5 is None:
                mask_crops = self.crops(features, positives.rois, size.mask_size)
            else:  # one run of the fifth stage serves both heads
                quota = positives.rois.shape[1]
                mask_crops = crops.view(*sampled.valid.shape, *crops.shape[1:])[:, :quota].flatten(0, 1)
            mask_logits = self.mask_head(mask_crops, positives.positive.flatten())
            losses["mask"] = mask_loss(mask_logits, positives, targets.masks, self.mask_config)
        if self.keypoint_head is not None:
            losses["keypoint"] = self._keypoint_loss(features, positives, targets)
        return losses

    def _keypoint_loss(self, features: Sequence[Tensor], positives: SampledRoIs, targets: Targets) -> Tensor:
        assert self.keypoint_head is not None
        if targets.keypoints is None:
            raise ValueError("the detector has a keypoint head, the targets have no keypoints: train it on a data set "
                             "with keypoints, or set keypoint.enabled=false")  # fmt: skip
        crops = self.pooler(features, positives.rois, self.pooler.config.keypoint_size)
        return keypoint_loss(self.keypoint_head(crops), positives, targets.keypoints)

    def prepare(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What `detect` and `complete` look at: the feature maps as they are."""
        return [*features]

    def detect(self, features: Sequence[Tensor], proposals: Proposals, sizes_hw: Tensor) -> BoxDetections:
        """Detections without masks, [B, D], of proposals [B, P] on pictures of sizes_hw [B, 2]."""
        logits, deltas = self.box_head(self.crops(features, proposals.boxes, self.pooler.config.box_size))
        return select_detections(
            logits.softmax(dim=1), deltas, proposals.boxes, proposals.valid, sizes_hw, self.box_config
        )

    def complete(self, features: Sequence[Tensor], found: BoxDetections) -> Detections:
        """Add to detections [B, D] the mask probabilities of their own class, and their keypoints' heat maps."""
        shape, size = found.valid.shape, self.pooler.config
        masks = heatmaps = None
        if self.mask_head is not None:
            # With the fifth stage on each RoI the crop is the box head's; the mask has its side after upsampling.
            crops = self.crops(features, found.boxes, size.mask_size if self.res5 is None else size.box_size)
            masks = mask_probabilities(self.mask_head(crops), found.labels.flatten(), self.mask_config)
            masks = masks.view(*shape, *masks.shape[1:])
        if self.keypoint_head is not None:
            crops = self.pooler(features, found.boxes, size.keypoint_size)
            heatmaps = self.keypoint_head(crops)
            heatmaps = heatmaps.view(*shape, *heatmaps.shape[1:])
        return Detections(*found, masks, heatmaps)

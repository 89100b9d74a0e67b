"""Settings of the anchors, the region proposal network and the pooling of RoIs."""

import dataclasses

from model.config.check import require, require_fields
from model.config.switches import LevelRule, LossDivisor, PoolOperation, PoolReduction


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """Anchor boxes: on a pyramid one size a level, on a single map all sizes in each cell; several aspect ratios.

    Attributes:
        sizes_px: square root of the anchor area; on a pyramid one value a level, finest first.
        ratios: height / width of the anchors of a cell. In a cell the ratios come first, then the sizes.
        rounded: corners are rounded to whole pixels (torchvision).
        fitted: a level's stride is the input's side divided by the level's, rounded down (torchvision): on P6 of an
            800 px side 61 instead of 64.
    """

    sizes_px: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = False
    fitted: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        is_positive = bool(self.sizes_px) and min(self.sizes_px) > 0
        require(is_positive, "anchors.sizes_px", self.sizes_px, "at least one size, all > 0")
        require(bool(self.ratios) and min(self.ratios) > 0, "anchors.ratios", self.ratios, "ratios > 0")


@dataclasses.dataclass(frozen=True)
class RpnConfig:
    """Region proposal network: layers, assignment, losses and the choice of proposals.

    Attributes:
        num_convs: 3 x 3 convolutions before the outputs.
        positive_iou: anchors with at least this overlap are positive.
        negative_iou: anchors below this overlap are negative; between the two they are left out.
        min_best_iou: an object's best anchors are positive from this overlap on, however small it is.
        reassign_best: an object's best anchor is trained towards that object (MMDetection) rather than towards
            the anchor's own best object (torchvision, Detectron2).
        border_px: anchors that reach further than this beyond the picture are left out of training; -1 keeps all.
        own_padding_only: anchors of cells beyond a picture's own padded size are left out of training, where a
            larger picture made the batch larger (MMDetection).
        samples: anchors an image in the loss.
        positive_share: upper share of positives among them.
        divisor: what the summed losses are divided by.
        smooth_l1_beta: beta of the box loss in deltas; 0 is L1.
        limit_shrink: deltas are limited below too, as they are above, when boxes are decoded (MMDetection).
        pre_nms_train: proposals kept a level before NMS, in training.
        pre_nms_test: the same at test time.
        post_nms_train: proposals kept an image after NMS, in training.
        post_nms_test: the same at test time.
        nms_iou: NMS suppresses above this overlap.
        min_size_px: proposals with a smaller side are dropped.
    """

    num_convs: int = 1
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    min_best_iou: float = 0.0
    reassign_best: bool = False
    border_px: int = -1
    own_padding_only: bool = False
    samples: int = 256
    positive_share: float = 0.5
    divisor: LossDivisor = LossDivisor.SAMPLED
    smooth_l1_beta: float = 0.0
    limit_shrink: bool = False
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 1000
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    min_size_px: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        require(0 <= self.negative_iou <= self.positive_iou <= 1, "rpn.negative_iou", self.negative_iou,
                f"in 0..positive_iou ({self.positive_iou})")  # fmt: skip
        require_fields(self, "rpn", ("positive_share", "min_best_iou", "nms_iou"), 0, 1)
        require_fields(self, "rpn", ("smooth_l1_beta", "min_size_px"), 0)
        require_fields(self, "rpn", ("border_px",), -1)
        counts = ("num_convs", "samples", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test")
        require_fields(self, "rpn", counts, 1)


@dataclasses.dataclass(frozen=True)
class PoolerConfig:
    """From boxes to crops of the feature maps.

    Attributes:
        box_size: output side for the box head.
        mask_size: output side for the mask head; the mask has twice this side.
        keypoint_size: output side for the keypoint head; the heat map has four times this side.
        operation: RoIAlign, or what the paper compares it with.
        reduction: average or maximum of a bin's samples.
        sampling_ratio: samples a bin and axis; 0 takes as many as the bin has pixels, rounded up.
        aligned: half-pixel shift (Mask R-CNN as re-issued in Detectron2).
        level_rule: where the epsilon stands in the choice of the pyramid level.
    """

    box_size: int = 7
    mask_size: int = 14
    keypoint_size: int = 14
    operation: PoolOperation = PoolOperation.ALIGN
    reduction: PoolReduction = PoolReduction.AVERAGE
    sampling_ratio: int = 0
    aligned: bool = True
    level_rule: LevelRule = LevelRule.DETECTRON2

    def __post_init__(self) -> None:
        """Check ranges."""
        require_fields(self, "pooler", ("box_size", "mask_size", "keypoint_size"), 1)
        require_fields(self, "pooler", ("sampling_ratio",), 0)

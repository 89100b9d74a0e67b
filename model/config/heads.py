"""Settings of the heads and of the cascade."""

import dataclasses

from model.config.check import require, require_fields
from model.config.switches import (
    CascadeMerge,
    KeypointScore,
    MaskActivation,
    MaskKind,
    MaskTarget,
    Norm,
    PasteRule,
)


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
    """Hidden layers, then class scores and box deltas; how RoIs are sampled and detections chosen.

    Attributes:
        num_convs: 3 x 3 convolutions before the fully connected layers.
        conv_channels: their width.
        norm: normalisation after each of them.
        num_fcs: fully connected layers; 0 averages the crop instead (the C4 head).
        channels: width of the fully connected layers.
        class_agnostic: one set of deltas for all classes.
        positive_iou: proposals with at least this overlap are positive, all others background.
        reassign_best: from `positive_iou` on, an object's best proposal is trained towards that object even if it
            overlaps another more (MMDetection).
        samples: proposals an image in the loss.
        positive_share: upper share of positives among them; also fixes how many RoIs the mask head is trained on.
        smooth_l1_beta: beta of the box loss in deltas; 0 is L1.
        delta_weights: factors of (dx, dy, dw, dh).
        limit_shrink: deltas are limited below too, as they are above, when boxes are decoded (MMDetection).
        score_threshold: detections below are dropped at test time.
        nms_iou: class-wise NMS suppresses above this overlap.
        max_detections: detections kept an image.
        min_size_px: detections with a smaller side are dropped.
    """

    num_convs: int = 0
    conv_channels: int = 256
    norm: Norm = Norm.NONE
    num_fcs: int = 2
    channels: int = 1024
    class_agnostic: bool = False
    positive_iou: float = 0.5
    reassign_best: bool = False
    samples: int = 512
    positive_share: float = 0.25
    smooth_l1_beta: float = 0.0
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    limit_shrink: bool = False
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    min_size_px: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        require_fields(self, "box", ("conv_channels", "channels", "samples", "max_detections"), 1)
        require_fields(self, "box", ("positive_iou", "positive_share", "score_threshold", "nms_iou"), 0, 1)
        require_fields(self, "box", ("num_convs", "num_fcs", "smooth_l1_beta", "min_size_px"), 0)
        require(min(self.delta_weights) > 0, "box.delta_weights", self.delta_weights, "four factors > 0")


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """Three box heads, each on the boxes that the one before refined (Cascade R-CNN and HTC only).

    Attributes:
        ious: overlap from which a box is positive, a stage each; replaces `box.positive_iou`.
        delta_weights: factors of (dx, dy, dw, dh), a stage each; replaces `box.delta_weights`.
        loss_weights: factor of each stage's losses.
        resample: each stage draws its samples anew, with the objects added again (MMDetection); otherwise stages two
            and three take all boxes of the first (Detectron2).
        feature_gradient: factor of the gradient from each box head into the features (Detectron2: 1/3).
        mask_each_stage: a mask head a stage; otherwise one, trained on the first stage's boxes (Detectron2).
        merge: what of the stages is averaged into the class scores.
    """

    ious: tuple[float, float, float] = (0.5, 0.6, 0.7)
    delta_weights: tuple[
        tuple[float, float, float, float], tuple[float, float, float, float], tuple[float, float, float, float]
    ] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
    loss_weights: tuple[float, float, float] = (1.0, 0.5, 0.25)
    resample: bool = True
    feature_gradient: float = 1.0
    mask_each_stage: bool = True
    merge: CascadeMerge = CascadeMerge.LOGITS

    def __post_init__(self) -> None:
        """Check ranges."""
        require(min(self.ious) >= 0 and max(self.ious) <= 1, "cascade.ious", self.ious, "three overlaps in 0..1")
        factors = [factor for stage in self.delta_weights for factor in stage]
        require(min(factors) > 0, "cascade.delta_weights", self.delta_weights, "three times four factors > 0")
        require(min(self.loss_weights) >= 0, "cascade.loss_weights", self.loss_weights, "three factors >= 0")
        require_fields(self, "cascade", ("feature_gradient",), 0)


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
    """A small network on each RoI (Mask R-CNN, figure 4).

    Attributes:
        enabled: without it the detector finds boxes only (Faster R-CNN).
        kind: fully convolutional, or a multi-layer perceptron (table 2e).
        channels: width of the convolutions.
        num_convs: number of 3 x 3 convolutions before the upsampling.
        norm: normalisation after each convolution.
        hidden_layers: fully connected hidden layers of the perceptron.
        hidden_channels: their width.
        class_agnostic: one mask for all classes.
        activation: sigmoid, or softmax over the classes (table 2b).
        target: how ground-truth masks become targets.
        paste: how mask probabilities become pixels.
        threshold: probability from which a pixel belongs to the object.
    """

    enabled: bool = True
    kind: MaskKind = MaskKind.FCN
    channels: int = 256
    num_convs: int = 4
    norm: Norm = Norm.NONE
    hidden_layers: int = 2
    hidden_channels: int = 1024
    class_agnostic: bool = False
    activation: MaskActivation = MaskActivation.SIGMOID
    target: MaskTarget = MaskTarget.BINARY
    paste: PasteRule = PasteRule.GRID_SAMPLE
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges."""
        require_fields(self, "mask", ("channels", "hidden_layers", "hidden_channels"), 1)
        require_fields(self, "mask", ("num_convs",), 0)
        require(0 < self.threshold < 1, "mask.threshold", self.threshold, "between 0 and 1")


COCO_PERSON_FLIP = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
"""Left and right keypoints of COCO's person, counted from 0, the nose."""


@dataclasses.dataclass(frozen=True)
class KeypointHeadConfig:
    """One heat map a keypoint on each RoI (Mask R-CNN, section 5).

    Attributes:
        enabled: whether the detector finds keypoints.
        num_keypoints: keypoints of an object.
        flip_pairs: pairs of keypoints that change places when the picture is mirrored.
        num_convs: number of 3 x 3 convolutions before the upsampling.
        channels: their width.
        score: what stands for a keypoint's confidence.
    """

    enabled: bool = False
    num_keypoints: int = 17
    flip_pairs: tuple[tuple[int, int], ...] = COCO_PERSON_FLIP
    num_convs: int = 8
    channels: int = 512
    score: KeypointScore = KeypointScore.PROBABILITY

    def __post_init__(self) -> None:
        """Check ranges."""
        require_fields(self, "keypoint", ("num_keypoints", "channels"), 1)
        require_fields(self, "keypoint", ("num_convs",), 0)
        paired = [index for pair in self.flip_pairs for index in pair]
        is_sound = len(set(paired)) == len(paired) and all(0 <= index < self.num_keypoints for index in paired)
        require(is_sound, "keypoint.flip_pairs", self.flip_pairs, f"each of 0..{self.num_keypoints - 1} at most once")


@dataclasses.dataclass(frozen=True)
class SemanticHeadConfig:
    """Semantic segmentation beside the cascade (HTC, section 3.4).

    Attributes:
        enabled: whether the branch exists; HTC works without it.
        num_classes: classes of the semantic map (COCO stuff and things 183, nuImages 32).
        channels: width of the convolutions and of the feature given to the heads.
        num_convs: number of 3 x 3 convolutions.
        fusion_level: pyramid level all others are resized to, 0 for the finest; 1 is stride 8.
        loss_weight: factor of its loss.
        ignore_label: pixels of this class are not learned; 255 never is.
    """

    enabled: bool = False
    num_classes: int = 183
    channels: int = 256
    num_convs: int = 4
    fusion_level: int = 1
    loss_weight: float = 0.2
    ignore_label: int = 255

    def __post_init__(self) -> None:
        """Check ranges."""
        require_fields(self, "semantic", ("num_classes", "channels"), 1)
        require_fields(self, "semantic", ("num_convs", "loss_weight"), 0)
        require_fields(self, "semantic", ("fusion_level",), 0, 4)
        require_fields(self, "semantic", ("ignore_label",), 0, 255)

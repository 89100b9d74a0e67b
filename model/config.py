"""Every dataclass and switch that describes a detector; plain values, checked when they are made.

A detector is one frozen `DetectorConfig`. What differs between torchvision, Detectron2 and MMDetection is an
explicit field here, fixed by a preset, so that a checkpoint of any of them runs with the rules it was trained with.
"""

import dataclasses
import enum


class Norm(enum.Enum):
    """Normalisation of the backbone."""

    FROZEN = "frozen"  # batch statistics and affine are constants (fine-tuning from ImageNet)
    BATCH = "batch"
    SYNC = "sync"  # batch norm over all training workers
    GROUP = "group"  # 32 groups


class StrideIn(enum.Enum):
    """The convolution of a bottleneck that carries the stride."""

    FIRST_1X1 = "first_1x1"  # Caffe: the original MSRA weights
    CONV_3X3 = "conv_3x3"  # torchvision, ResNeXt


class LevelRule(enum.Enum):
    """Where the epsilon stands in the choice of a RoI's pyramid level (FPN paper, equation 1)."""

    TORCHVISION = "torchvision"  # floor(4 + log2(sqrt(area) / 224) + 1e-6)
    DETECTRON2 = "detectron2"  # floor(4 + log2(sqrt(area) / 224 + 1e-8))
    MMDETECTION = "mmdetection"  # floor(log2(sqrt(area) / 56 + 1e-6)), counted from the finest level


class PasteRule(enum.Enum):
    """How an M x M mask probability becomes pixels of the picture."""

    GRID_SAMPLE = "grid_sample"  # Detectron2, MMDetection: bilinear at pixel centres, >= threshold
    PADDED_RESIZE = "padded_resize"  # torchvision, Caffe2: pad by one, integer box, > threshold


class MaskTarget(enum.Enum):
    """How a ground-truth mask becomes an M x M target."""

    BINARY = "binary"  # aligned RoIAlign, then >= 0.5 (MMDetection, Detectron2 with bit masks)
    SOFT = "soft"  # unaligned RoIAlign, left as it is (torchvision)


class ResizeKernel(enum.Enum):
    """The interpolation of the picture resize."""

    FLOAT_BILINEAR = "float_bilinear"  # torch, float32, no antialias (torchvision's detection transform)


class ResizeRounding(enum.Enum):
    """How a scaled side becomes whole pixels."""

    FLOOR = "floor"  # torchvision; can be one below the short edge asked for
    HALF_UP = "half_up"  # MMDetection, Detectron2


class ChannelOrder(enum.Enum):
    """Order of the colour channels that enter the network."""

    RGB = "rgb"
    BGR = "bgr"


def _require(condition: bool, what: str, got: object, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{what} must be {wanted}, got {got!r}")


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """From decoded picture to network input.

    Attributes:
        short_edge_px: length of the shorter side after the resize at test time.
        long_edge_px: upper limit of the longer side.
        kernel: interpolation of the resize.
        rounding: how scaled sides become whole pixels.
        channel_order: order of the channels that enter the network; `mean` and `std` are in this order.
        mean: subtracted from values in 0..255.
        std: divides after the subtraction.
        size_divisor: inputs are padded (bottom, right, with zeros after normalising) to multiples of this.
    """

    short_edge_px: int = 800
    long_edge_px: int = 1333
    kernel: ResizeKernel = ResizeKernel.FLOAT_BILINEAR
    rounding: ResizeRounding = ResizeRounding.HALF_UP
    channel_order: ChannelOrder = ChannelOrder.RGB
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisor: int = 32

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.short_edge_px > 0, "picture.short_edge_px", self.short_edge_px, "> 0")
        _require(
            self.long_edge_px >= self.short_edge_px,
            "picture.long_edge_px",
            self.long_edge_px,
            ">= short_edge_px",
        )
        _require(min(self.std) > 0, "picture.std", self.std, "> 0 in each channel")
        _require(self.size_divisor > 0, "picture.size_divisor", self.size_divisor, "> 0")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A ResNet and what of it is trained.

    Attributes:
        depth: number of layers: 18, 34, 50 or 101.
        stem_channels: width of the stem; 64 in every published network, less for small experiments.
        stride_in: place of the stride in a bottleneck (depth 50 and more).
        norm: kind of normalisation.
        norm_eps: epsilon of the normalisation. torchvision's COCO weights were evaluated with 0.
        frozen_stages: 0 trains all; 1 freezes the stem, 2 the stem and the first stage, and so on up to 5.
    """

    depth: int = 50
    stem_channels: int = 64
    stride_in: StrideIn = StrideIn.CONV_3X3
    norm: Norm = Norm.FROZEN
    norm_eps: float = 1e-5
    frozen_stages: int = 2

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.depth in (18, 34, 50, 101), "backbone.depth", self.depth, "one of 18, 34, 50, 101")
        _require(self.stem_channels > 0, "backbone.stem_channels", self.stem_channels, "> 0")
        _require(self.norm_eps >= 0, "backbone.norm_eps", self.norm_eps, ">= 0")
        _require(0 <= self.frozen_stages <= 5, "backbone.frozen_stages", self.frozen_stages, "in 0..5")


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """One anchor size a pyramid level, several aspect ratios.

    Attributes:
        sizes_px: square root of the anchor area on each level, finest level first; one value a level.
        ratios: height / width of the anchors of a cell.
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
        _require(
            bool(self.sizes_px) and min(self.sizes_px) > 0,
            "anchors.sizes_px",
            self.sizes_px,
            "one size > 0 a level",
        )
        _require(bool(self.ratios) and min(self.ratios) > 0, "anchors.ratios", self.ratios, "ratios > 0")


@dataclasses.dataclass(frozen=True)
class RpnConfig:
    """Region proposal network: assignment, losses and the choice of proposals.

    Attributes:
        positive_iou: anchors with at least this overlap are positive.
        negative_iou: anchors below this overlap are negative; between the two they are left out.
        min_best_iou: an object's best anchors are positive from this overlap on, however small it is.
        reassign_best: an object's best anchor is trained towards that object (MMDetection) rather than towards
            the anchor's own best object (torchvision, Detectron2).
        samples: anchors an image in the loss.
        positive_share: upper share of positives among them.
        smooth_l1_beta: beta of the box loss in deltas; 0 is L1.
        pre_nms_train: proposals kept a level before NMS, in training.
        pre_nms_test: the same at test time.
        post_nms_train: proposals kept an image after NMS, in training.
        post_nms_test: the same at test time.
        nms_iou: NMS suppresses above this overlap.
        min_size_px: proposals with a smaller side are dropped.
    """

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    min_best_iou: float = 0.0
    reassign_best: bool = False
    samples: int = 256
    positive_share: float = 0.5
    smooth_l1_beta: float = 0.0
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 1000
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    min_size_px: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(0 <= self.negative_iou <= self.positive_iou <= 1, "rpn.negative_iou", self.negative_iou,
                 f"in 0..positive_iou ({self.positive_iou})")  # fmt: skip
        for name in ("positive_share", "min_best_iou", "nms_iou"):
            _require(0 <= getattr(self, name) <= 1, f"rpn.{name}", getattr(self, name), "in 0..1")
        for name in ("smooth_l1_beta", "min_size_px"):
            _require(getattr(self, name) >= 0, f"rpn.{name}", getattr(self, name), ">= 0")
        for name in ("samples", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            _require(getattr(self, name) > 0, f"rpn.{name}", getattr(self, name), "> 0")


@dataclasses.dataclass(frozen=True)
class PoolerConfig:
    """RoIAlign over the pyramid.

    Attributes:
        box_size: output side for the box head.
        mask_size: output side for the mask head; the mask has twice this side.
        sampling_ratio: samples a bin and axis; 0 takes as many as the bin has pixels, rounded up.
        aligned: half-pixel shift (Mask R-CNN as re-issued in Detectron2).
        level_rule: where the epsilon stands in the choice of the level.
    """

    box_size: int = 7
    mask_size: int = 14
    sampling_ratio: int = 0
    aligned: bool = True
    level_rule: LevelRule = LevelRule.DETECTRON2

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.box_size > 0, "pooler.box_size", self.box_size, "> 0")
        _require(self.mask_size > 0, "pooler.mask_size", self.mask_size, "> 0")
        _require(self.sampling_ratio >= 0, "pooler.sampling_ratio", self.sampling_ratio, ">= 0")


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
    """Two fully connected layers, then class scores and class-specific box deltas.

    Attributes:
        channels: width of the two hidden layers.
        positive_iou: proposals with at least this overlap are positive, all others background.
        samples: proposals an image in the loss.
        positive_share: upper share of positives among them; also fixes how many RoIs the mask head is trained on.
        smooth_l1_beta: beta of the box loss in deltas; 0 is L1.
        delta_weights: factors of (dx, dy, dw, dh).
        score_threshold: detections below are dropped at test time.
        nms_iou: class-wise NMS suppresses above this overlap.
        max_detections: detections kept an image.
        min_size_px: detections with a smaller side are dropped.
    """

    channels: int = 1024
    positive_iou: float = 0.5
    samples: int = 512
    positive_share: float = 0.25
    smooth_l1_beta: float = 0.0
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    min_size_px: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("channels", "samples", "max_detections"):
            _require(getattr(self, name) > 0, f"box.{name}", getattr(self, name), "> 0")
        for name in ("positive_iou", "positive_share", "score_threshold", "nms_iou"):
            _require(0 <= getattr(self, name) <= 1, f"box.{name}", getattr(self, name), "in 0..1")
        for name in ("smooth_l1_beta", "min_size_px"):
            _require(getattr(self, name) >= 0, f"box.{name}", getattr(self, name), ">= 0")
        _require(min(self.delta_weights) > 0, "box.delta_weights", self.delta_weights, "four factors > 0")


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
    """A small fully convolutional network on each RoI (Mask R-CNN, figure 4 right).

    Attributes:
        channels: width of the convolutions.
        num_convs: number of 3 x 3 convolutions before the upsampling.
        target: how ground-truth masks become targets.
        paste: how mask probabilities become pixels.
        threshold: probability from which a pixel belongs to the object.
    """

    channels: int = 256
    num_convs: int = 4
    target: MaskTarget = MaskTarget.BINARY
    paste: PasteRule = PasteRule.GRID_SAMPLE
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.channels > 0, "mask.channels", self.channels, "> 0")
        _require(self.num_convs >= 0, "mask.num_convs", self.num_convs, ">= 0")
        _require(0 < self.threshold < 1, "mask.threshold", self.threshold, "between 0 and 1")


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """A whole Mask R-CNN.

    Attributes:
        num_classes: foreground classes; background is one more, and last.
        fpn_channels: width of the feature pyramid.
        picture: from decoded picture to network input.
        backbone: the ResNet.
        anchors: the anchor boxes.
        rpn: the region proposal network.
        pooler: RoIAlign.
        box: the box head.
        mask: the mask head.
    """

    num_classes: int = 80
    fpn_channels: int = 256
    picture: PictureConfig = PictureConfig()
    backbone: BackboneConfig = BackboneConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RpnConfig = RpnConfig()
    pooler: PoolerConfig = PoolerConfig()
    box: BoxHeadConfig = BoxHeadConfig()
    mask: MaskHeadConfig = MaskHeadConfig()

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.num_classes > 0, "num_classes", self.num_classes, "> 0")
        _require(self.fpn_channels > 0, "fpn_channels", self.fpn_channels, "> 0")
        _require(len(self.anchors.sizes_px) == 5, "anchors.sizes_px", self.anchors.sizes_px,
                 "five sizes, one for each of the levels P2..P6")  # fmt: skip

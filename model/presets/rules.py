"""The rules of each framework, every one on its Mask R-CNN with a ResNet-50 pyramid and COCO's classes.

What follows from a framework's code stands here, once; `backbones` and `heads` change the architecture only. All is
fixed by the published configurations (MMDetection 3.3.0, Detectron2 at 02b5c4e, torchvision 0.29, Detectron).
"""

from model.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    ChannelOrder,
    DetectorConfig,
    KeypointHeadConfig,
    KeypointScore,
    LevelRule,
    LossDivisor,
    MaskHeadConfig,
    MaskTarget,
    Norm,
    PasteRule,
    PictureConfig,
    PoolerConfig,
    ResizeKernel,
    ResizeRounding,
    RpnConfig,
    StrideIn,
)

# Blue, green, red. With the original MSRA weights the deviation is part of the first convolution.
BGR_MEAN = (103.53, 116.28, 123.675)
MSRA_STD = (1.0, 1.0, 1.0)
DETECTRON_MEAN = (102.9801, 115.9465, 122.7717)


def torchvision() -> DetectorConfig:
    """The version 1 models of torchvision; classes are the 90 slots of raw COCO ids.

    The published COCO_V1 weights were evaluated with a norm epsilon of 0: set ``backbone.norm_eps=0`` for them.
    """
    return DetectorConfig(
        num_classes=90,
        picture=PictureConfig(rounding=ResizeRounding.FLOOR),
        backbone=BackboneConfig(stride_in=StrideIn.CONV_3X3, norm=Norm.FROZEN, frozen_stages=2),
        anchors=AnchorConfig(rounded=True, fitted=True),
        rpn=RpnConfig(smooth_l1_beta=1 / 9, post_nms_train=2000, min_size_px=1e-3),
        pooler=PoolerConfig(sampling_ratio=2, aligned=False, level_rule=LevelRule.TORCHVISION),
        box=BoxHeadConfig(smooth_l1_beta=1 / 9, min_size_px=1e-2),
        mask=MaskHeadConfig(target=MaskTarget.SOFT, paste=PasteRule.PADDED_RESIZE),
        keypoint=KeypointHeadConfig(score=KeypointScore.LOGIT),
    )


def detectron2() -> DetectorConfig:
    """Detectron2's defaults."""
    return DetectorConfig(
        picture=PictureConfig(
            kernel=ResizeKernel.PIL_BILINEAR, channel_order=ChannelOrder.BGR, mean=BGR_MEAN, std=MSRA_STD
        ),
        backbone=BackboneConfig(stride_in=StrideIn.FIRST_1X1, norm=Norm.FROZEN, frozen_stages=2),
        rpn=RpnConfig(divisor=LossDivisor.CONFIGURED),
        pooler=PoolerConfig(level_rule=LevelRule.DETECTRON2),
    )


def mmdetection() -> DetectorConfig:
    """MMDetection 2 and 3, "pytorch" style: torchvision's backbone weights, whose norms' affine goes on learning."""
    return DetectorConfig(
        picture=PictureConfig(kernel=ResizeKernel.CV2_BILINEAR),
        backbone=BackboneConfig(stride_in=StrideIn.CONV_3X3, norm=Norm.FIXED, frozen_stages=2),
        rpn=RpnConfig(min_best_iou=0.3, reassign_best=True, own_padding_only=True, limit_shrink=True),
        pooler=PoolerConfig(level_rule=LevelRule.MMDETECTION),
        box=BoxHeadConfig(reassign_best=True, limit_shrink=True),
    )


def mmdetection_caffe() -> DetectorConfig:
    """MMDetection, "caffe" style: the original MSRA weights, whose norms are constants."""
    base = mmdetection()
    return DetectorConfig(
        picture=PictureConfig(
            kernel=ResizeKernel.CV2_BILINEAR, channel_order=ChannelOrder.BGR, mean=BGR_MEAN, std=MSRA_STD
        ),
        backbone=BackboneConfig(stride_in=StrideIn.FIRST_1X1, norm=Norm.FROZEN, frozen_stages=2),
        rpn=base.rpn,
        pooler=base.pooler,
        box=base.box,
    )


def detectron() -> DetectorConfig:
    """Detectron (Caffe2), the paper's own code after its publication.

    Three things of it are not copied, each a known defect: widths of x2 - x1 + 1, anchors centred on
    (stride - 1) / 2, and 2,000 training proposals a batch instead of a picture.
    """
    return DetectorConfig(
        picture=PictureConfig(
            kernel=ResizeKernel.CV2_BILINEAR, channel_order=ChannelOrder.BGR, mean=DETECTRON_MEAN, std=MSRA_STD
        ),
        backbone=BackboneConfig(stride_in=StrideIn.FIRST_1X1, norm=Norm.FROZEN, frozen_stages=2),
        anchors=AnchorConfig(rounded=True),
        rpn=RpnConfig(smooth_l1_beta=1 / 9, border_px=0, post_nms_train=2000),
        pooler=PoolerConfig(sampling_ratio=2, aligned=False),
        box=BoxHeadConfig(smooth_l1_beta=1.0),
        mask=MaskHeadConfig(paste=PasteRule.PADDED_RESIZE),
    )

"""Named detectors. A variant is a function that changes a few fields of another."""

import dataclasses
from collections.abc import Callable

from model.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    DetectorConfig,
    LevelRule,
    MaskHeadConfig,
    MaskTarget,
    Norm,
    PasteRule,
    PictureConfig,
    PoolerConfig,
    ResizeRounding,
    RpnConfig,
    StrideIn,
)


def mask_rcnn_r50_fpn() -> DetectorConfig:
    """Mask R-CNN with a ResNet-50 pyramid after the paper: the defaults of every part."""
    return DetectorConfig()


def _with_depth(depth: int) -> DetectorConfig:
    config = mask_rcnn_r50_fpn()
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, depth=depth))


def mask_rcnn_r18_fpn() -> DetectorConfig:
    """The same with a ResNet-18."""
    return _with_depth(18)


def mask_rcnn_r34_fpn() -> DetectorConfig:
    """The same with a ResNet-34."""
    return _with_depth(34)


def mask_rcnn_r101_fpn() -> DetectorConfig:
    """The same with a ResNet-101."""
    return _with_depth(101)


def torchvision_mask_rcnn_r50_fpn() -> DetectorConfig:
    """The maskrcnn_resnet50_fpn of torchvision with all its rules; reads its weights with the same outputs.

    The published COCO_V1 weights carry 90 foreground slots (raw COCO ids) and were evaluated with a norm epsilon
    of 0: set ``backbone.norm_eps=0`` for them.
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
    )


def small_mask_rcnn_r18_fpn() -> DetectorConfig:
    """A narrow detector for pictures of about 128 px that trains from scratch in minutes on two CPU cores."""
    return DetectorConfig(
        num_classes=4,
        fpn_channels=64,
        picture=PictureConfig(short_edge_px=128, long_edge_px=192),
        backbone=BackboneConfig(depth=18, stem_channels=32, norm=Norm.BATCH, frozen_stages=0),
        anchors=AnchorConfig(sizes_px=(16.0, 32.0, 64.0, 96.0, 128.0)),
        rpn=RpnConfig(samples=128, pre_nms_train=300, pre_nms_test=200, post_nms_train=200, post_nms_test=100),
        pooler=PoolerConfig(sampling_ratio=2),
        box=BoxHeadConfig(channels=256, samples=64, max_detections=50),
        mask=MaskHeadConfig(channels=64, num_convs=2),
    )


DETECTORS: dict[str, Callable[[], DetectorConfig]] = {
    "mask_rcnn_r18_fpn": mask_rcnn_r18_fpn,
    "mask_rcnn_r34_fpn": mask_rcnn_r34_fpn,
    "mask_rcnn_r50_fpn": mask_rcnn_r50_fpn,
    "mask_rcnn_r101_fpn": mask_rcnn_r101_fpn,
    "torchvision_mask_rcnn_r50_fpn": torchvision_mask_rcnn_r50_fpn,
    "small_mask_rcnn_r18_fpn": small_mask_rcnn_r18_fpn,
}

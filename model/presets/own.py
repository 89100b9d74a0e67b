"""maskray's own detectors."""

from model.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    DetectorConfig,
    MaskHeadConfig,
    Norm,
    PictureConfig,
    PoolerConfig,
    RpnConfig,
)
from model.presets.backbones import resnet


def mask_rcnn_r50_fpn() -> DetectorConfig:
    """Mask R-CNN with a ResNet-50 pyramid after the paper: the defaults of every part."""
    return DetectorConfig()


def mask_rcnn_r18_fpn_from_scratch() -> DetectorConfig:
    """With a ResNet-18, nothing frozen: it can start from random weights."""
    return _trained_whole(18)


def mask_rcnn_r34_fpn_from_scratch() -> DetectorConfig:
    """With a ResNet-34, nothing frozen."""
    return _trained_whole(34)


def _trained_whole(depth: int) -> DetectorConfig:
    return DetectorConfig(backbone=BackboneConfig(depth=depth, norm=Norm.BATCH, frozen_stages=0))


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


OWN = {
    "small_mask_rcnn_r18_fpn": small_mask_rcnn_r18_fpn,
    "mask_rcnn_r18_fpn": lambda: resnet(mask_rcnn_r50_fpn(), 18),
    "mask_rcnn_r34_fpn": lambda: resnet(mask_rcnn_r50_fpn(), 34),
    "mask_rcnn_r50_fpn": mask_rcnn_r50_fpn,
    "mask_rcnn_r101_fpn": lambda: resnet(mask_rcnn_r50_fpn(), 101),
    "mask_rcnn_r18_fpn_from_scratch": mask_rcnn_r18_fpn_from_scratch,
    "mask_rcnn_r34_fpn_from_scratch": mask_rcnn_r34_fpn_from_scratch,
}

"""torchvision's detectors, read with the same outputs; classes are the 90 slots of raw COCO ids."""

from dataclasses import replace

from model.config import DetectorConfig, Norm
from model.presets.heads import with_keypoints, with_norm, without_masks
from model.presets.rules import torchvision


def torchvision_mask_rcnn_r50_fpn() -> DetectorConfig:
    """The maskrcnn_resnet50_fpn of torchvision with all its rules; reads its weights with the same outputs.

    The published COCO_V1 weights were evaluated with a norm epsilon of 0: set ``backbone.norm_eps=0`` for them.
    """
    return torchvision()


def torchvision_mask_rcnn_r50_fpn_v2() -> DetectorConfig:
    """maskrcnn_resnet50_fpn_v2: norms over all training workers, two RPN convolutions, a box head of four.

    The statistics of the frozen stages move all the same, as they do there.
    """
    config = with_norm(torchvision(), Norm.SYNC)
    return replace(
        config, backbone=replace(config.backbone, frozen_statistics=False), rpn=replace(config.rpn, num_convs=2)
    )


def torchvision_keypoint_rcnn_r50_fpn() -> DetectorConfig:
    """keypointrcnn_resnet50_fpn: persons with 17 keypoints."""
    return without_masks(with_keypoints(torchvision()))


TORCHVISION = {
    "torchvision_mask_rcnn_r50_fpn": torchvision_mask_rcnn_r50_fpn,
    "torchvision_mask_rcnn_r50_fpn_v2": torchvision_mask_rcnn_r50_fpn_v2,
    "torchvision_keypoint_rcnn_r50_fpn": torchvision_keypoint_rcnn_r50_fpn,
}

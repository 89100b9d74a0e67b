"""From configuration to modules: the tree of the detector at a glance."""

from collections.abc import Callable

import torch
from torch import nn

from model.anchors import anchors_per_cell
from model.backbones.fpn import FeaturePyramid
from model.backbones.resnet import ResNet, build_stage, stage_channels
from model.backbones.single import SingleMap
from model.backbones.timm import TimmBackbone
from model.config import BackboneKind, DetectorConfig, FeatureKind, RoIKind, require_fit
from model.detector import Detector, RoIStage
from model.heads.box import BoxHead
from model.heads.keypoint import KeypointHead
from model.heads.mask import MaskHead, build_mask_head
from model.heads.semantic import SemanticHead
from model.pooler import PyramidPooler
from model.roi.cascade import CascadeRoI
from model.roi.htc import HybridTaskCascade
from model.roi.stages import BoxStages
from model.roi.standard import StandardRoI
from model.rpn import RegionProposals, RpnHead

_STAGES = 3


def build_detector(config: DetectorConfig) -> Detector:
    """A detector with freshly initialised weights, in training mode, channels last in memory.

    Raises:
        ValueError: settings that do not fit together.
    """
    require_fit(config)
    features = _build_features(config)
    num_anchors = anchors_per_cell(config.anchors, len(features.strides))
    head = RpnHead(features.out_channels, num_anchors, config.rpn.num_convs)
    rpn = RegionProposals(head, config.anchors, features.strides, config.rpn, config.picture.size_divisor)
    roi = _ROI_STAGES[config.roi](config, features.out_channels, features.roi_strides)
    detector = Detector(config, features, rpn, roi, _build_features(config) if config.separate_rpn else None)
    # Only the convolutions gain from it, and they decide the layout of every feature map.
    for parameter in detector.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return detector


def _build_features(config: DetectorConfig) -> FeaturePyramid | SingleMap:
    if config.features is FeatureKind.C4:
        return SingleMap(ResNet(config.backbone, num_stages=3))
    if config.features is not FeatureKind.FPN:
        return SingleMap(ResNet(config.backbone, dilated=config.features is FeatureKind.DC5))
    is_timm = config.backbone.kind is BackboneKind.TIMM
    backbone = TimmBackbone(config.backbone.timm_name) if is_timm else ResNet(config.backbone)
    return FeaturePyramid(backbone, backbone.out_channels, config.fpn_channels, config.fpn_norm)


def _build_standard(config: DetectorConfig, channels: int, strides: tuple[int, ...]) -> RoIStage:
    res5, crop_size, mask_size = None, config.pooler.box_size, config.pooler.mask_size
    if config.features is FeatureKind.C4:
        res5 = build_stage(config.backbone, 3, config.res5_stride)
        channels = stage_channels(config.backbone, 3)
        crop_size = mask_size = -(-config.pooler.box_size // config.res5_stride)
    mask, keypoint = config.mask, config.keypoint
    return StandardRoI(
        PyramidPooler(config.pooler, strides),
        BoxHead(channels, crop_size, config.num_classes, config.box),
        config.box,
        mask_head=build_mask_head(channels, mask_size, config.num_classes, mask) if mask.enabled else None,
        mask_config=mask,
        keypoint_head=KeypointHead(channels, keypoint) if keypoint.enabled else None,
        res5=res5,
    )


def _box_heads(config: DetectorConfig, channels: int) -> nn.ModuleList:
    size = config.pooler.box_size
    return nn.ModuleList(BoxHead(channels, size, config.num_classes, config.box) for _ in range(_STAGES))


def _build_cascade(config: DetectorConfig, channels: int, strides: tuple[int, ...]) -> RoIStage:
    count = 0 if not config.mask.enabled else _STAGES if config.cascade.mask_each_stage else 1
    size = config.pooler.mask_size
    masks = nn.ModuleList(build_mask_head(channels, size, config.num_classes, config.mask) for _ in range(count))
    return CascadeRoI(
        PyramidPooler(config.pooler, strides),
        _box_heads(config, channels),
        masks,
        BoxStages(config.num_classes, config.box, config.cascade),
        config.mask,
    )


def _build_htc(config: DetectorConfig, channels: int, strides: tuple[int, ...]) -> RoIStage:
    levels = (*strides, 2 * strides[-1])
    masks = [MaskHead(channels, config.num_classes, config.mask, takes_flow=stage > 0) for stage in range(_STAGES)]
    return HybridTaskCascade(
        PyramidPooler(config.pooler, strides),
        PyramidPooler(config.pooler, levels[config.semantic.fusion_level :][:1]),
        _box_heads(config, channels),
        nn.ModuleList(masks),
        SemanticHead(channels, len(levels), config.semantic) if config.semantic.enabled else None,
        BoxStages(config.num_classes, config.box, config.cascade),
        config.mask,
    )


_ROI_STAGES: dict[RoIKind, Callable[[DetectorConfig, int, tuple[int, ...]], RoIStage]] = {
    RoIKind.STANDARD: _build_standard,
    RoIKind.CASCADE: _build_cascade,
    RoIKind.HTC: _build_htc,
}

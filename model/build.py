"""From configuration to modules: the tree of the detector at a glance."""

import torch

from model.backbones.fpn import FeaturePyramid
from model.backbones.resnet import ResNet
from model.config import DetectorConfig, require_fit
from model.detector import Detector
from model.heads.box import BoxHead
from model.heads.mask import MaskHead
from model.pooler import PyramidPooler
from model.roi.standard import StandardRoI
from model.rpn import RegionProposals, RpnHead


def build_detector(config: DetectorConfig) -> Detector:
    """A detector with freshly initialised weights, in training mode, channels last in memory.

    Raises:
        ValueError: settings that do not fit together.
    """
    require_fit(config)
    backbone = ResNet(config.backbone)
    pyramid = FeaturePyramid(backbone, backbone.out_channels, config.fpn_channels)
    rpn = RegionProposals(
        RpnHead(config.fpn_channels, len(config.anchors.ratios)), config.anchors, pyramid.strides, config.rpn
    )
    roi = StandardRoI(
        PyramidPooler(config.pooler, backbone.strides),
        BoxHead(config.fpn_channels, config.pooler.box_size, config.num_classes, config.box),
        MaskHead(config.fpn_channels, config.num_classes, config.mask),
        config.box,
        config.mask,
    )
    detector = Detector(config, pyramid, rpn, roi)
    # Only the convolutions gain from it, and they decide the layout of every feature map.
    for parameter in detector.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return detector

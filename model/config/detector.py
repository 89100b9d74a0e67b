"""The whole detector's configuration."""

import dataclasses

from model.config.backbone import BackboneConfig, PictureConfig
from model.config.check import require
from model.config.heads import BoxHeadConfig, CascadeConfig, KeypointHeadConfig, MaskHeadConfig, SemanticHeadConfig
from model.config.rpn import AnchorConfig, PoolerConfig, RpnConfig
from model.config.switches import FeatureKind, Norm, RoIKind


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """A whole Mask R-CNN.

    Attributes:
        num_classes: foreground classes; background is one more, and last.
        features: the feature maps the region proposal network and the heads look at.
        fpn_channels: width of the feature pyramid.
        fpn_norm: normalisation of the pyramid's convolutions.
        res5_stride: stride of the fifth stage where it is the heads' own (C4); the paper takes 1 on a 7 x 7 crop.
        roi: the second stage.
        separate_rpn: the region proposal network has feature maps of its own, and neither is trained: both come from
            another detector (the paper's stage-wise training; features are not shared).
        picture: from decoded picture to network input.
        backbone: the backbone.
        anchors: the anchor boxes.
        rpn: the region proposal network.
        pooler: from boxes to crops.
        box: the box head; each of the three in a cascade.
        cascade: what a cascade adds.
        mask: the mask head.
        keypoint: the keypoint head.
        semantic: the semantic branch of HTC.
    """

    num_classes: int = 80
    features: FeatureKind = FeatureKind.FPN
    fpn_channels: int = 256
    fpn_norm: Norm = Norm.NONE
    res5_stride: int = 2
    roi: RoIKind = RoIKind.STANDARD
    separate_rpn: bool = False
    picture: PictureConfig = PictureConfig()
    backbone: BackboneConfig = BackboneConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RpnConfig = RpnConfig()
    pooler: PoolerConfig = PoolerConfig()
    box: BoxHeadConfig = BoxHeadConfig()
    cascade: CascadeConfig = CascadeConfig()
    mask: MaskHeadConfig = MaskHeadConfig()
    keypoint: KeypointHeadConfig = KeypointHeadConfig()
    semantic: SemanticHeadConfig = SemanticHeadConfig()

    def __post_init__(self) -> None:
        """Check ranges; `model.config.fit` checks the whole when a detector is built, since fields change singly."""
        require(self.num_classes > 0, "num_classes", self.num_classes, "> 0")
        require(self.fpn_channels > 0, "fpn_channels", self.fpn_channels, "> 0")
        require(self.res5_stride in (1, 2), "res5_stride", self.res5_stride, "1 or 2")

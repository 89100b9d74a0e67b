"""Changes of the backbone: each takes a detector and returns it with another one."""

from dataclasses import replace

from model.config import ChannelOrder, DetectorConfig, Norm, StrideIn
from model.presets.rules import BGR_MEAN

# Of ImageNet's channels in the order blue, green, red: what Detectron2's ResNeXt weights were trained with.
RESNEXT_32X8D_STD = (57.375, 57.12, 58.395)


def resnet(config: DetectorConfig, depth: int) -> DetectorConfig:
    """A ResNet of 18, 34, 50, 101 or 152 layers."""
    return replace(config, backbone=replace(config.backbone, depth=depth))


def resnext(config: DetectorConfig, groups: int, group_width: int, depth: int = 101) -> DetectorConfig:
    """A ResNeXt: 32 x 4d, 64 x 4d."""
    backbone = replace(
        config.backbone, depth=depth, groups=groups, group_width=group_width, stride_in=StrideIn.CONV_3X3
    )
    return replace(config, backbone=backbone)


def resnext_32x8d(config: DetectorConfig) -> DetectorConfig:
    """ResNeXt-101 32 x 8d with its own normalisation of pictures; its norms are constants in every framework."""
    changed = resnext(config, groups=32, group_width=8)
    picture = replace(config.picture, channel_order=ChannelOrder.BGR, mean=BGR_MEAN, std=RESNEXT_32X8D_STD)
    return replace(changed, picture=picture, backbone=replace(changed.backbone, norm=Norm.FROZEN))


def deformable(config: DetectorConfig, modulated: bool = False) -> DetectorConfig:
    """Deformable 3 x 3 convolutions in stages three to five ("c3-c5"); `modulated` is version 2."""
    return replace(config, backbone=replace(config.backbone, deformable_stages=(3, 4, 5), modulated=modulated))


def from_scratch(config: DetectorConfig) -> DetectorConfig:
    """Nothing frozen: for runs that start from random weights."""
    return replace(config, backbone=replace(config.backbone, frozen_stages=0))

"""The feature pyramid against torchvision's, live, also on sides that are no multiple of 32."""

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.backbones.fpn import FeaturePyramid
from model.backbones.resnet import ResNet
from model.config import BackboneConfig, Norm

WIDTHS = (4, 6, 8, 10)


class GivenMaps(nn.Module):
    """A backbone that returns maps of the sizes a ResNet would make of the picture."""

    def forward(self, pixels):
        height, width = pixels.shape[-2:]
        generator = torch.Generator().manual_seed(0)
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
        return [torch.randn(2, c, *size, generator=generator) for c, size in zip(WIDTHS, sizes, strict=True)]


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (128, 40)], ids=str)
def test_levels_equal_torchvision_s_with_the_same_weights(size):
    torch.manual_seed(0)
    ours = FeaturePyramid(GivenMaps(), WIDTHS, 12)
    peer = FeaturePyramidNetwork(list(WIDTHS), 12, LastLevelMaxPool())
    for mine, theirs in zip([*ours.lateral, *ours.output], [*peer.inner_blocks, *peer.layer_blocks], strict=True):
        nn.init.normal_(mine.bias)
        theirs[0].load_state_dict(mine.state_dict())
    pixels = torch.zeros(2, 3, *size)
    wanted = peer({str(i): map_ for i, map_ in enumerate(GivenMaps()(pixels))})
    levels = ours(pixels)
    assert len(levels) == len(ours.strides) == 5
    for level, theirs in zip(levels, wanted.values(), strict=True):
        torch.testing.assert_close(level, theirs)


def test_levels_have_one_width_and_the_stated_strides():
    backbone = ResNet(BackboneConfig(depth=18, stem_channels=8, norm=Norm.BATCH, frozen_stages=0))
    pyramid = FeaturePyramid(backbone, backbone.out_channels, 12)
    levels = pyramid(torch.zeros(2, 3, 128, 192))
    assert pyramid.out_channels == 12
    for level, stride in zip(levels, pyramid.strides, strict=True):
        assert level.shape == (2, 12, 128 // stride, 192 // stride)


@pytest.mark.parametrize("norm", [Norm.BATCH, Norm.GROUP])
def test_a_normalised_pyramid_equals_torchvision_s(norm):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d if norm is Norm.BATCH else lambda width: nn.GroupNorm(12, width)
    ours = FeaturePyramid(GivenMaps(), WIDTHS, 12, norm)
    peer = FeaturePyramidNetwork(list(WIDTHS), 12, LastLevelMaxPool(), norm_layer=layer)
    for mine, theirs in zip([*ours.lateral, *ours.output], [*peer.inner_blocks, *peer.layer_blocks], strict=True):
        assert mine.bias is None
        theirs[0].load_state_dict({"weight": mine.weight})
        theirs[1].load_state_dict(mine.norm.state_dict())
    pixels = torch.zeros(2, 3, 64, 96)
    wanted = peer({str(i): map_ for i, map_ in enumerate(GivenMaps()(pixels))})
    for level, theirs in zip(ours(pixels), wanted.values(), strict=True):
        torch.testing.assert_close(level, theirs)


def test_widths_and_maps_must_be_as_many():
    pyramid = FeaturePyramid(GivenMaps(), WIDTHS[:3], 12)
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
        pyramid(torch.zeros(2, 3, 64, 64))

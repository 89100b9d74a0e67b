"""Networks of timm as backbones; what timm itself does is its own affair."""

import builtins

import pytest
import torch

from model.backbones.fpn import FeaturePyramid
from model.backbones.timm import TimmBackbone

# The smallest of a convolutional network and of a transformer whose maps are channels last.
NETWORKS = ["convnext_atto", "swin_tiny_patch4_window7_224", "resnet10t"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 96), (96, 384)], ids=str)
def test_maps_have_the_stated_channels_and_strides(name, size):
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    torch.manual_seed(0)
    net = TimmBackbone(name).eval()
    with torch.no_grad():
        maps = net(torch.randn(2, 3, *size))
        levels = FeaturePyramid(net, net.out_channels, 8)(torch.randn(1, 3, *size))
    assert net.strides == (4, 8, 16, 32)
    for map_, channels, stride in zip(maps, net.out_channels, net.strides, strict=True):
        assert map_.shape == (2, channels, size[0] // stride, size[1] // stride)
    assert [level.shape[-1] for level in levels] == [-(-size[1] // stride) for stride in (4, 8, 16, 32, 64)]


def test_a_map_as_wide_as_it_has_channels_is_turned_too():
    timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
    torch.manual_seed(0)
    net = TimmBackbone("swin_tiny_patch4_window7_224").eval()
    assert net.out_channels[0] == 96
    pixels = torch.randn(1, 3, 384, 384)  # 96 cells a side
    with torch.no_grad():
        wide = net(pixels)[0]
        raw = net.network(pixels)[0]
    assert timm.__version__
    assert torch.equal(wide, raw.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        pytest.param("convnxt", "timm has no network 'convnxt': choose another backbone.timm_name", id="none"),
        pytest.param("convnext_none", "for example .*convnext", id="similar"),
        pytest.param("vit_tiny_patch16_224", r"vit_tiny_patch16_224 has maps at strides .*, wanted 4, 8, 16 and",
                     id="one-stride"),
    ],
)  # fmt: skip
def test_networks_that_cannot_serve_are_refused(name, match):
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    with pytest.raises(ValueError, match=match) as error:
        TimmBackbone(name)
    assert "\n" not in str(error.value)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_timm(name, *given):
        if name == "timm":
            raise ImportError(name)
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ImportError, match=r"convnext_atto\) needs the timm library: pip install 'maskray\[timm\]'"):
        TimmBackbone("convnext_atto")

"""The backbone: shapes, freezing, the place of the stride, and torchvision's ResNet with the same weights, live."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50, resnet152
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.ops import FrozenBatchNorm2d

from model.backbones.resnet import ResNet, build_stage
from model.backbones.single import SingleMap
from model.config import BackboneConfig, Norm, StrideIn
from model.norms import FixedBatchNorm, FrozenBatchNorm, MaskedBatchNorm

DEPTHS = (18, 34, 50, 101, 152)


def small(**changes):
    """A narrow network in which everything is trained, unless told otherwise."""
    return BackboneConfig(**{"depth": 18, "stem_channels": 8, "norm": Norm.BATCH, "frozen_stages": 0, **changes})


def pictures(height=32, width=64, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("size", [(32, 64), (70, 33)], ids=str)
def test_maps_have_the_stated_channels_and_strides(depth, size):
    net = ResNet(small(depth=depth)).eval()
    maps = net(pictures(*size))
    assert net.strides == (4, 8, 16, 32)
    assert net.out_channels == tuple(8 * 2**i * (4 if depth >= 50 else 1) for i in range(4))
    for map_, channels, stride in zip(maps, net.out_channels, net.strides, strict=True):
        assert map_.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_layers(depth):
    with torch.device("meta"):
        net = ResNet(BackboneConfig(depth=depth))
    convs = [module for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and "shortcut" not in name]
    assert len(convs) + 1 == depth  # the classifier is the one more


def random_statistics(net):
    """Norms of a trained network: no factor 1, no mean 0."""
    generator = torch.Generator().manual_seed(5)
    for name, value in net.state_dict().items():
        if "running_var" in name or (value.ndim == 1 and "weight" in name):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim == 1:
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return net


PEERS = {
    "18": ({"depth": 18}, resnet18),
    "50": ({"depth": 50}, resnet50),
    "152": ({"depth": 152}, resnet152),
    "50-32x4d": (
        {"depth": 50, "groups": 32, "group_width": 4},
        lambda **given: resnet50(groups=32, width_per_group=4, **given),
    ),
    # torchvision has 64 channels in the stem; eight groups of three make widths that are no powers of two.
    "50-8x3d": (
        {"depth": 50, "groups": 8, "group_width": 3},
        lambda **given: TorchvisionResNet(Bottleneck, [3, 4, 6, 3], groups=8, width_per_group=3, **given),
    ),
}


def copied(net, peer):
    """`net` with the weights of torchvision's `peer`, without its classifier."""
    # Both list a block's layers in the order they run, so the n-th tensor of one is the n-th of the other.
    theirs = {name: value for name, value in peer.state_dict().items() if not name.startswith("fc.")}
    net.load_state_dict(dict(zip(net.state_dict(), theirs.values(), strict=True)), assign=True)
    return net


def assert_same_maps(found, peer, x):
    """`found` are the maps of torchvision's `peer`, from C2 on."""
    getter = IntermediateLayerGetter(peer, {f"layer{i}": str(i) for i in range(1, 5)})
    for ours, wanted in zip(found, getter(x).values(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def peer_of(make, layer=FrozenBatchNorm2d):
    torch.manual_seed(0)
    return random_statistics(make(norm_layer=layer)).eval()


@pytest.mark.parametrize("norm", [Norm.BATCH, Norm.FROZEN])
@pytest.mark.parametrize(("settings", "make"), PEERS.values(), ids=PEERS)
def test_features_equal_torchvision_s_with_the_same_weights(settings, make, norm):
    peer = peer_of(make, nn.BatchNorm2d if norm is Norm.BATCH else FrozenBatchNorm2d)
    with torch.device("meta"):
        net = ResNet(BackboneConfig(**settings, norm=norm, stride_in=StrideIn.CONV_3X3)).eval()
    with torch.no_grad():
        assert_same_maps(copied(net, peer)(pictures()), peer, pictures())


@pytest.mark.parametrize("size", [(64, 96), (49, 33)], ids=str)
def test_a_dilated_fifth_stage_equals_torchvision_s(size):
    # torchvision leaves the first block of a stage undilated, Detectron2 and we do not.
    peer = peer_of(lambda **given: resnet50(replace_stride_with_dilation=(False, False, True), **given))
    peer.layer4[0].conv2.dilation = peer.layer4[0].conv2.padding = (2, 2)
    net = copied(ResNet(BackboneConfig(), dilated=True), peer).eval()
    assert net.strides == (4, 8, 16, 16)
    with torch.no_grad():
        assert_same_maps(net(pictures(*size)), peer, pictures(*size))
        single = SingleMap(net)
        assert_same_maps([*net(pictures(*size))[:3], *single(pictures(*size))], peer, pictures(*size))
    assert (single.out_channels, single.strides, single.roi_strides) == (2048, (16,), (16,))


def test_the_fourth_and_fifth_stage_apart_equal_torchvision_s_whole():
    peer = peer_of(resnet50)
    whole = copied(ResNet(BackboneConfig()), peer)
    head = SingleMap(ResNet(BackboneConfig(), num_stages=3)).eval()
    head.backbone.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("stages.3.")})
    tail = build_stage(BackboneConfig(), 3, stride=2).eval()
    tail.load_state_dict(whole.stages[3].state_dict())
    assert (head.out_channels, head.strides, head.roi_strides) == (1024, (16,), (16,))
    with torch.no_grad():
        (c4,) = head(pictures())
        assert_same_maps([*head.backbone(pictures()), tail(c4)], peer, pictures())
        # With stride 1, on a crop of 7 x 7 as in the paper, the same weights look at every cell.
        paper = build_stage(BackboneConfig(), 3, stride=1).eval()
        paper.load_state_dict(whole.stages[3].state_dict())
        assert paper(c4).shape[-2:] == c4.shape[-2:]


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        pytest.param({}, (64, 128, 256, 512), id="resnet"),
        pytest.param({"groups": 32, "group_width": 4}, (128, 256, 512, 1024), id="32x4d"),
        pytest.param({"groups": 64, "group_width": 4}, (256, 512, 1024, 2048), id="64x4d"),
        pytest.param({"groups": 32, "group_width": 8}, (256, 512, 1024, 2048), id="32x8d"),
    ],
)
def test_widths_of_the_grouped_convolutions(settings, widths):
    with torch.device("meta"):
        net = ResNet(BackboneConfig(depth=101, **settings))
    for stage, width in zip(net.stages, widths, strict=True):
        for block in stage:
            assert block.conv2.weight.shape == (width, width // settings.get("groups", 1), 3, 3)
    assert net.out_channels == (256, 512, 1024, 2048)


def strided(net):
    """Names of the convolutions of stride 2."""
    return {name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}


@pytest.mark.parametrize(("place", "conv"), [(StrideIn.FIRST_1X1, 1), (StrideIn.CONV_3X3, 2)])
def test_the_stride_lies_in_the_first_block_of_stages_two_to_four(place, conv):
    net = ResNet(small(depth=50, stride_in=place))
    wanted = {"stem.conv"}
    for stage in (1, 2, 3):
        wanted |= {f"stages.{stage}.0.conv{conv}", f"stages.{stage}.0.shortcut.conv"}
    assert strided(net) == wanted
    assert [map_.shape[-2:] for map_ in net(pictures())] == [(8, 16), (4, 8), (2, 4), (1, 2)]


def test_basic_blocks_have_the_stride_in_their_first_convolution_wherever_it_is_asked_for():
    nets = [ResNet(small(stride_in=place)) for place in StrideIn]
    assert strided(nets[0]) == strided(nets[1])
    assert "stages.1.0.conv1" in strided(nets[0])


def parts(net):
    return [net.stem, *net.stages]


@pytest.mark.parametrize("frozen", range(6))
def test_freezing_keeps_parameters_and_running_statistics(frozen):
    torch.manual_seed(0)
    net = ResNet(small(frozen_stages=frozen)).train()
    assert [part.training for part in parts(net)] == [i >= frozen for i in range(5)]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts(net)]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    maps = net(pictures())
    if frozen < 5:
        sum(map_.square().mean() for map_ in maps if map_.requires_grad).backward()
    optimiser.step()
    for i, part in enumerate(parts(net)):
        unchanged = {name for name, value in part.state_dict().items() if torch.equal(value, before[i][name])}
        assert unchanged == (set(before[i]) if i < frozen else set()), i
    assert all(
        parameter.requires_grad == (i >= frozen) for i, p in enumerate(parts(net)) for parameter in p.parameters()
    )


def test_frozen_stages_stay_frozen_when_the_whole_is_set_to_train_and_back():
    whole = nn.Sequential(ResNet(small(frozen_stages=3)))
    for mode, wanted in [(True, [False] * 3 + [True] * 2), (False, [False] * 5), (True, [False] * 3 + [True] * 2)]:
        whole.train(mode)
        assert [part.training for part in parts(whole[0])] == wanted
        assert all(module.training == part.training for part in parts(whole[0]) for module in part.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_batch_norm_is_batch_norm_in_evaluation(dtype):
    frozen, live = FrozenBatchNorm(6, 1e-3), nn.BatchNorm2d(6, eps=1e-3).eval()
    random_statistics(frozen)
    live.load_state_dict(frozen.state_dict(), strict=False)
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(1))
    out = frozen.train()(x.to(dtype))
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(out.float(), live(x), rtol=tolerance, atol=tolerance)
    assert not list(frozen.parameters())


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (Norm.FROZEN, FrozenBatchNorm),
        (Norm.FIXED, FixedBatchNorm),
        (Norm.BATCH, MaskedBatchNorm),
        (Norm.SYNC, MaskedBatchNorm),
        (Norm.GROUP, nn.GroupNorm),
    ],
)
def test_every_convolution_is_followed_by_the_configured_norm(norm, kind):
    net = ResNet(small(norm=norm, norm_eps=3e-4))
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in net.modules() if type(module) is kind]
    assert len(norms) == len(convs) == 20
    assert {module.eps for module in norms} == {3e-4}
    assert all(module.sync == (norm is Norm.SYNC) for module in norms if kind is MaskedBatchNorm)
    assert not any(conv.bias is not None for conv in convs)

"""The parts of a ResNet that torchvision's has not: deformable convolutions and the non-local block."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.backbones.blocks import DeformableConv, NonLocalBlock, norm_layer
from model.backbones.resnet import ResNet, build_stage
from model.config import BackboneConfig, Norm


def maps(channels, height=9, width=7, seed=0):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


def deformable(modulated, stride=1, dilation=1, groups=1, offset_groups=1):
    torch.manual_seed(0)
    layer = DeformableConv(8, stride, dilation, groups, offset_groups, modulated)
    layer.reset_offsets()
    return layer


GEOMETRIES = [
    {},
    {"stride": 2},
    {"dilation": 2},
    {"groups": 4},
    {"offset_groups": 2},
    {"stride": 2, "groups": 2, "offset_groups": 4},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("modulated", [False, True])
def test_at_first_it_is_the_plain_convolution_or_half_of_it(modulated, geometry):
    layer = deformable(modulated, **geometry)
    x = maps(8)
    plain = F.conv2d(x, layer.weight, None, layer.stride, layer.dilation, layer.dilation, layer.groups)
    assert layer.offset.out_channels == (27 if modulated else 18) * geometry.get("offset_groups", 1)
    torch.testing.assert_close(layer(x), plain * (0.5 if modulated else 1), rtol=1e-4, atol=1e-5)


def shifted(x, dy, dx):
    """x moved by whole cells, zeros where nothing comes in."""
    out = torch.zeros_like(x)
    height, width = x.shape[-2:]
    out[..., max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = x[
        ..., max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)
    ]
    return out


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, -2), (-1, 2)])
@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_are_pairs_of_y_and_x_and_the_mask_comes_last(modulated, dy, dx):
    layer = deformable(modulated)
    with torch.no_grad():
        layer.offset.bias[0:18:2] = dy
        layer.offset.bias[1:18:2] = dx
        layer.offset.bias[18:] = 30.0  # a sigmoid of 1
    x = maps(8)
    # Each tap of a cell looks dy, dx further: the convolution of the moved map, but for the border it came over.
    inner = (..., slice(3, -3), slice(3, -3))
    wanted = F.conv2d(shifted(x, dy, dx), layer.weight, padding=1)
    torch.testing.assert_close(layer(x)[inner], wanted[inner], rtol=1e-4, atol=1e-5)


def test_a_tap_s_mask_switches_it_off():
    layer = deformable(modulated=True)
    with torch.no_grad():
        layer.offset.bias[18:] = 30.0
        layer.offset.bias[18 + 5] = -200.0
    weight = layer.weight.detach().clone()
    weight.flatten(2)[..., 5] = 0
    torch.testing.assert_close(layer(maps(8)), F.conv2d(maps(8), weight, padding=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_learn_from_the_first_step(modulated):
    layer = deformable(modulated)
    layer(maps(8)).square().sum().backward()
    assert layer.offset.weight.grad.flatten(1).any(dim=1).all()


def test_the_configured_stages_are_deformable_and_start_as_the_plain_network():
    narrow = {"depth": 50, "stem_channels": 8, "norm": Norm.FROZEN, "frozen_stages": 0}
    net = ResNet(BackboneConfig(**narrow, deformable_stages=(3, 5)))
    names = {name.rsplit(".", 2)[0] for name, m in net.named_modules() if isinstance(m, DeformableConv)}
    assert names == {"stages.1", "stages.3"}
    plain = ResNet(BackboneConfig(**narrow))
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if ".offset." not in name})
    for ours, wanted in zip(net(maps(3, 64, 33)), plain(maps(3, 64, 33)), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_a_dilated_stage_s_deformable_convolutions_are_dilated():
    config = BackboneConfig(depth=50, stem_channels=8, frozen_stages=0, deformable_stages=(5,))
    net = ResNet(config, dilated=True)
    assert {m.dilation for m in net.modules() if isinstance(m, DeformableConv)} == {(2, 2)}
    plain = ResNet(BackboneConfig(depth=50, stem_channels=8, frozen_stages=0), dilated=True)
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if ".offset." not in name})
    ours, wanted = net(maps(3, 64, 33))[-1], plain(maps(3, 64, 33))[-1]
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


# The non-local block.


def attention(block, x):
    """The block's sum over cells, with loops: softmax of dot products of embeddings."""
    out = torch.zeros_like(x)
    _, _, height, width = x.shape
    cells = [(y, column) for y in range(height) for column in range(width)]
    query, key, value = (part(x) for part in (block.query, block.key, block.value))
    for b in range(len(x)):
        for y, column in cells:
            scores = torch.stack([query[b, :, y, column] @ key[b, :, v, u] for v, u in cells])
            seen = sum(share * value[b, :, v, u] for share, (v, u) in zip(scores.softmax(0), cells, strict=True))
            out[b, :, y, column] = block.out.weight[:, :, 0, 0] @ seen + block.out.bias
    return out


def non_local(norm):
    torch.manual_seed(0)
    return NonLocalBlock(6, norm_layer(BackboneConfig(norm=norm)))


def test_non_local_block_equals_the_loop():
    block, x = non_local(Norm.FROZEN), maps(6, 3, 4)
    torch.testing.assert_close(block(x), x + block.norm(attention(block, x)))


@pytest.mark.parametrize("norm", [Norm.FROZEN, Norm.FIXED, Norm.BATCH, Norm.GROUP])
def test_non_local_block_starts_as_the_identity_and_leaves_it_slowly(norm):
    block, x = non_local(norm), maps(6, 3, 4)
    block.reset_output()
    assert torch.equal(block(x), x)
    optimiser = torch.optim.SGD(block.parameters(), lr=1e-3)
    (block(x) - maps(6, 3, 4, seed=1)).square().mean().backward()
    optimiser.step()
    # A trained norm after a first small step on the weights would be of unit size at once.
    assert 0 < (block(x) - x).abs().max() < 0.01


def test_one_non_local_block_comes_before_the_last_block_of_the_fourth_stage():
    net = ResNet(BackboneConfig(depth=50, stem_channels=8, frozen_stages=0, non_local=True))
    assert [name for name, m in net.named_modules() if isinstance(m, NonLocalBlock)] == ["stages.2.5.non_local"]
    plain = build_stage(BackboneConfig(depth=50, stem_channels=8), 2, 2)
    stage = net.stages[2]
    plain.load_state_dict({name: value for name, value in stage.state_dict().items() if "non_local" not in name})
    x = maps(64, 8, 8)
    torch.testing.assert_close(stage(x), plain(x))
    nn.init.ones_(stage[5].non_local.out.bias)
    assert not torch.equal(stage(x), plain(x))

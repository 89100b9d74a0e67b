"""What RoIAlign is compared with, and its options, on one map and on a pyramid: against torchvision's operators."""

import pytest
import torch
from torchvision import ops
from torchvision.ops.poolers import MultiScaleRoIAlign

from model.config import LevelRule, PoolerConfig, PoolOperation, PoolReduction
from model.pooler import PyramidPooler, assign_levels
from tests.oracles import roi_pool as naive

SIDE = 512
PYRAMID = (4, 8, 16, 32)
SINGLE = (16,)


def maps(strides, channels=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, SIDE // s, SIDE // s, generator=generator) for s in strides]


def boxes(count=6):
    """Boxes [2, count, 4] of all sizes, also beyond the picture."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, count, 2, generator=generator) * 300 - 20
    size = torch.linspace(8, 620, count)[:, None] * (0.7 + 0.6 * torch.rand(2, count, 2, generator=generator))
    return torch.cat([corner, corner + size], dim=2)


def by_level(operation, strides, size):
    """Each RoI pooled alone by `operation(map, rois, size, scale)` from its own level."""
    rois = boxes()
    levels = assign_levels(rois.flatten(0, 1), strides, LevelRule.DETECTRON2)
    crops = []
    for index, (box, level) in enumerate(zip(rois.flatten(0, 1), levels.tolist(), strict=True)):
        roi = torch.cat([torch.tensor([float(index // rois.shape[1])]), box])[None]
        crops.append(operation(maps(strides)[level], roi, size, 1 / strides[level])[0])
    assert len(set(levels.tolist())) == len(strides)
    return torch.stack(crops)


@pytest.mark.parametrize("strides", [SINGLE, PYRAMID], ids=["one-map", "pyramid"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_align_equals_torchvision_s(strides, sampling_ratio, aligned):
    config = PoolerConfig(sampling_ratio=sampling_ratio, aligned=aligned)
    found = PyramidPooler(config, strides)(maps(strides), boxes(), 7)

    def align(map_, rois, size, scale):
        return ops.roi_align(map_, rois, size, scale, sampling_ratio or -1, aligned)

    torch.testing.assert_close(found, by_level(align, strides, 7), rtol=1e-4, atol=1e-4)


def test_torchvision_s_whole_pooler_is_equalled():
    config = PoolerConfig(sampling_ratio=2, aligned=False, level_rule=LevelRule.TORCHVISION)
    found = PyramidPooler(config, PYRAMID)(maps(PYRAMID), boxes(), 7)
    peer = MultiScaleRoIAlign([str(i) for i in range(4)], 7, 2)
    given = {str(i): map_ for i, map_ in enumerate(maps(PYRAMID))}
    wanted = peer(given, list(boxes()), [(SIDE, SIDE)] * 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [SINGLE, PYRAMID], ids=["one-map", "pyramid"])
def test_pool_equals_torchvision_s(strides):
    config = PoolerConfig(operation=PoolOperation.POOL)
    found = PyramidPooler(config, strides)(maps(strides), boxes(), 5)
    torch.testing.assert_close(found, by_level(ops.roi_pool, strides, 5))


@pytest.mark.parametrize("strides", [SINGLE, PYRAMID], ids=["one-map", "pyramid"])
@pytest.mark.parametrize("reduction", PoolReduction)
def test_warp_equals_the_loop(strides, reduction):
    config = PoolerConfig(operation=PoolOperation.WARP, reduction=reduction, sampling_ratio=2)
    found = PyramidPooler(config, strides)(maps(strides), boxes(), 3)

    def warp(map_, rois, size, scale):
        return naive.roi_warp(map_, rois, (size, size), scale, 2, reduction.value)

    torch.testing.assert_close(found, by_level(warp, strides, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [SINGLE, PYRAMID], ids=["one-map", "pyramid"])
def test_largest_sample_equals_the_loop(strides):
    config = PoolerConfig(reduction=PoolReduction.MAX, sampling_ratio=2, aligned=False)
    found = PyramidPooler(config, strides)(maps(strides), boxes(), 3)

    def largest(map_, rois, size, scale):
        return naive.roi_align_max(map_, rois, (size, size), scale, 2)

    torch.testing.assert_close(found, by_level(largest, strides, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", PoolOperation)
def test_only_a_roi_s_own_level_gets_a_gradient(operation):
    config = PoolerConfig(operation=operation, sampling_ratio=2)
    given = [map_.requires_grad_() for map_ in maps(PYRAMID)]
    small = torch.tensor([[[40.0, 40.0, 80.0, 90.0]], [[10.0, 10.0, 470.0, 480.0]]])
    PyramidPooler(config, PYRAMID)(given, small, 7).sum().backward()
    assert [[bool(map_.grad[b].any()) for map_ in given] for b in range(2)] == [
        [True, False, False, False],
        [False, False, False, True],
    ]

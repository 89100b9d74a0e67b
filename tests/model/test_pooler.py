"""The choice of the pyramid level by three rules, and which map and picture a crop is taken from."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops.poolers import LevelMapper

from model.config import LevelRule, PoolerConfig
from model.pooler import PyramidPooler, assign_levels

STRIDES = (4, 8, 16, 32)


def level_of(size, rule):
    """Equation 1 of the FPN paper for one box, as each framework writes it, counted from P2."""
    formulas = {
        LevelRule.TORCHVISION: lambda: math.floor(4 + math.log2(size / 224) + 1e-6) - 2,
        LevelRule.DETECTRON2: lambda: math.floor(4 + math.log2(size / 224 + 1e-8)) - 2,
        LevelRule.MMDETECTION: lambda: math.floor(math.log2(size / 56 + 1e-6)),
    }
    return min(max(formulas[rule](), 0), 3)


def square(size):
    return torch.tensor([[3.0, 5.0, 3.0 + size, 5.0 + size]])


@pytest.mark.parametrize("rule", LevelRule)
def test_levels_equal_the_scalar_formula(rule):
    rng = np.random.default_rng(0)
    # A relative 1e-4 away from the borders 112, 224 and 448, where single and double precision agree.
    sizes = np.exp(rng.uniform(np.log(1), np.log(2000), 3000))
    sizes = sizes[(np.abs(sizes[:, None] / [112, 224, 448] - 1) > 1e-4).all(axis=1)]
    aspect = np.exp(rng.uniform(-1.5, 1.5, len(sizes)))
    boxes = np.stack([0 * sizes, 0 * sizes, sizes * aspect, sizes / aspect], axis=1)
    found = assign_levels(torch.from_numpy(boxes).float(), STRIDES, rule)
    assert found.dtype == torch.int64
    assert found.tolist() == [level_of(size, rule) for size in sizes]
    assert found.unique().tolist() == [0, 1, 2, 3]


def test_torchvision_s_rule_equals_torchvision_live():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat([torch.zeros(4000, 2), (torch.rand(4000, 2, generator=generator) * 7).exp()], dim=1)
    borders = torch.tensor([[0, 0, w * f, w * f] for w in (112, 224, 448) for f in (1 - 1e-6, 1 - 3e-7, 1, 1 + 3e-7)])
    boxes = torch.cat([boxes, borders])
    theirs = LevelMapper(2, 5, eps=1e-6)([boxes])
    assert torch.equal(assign_levels(boxes, STRIDES, LevelRule.TORCHVISION), theirs)


@pytest.mark.parametrize("rule", LevelRule)
@pytest.mark.parametrize(("border", "level"), [(112.0, 1), (224.0, 2), (448.0, 3)])
def test_a_box_on_the_border_belongs_to_the_coarser_level(rule, border, level):
    assert assign_levels(square(border), STRIDES, rule).item() == level
    assert assign_levels(torch.tensor([[0.0, 0.0, border / 4, border * 4]]), STRIDES, rule).item() == level
    assert assign_levels(square(border * (1 - 1e-5)), STRIDES, rule).item() == level - 1


@pytest.mark.parametrize(
    ("rule", "level"),
    [(LevelRule.TORCHVISION, 1), (LevelRule.DETECTRON2, 0), (LevelRule.MMDETECTION, 1)],
)
def test_the_rules_differ_a_hair_below_the_border(rule, level):
    hair = 112 * (1 - 3e-7)
    assert level_of(hair, rule) == level
    assert assign_levels(torch.tensor([[0.0, 0.0, hair, hair]]), STRIDES, rule).item() == level


@pytest.mark.parametrize("rule", LevelRule)
def test_boxes_of_no_size_or_no_number_have_a_level(rule):
    boxes = torch.tensor(
        [
            [5.0, 5.0, 5.0, 5.0],
            [0.0, 0.0, 0.0, 90.0],
            [math.nan, 0.0, 300.0, 300.0],
            [0.0, 0.0, math.nan, math.nan],
            [300.0, 0.0, 0.0, 300.0],  # inverted: the root of a negative area
            [0.0, 0.0, 1e30, 1e30],
            [0.0, 0.0, math.inf, math.inf],
        ]
    )
    assert assign_levels(boxes, STRIDES, rule).tolist() == [0, 0, 0, 0, 0, 3, 3]
    assert assign_levels(boxes[:0], STRIDES, rule).shape == (0,)


def numbered_maps(batch):
    """Constant maps whose value tells picture and level: 10 * picture + level + 1."""
    levels = []
    for level, stride in enumerate((*STRIDES, 64)):
        values = 10.0 * torch.arange(batch) + level + 1
        levels.append(values[:, None, None, None].expand(batch, 3, 1024 // stride, 1024 // stride))
    return levels


def test_each_crop_comes_from_its_own_picture_and_level():
    sizes = torch.tensor([30.0, 120.0, 300.0, 600.0, 5.0])
    boxes = torch.cat([torch.full((5, 2), 100.0), 100 + sizes[:, None].expand(-1, 2)], dim=1)
    boxes = torch.stack([boxes, boxes.flip(0)])
    crops = PyramidPooler(PoolerConfig(), STRIDES)(numbered_maps(2), boxes, 7)
    assert crops.shape == (10, 3, 7, 7)
    wanted = torch.tensor([1.0, 2, 3, 4, 1, 11, 14, 13, 12, 11])
    torch.testing.assert_close(crops, wanted[:, None, None, None].expand_as(crops))


def test_boxes_without_numbers_pool_to_zero():
    boxes = torch.full((1, 1, 4), math.nan)
    assert not PyramidPooler(PoolerConfig(), STRIDES)(numbered_maps(1), boxes, 7).any()
    assert PyramidPooler(PoolerConfig(), STRIDES)(numbered_maps(2), torch.zeros(2, 0, 4), 14).shape == (0, 3, 14, 14)

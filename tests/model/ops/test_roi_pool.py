"""RoIAlign with the largest sample, RoIPool and RoIWarp: against loops from their rules in words."""

import math

import pytest
import torch
import torchvision

from model.ops.roi_align import pyramid_roi_align, roi_align, roi_warp
from model.ops.roi_pool import roi_pool
from tests.oracles import roi_pool as naive

SCALE = 0.25


def features(channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 17, 23, dtype=torch.float64, generator=generator).to(dtype)


def rois(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60 - 5
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60 + 1
    image = torch.randint(0, 2, (count, 1), generator=generator).double()
    return torch.cat([image, corner, corner + size], 1).to(dtype)


HALVES = torch.tensor([[0.0, 2.0, 6.0, 10.0, 14.0], [1.0, -2.0, -6.0, 30.0, 22.0]], dtype=torch.float64)
"""Corners that lie exactly between two cells at a quarter scale."""


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_the_largest_sample_is_the_naive_loops(sampling_ratio):
    maps, boxes = features(), rois(6)
    pooled = roi_align(maps, boxes, (4, 3), SCALE, sampling_ratio, aligned=False, mode="max")
    expected = naive.roi_align_max(maps, boxes, (4, 3), SCALE, sampling_ratio)
    torch.testing.assert_close(pooled, expected, atol=1e-11, rtol=1e-11)
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_the_largest_of_one_sample_is_the_average():
    maps, boxes = features(), rois(6)
    assert torch.equal(roi_align(maps, boxes, 7, SCALE, 1, mode="max"), roi_align(maps, boxes, 7, SCALE, 1))


def test_the_largest_sample_over_a_pyramid_is_the_levels_apart():
    maps = [features(), features()[:, :, ::2, ::2]]
    boxes, levels = rois(8), torch.arange(8) % 2
    pooled = pyramid_roi_align(maps, boxes, levels, 3, [SCALE, SCALE / 2], 2, True, "max")
    for level in (0, 1):
        alone = roi_align(maps[level], boxes[levels == level], 3, SCALE / (level + 1), 2, mode="max")
        assert torch.equal(pooled[levels == level], alone)


def test_gradients_of_largest_samples():
    maps, boxes = features(2).requires_grad_(), rois(3)
    assert torch.autograd.gradcheck(lambda value: roi_align(value, boxes, 2, SCALE, 2, mode="max"), (maps,))
    assert torch.autograd.gradcheck(lambda value: roi_warp(value, boxes, 2, SCALE, 2, "max"), (maps,))


@pytest.mark.parametrize("shape", [(2, 0, 8, 8), (0, 3, 8, 8), (2, 3, 8, 8)])
def test_nothing_to_pool(shape):
    maps, none = torch.zeros(shape), torch.zeros(0, 5)
    assert roi_align(maps, none, 7, sampling_ratio=2, mode="max").shape == (0, shape[1], 7, 7)
    assert roi_warp(maps, none, 7).shape == (0, shape[1], 7, 7)
    assert roi_pool(maps, none, 7).shape == (0, shape[1], 7, 7)


@pytest.mark.parametrize("boxes", [rois(12), HALVES, torch.tensor([[0.0, 400, 400, 500, 500], [0, 40, 40, 20, 20]])])
@pytest.mark.parametrize("size", [(7, 7), (4, 3), (1, 1)])
def test_roi_pool_is_the_naive_loop_and_torchvision(boxes, size):
    maps, boxes = features(), boxes.double()
    pooled = roi_pool(maps, boxes, size, SCALE)
    assert torch.equal(pooled, naive.roi_pool(maps, boxes, size, SCALE))
    assert torch.equal(pooled, torchvision.ops.roi_pool(maps, boxes, size, SCALE))


def test_roi_pool_of_sixteen_bits():
    maps, boxes = features(dtype=torch.bfloat16), rois(5, torch.float32)
    assert torch.equal(roi_pool(maps, boxes, 7, SCALE), roi_pool(maps.float(), boxes, 7, SCALE).bfloat16())


@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("boxes", [rois(6), HALVES])
def test_roi_warp_is_the_naive_loop(boxes, mode):
    maps = features()
    pooled = roi_warp(maps, boxes, (4, 3), SCALE, 2, mode)
    expected = naive.roi_warp(maps, boxes, (4, 3), SCALE, 2, mode)
    torch.testing.assert_close(pooled, expected, atol=1e-11, rtol=1e-11)


def test_roi_warp_of_whole_cells_is_roi_align():
    maps, boxes = features(), rois(6)
    boxes[:, 1:] = (boxes[:, 1:] * SCALE).round() / SCALE
    assert torch.equal(roi_warp(maps, boxes, 7, SCALE), roi_align(maps, boxes, 7, SCALE, 2, aligned=False))


def test_roi_warp_of_boxes_that_are_not_numbers_gives_zeros():
    boxes = torch.tensor([[0, math.nan, 0, 9, 9], [0, 0, 0, math.inf, 9]], dtype=torch.float64)
    for mode in ("average", "max"):
        assert not roi_warp(features(), boxes, 7, SCALE, 2, mode).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roi_align(features(), rois(1), 7, mode="max"), r"mode 'max' got sampling_ratio 0 .*wanted at least 1"),
        (lambda: roi_warp(features(), rois(1)[:, :4], 7), r"rois are \[1, 4\].*wanted \[R, 5\]"),
        (lambda: roi_pool(features()[0], rois(1), 7), r"features \[3, 17, 23\]"),
        (
            lambda: roi_pool(features()[:1], torch.tensor([[1.0, 0, 0, 4, 4]]), 7),
            r"batch indices \[1\.0\], wanted 0\.\.0",
        ),
        (lambda: roi_warp(features(), torch.tensor([[2.0, 0, 0, 4, 4]]), 7), r"RoI 0 has batch index 2, wanted 0\.\.1"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)

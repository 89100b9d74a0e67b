"""Random sizes, boxes, crops and settings, most of them odd: every operator stays inside its tensors and in range.

Under `make sanitize` each access is checked; otherwise a wrong one shows in the values, or in a crash.
"""

import math

import pytest
import torch

from model.ops.masks import mask_rle, mask_targets, polygon_crops, rle_areas
from model.ops.nms import nms
from model.ops.pictures import resize_bytes
from model.ops.roi_align import roi_align

ODD = (math.nan, math.inf, -math.inf, 0.0, -0.5, 1e38)


class Draw:
    """Random numbers of one geometry."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def whole(self, low, high):
        return int(torch.randint(low, high, (), generator=self.generator))

    def boxes(self, count):
        """[count, 4]: any order of corners, sizes from 1/100 to 100,000, now and then not a number."""
        reach = 10.0 ** torch.randint(-2, 6, (count, 1), generator=self.generator).float()
        corners = torch.randn(count, 4, generator=self.generator) * reach
        if self.whole(0, 2):
            corners = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:].abs()], 1)
        if count and self.whole(0, 8) == 0:
            corners[self.whole(0, count), self.whole(0, 4)] = ODD[self.whole(0, len(ODD))]
        return corners


def pool(draw):
    height, width, channels, count = draw.whole(1, 14), draw.whole(1, 14), draw.whole(1, 20), draw.whole(0, 7)
    dtype = (torch.float32, torch.float64, torch.bfloat16, torch.float16)[draw.whole(0, 4)]
    maps = torch.randn(2, channels, height, width, generator=draw.generator).to(dtype).requires_grad_()
    image = torch.randint(0, 2, (count, 1), generator=draw.generator).float()
    boxes = torch.cat([image, draw.boxes(count)], 1)
    size, scale = (draw.whole(1, 9), draw.whole(1, 9)), 2.0 ** -draw.whole(0, 4)
    pooled = roi_align(maps, boxes, size, scale, draw.whole(0, 4), bool(draw.whole(0, 2)))
    (grad,) = torch.autograd.grad(pooled.float().sum(), maps)
    # An average of samples is within the range of the map; the gradient gives each bin away once at most.
    assert pooled.numel() == 0 or pooled.abs().max() <= maps.abs().max() * 1.01
    assert grad.isfinite().all()
    assert grad.float().sum() <= pooled.numel() * 1.01 + 1e-3


def suppress(draw):
    images, count = draw.whole(1, 4), draw.whole(0, 70)
    boxes = draw.boxes(images * count).view(images, count, 4)
    scores = torch.randn(images, count, generator=draw.generator)
    groups = torch.randint(-1, 3, (images, count), generator=draw.generator)
    valid = torch.rand(images, count, generator=draw.generator) < 0.7
    keep = nms(boxes, scores, groups, valid, draw.whole(0, 11) / 10)
    assert not (keep & ~valid).any()
    assert bool(keep.any()) == bool(valid.any())


def cut(draw):
    height, width = draw.whole(1, 40), draw.whole(1, 40)
    y0, x0 = draw.whole(0, height), draw.whole(0, width)
    h, w = draw.whole(0, height - y0 + 1), draw.whole(0, width - x0 + 1)
    offset, count = draw.whole(0, 5), draw.whole(0, 7)
    data = torch.randint(0, 2, (offset + h * w,), generator=draw.generator).to(torch.uint8)
    index = torch.randint(-1, 1, (count,), generator=draw.generator)
    packed = (data, torch.tensor([offset]), torch.tensor([[y0, x0, h, w, height, width]]))
    targets = mask_targets(
        *packed, draw.boxes(count), index, draw.whole(1, 30), aligned=bool(draw.whole(0, 2)), binarise=False
    )
    assert targets.numel() == 0 or (targets.min() >= 0 and targets.max() <= 1.01)


def encode(draw):
    count, cells = draw.whole(0, 5), draw.whole(1, 30)
    sizes = torch.randint(0, 60, (count, 2), generator=draw.generator)
    probs = torch.rand(count, cells, cells, generator=draw.generator)
    runs = mask_rle(probs, draw.boxes(count), sizes, (draw.whole(0, 9) + 1) / 10, padded=bool(draw.whole(0, 2)))
    assert (runs.areas <= sizes.prod(1)).all()
    assert (runs.boxes_xywh[:, :2] + runs.boxes_xywh[:, 2:] <= sizes.flip(1)).all()


def draw_polygons(draw):
    height, width = draw.whole(1, 60), draw.whole(1, 60)
    lengths = torch.randint(0, 9, (draw.whole(0, 6),), generator=draw.generator)
    reach = 10.0 ** draw.whole(-1, 7)
    points = torch.randn(int(lengths.sum()), 2, generator=draw.generator, dtype=torch.float64) * reach
    objects = torch.tensor(sorted({draw.whole(0, len(lengths) + 1), len(lengths)}))
    bits, extents = polygon_crops(points, lengths.cumsum(0), objects, height, width)
    assert (extents >= 0).all()
    assert (extents[:, :2] + extents[:, 2:] <= torch.tensor([height, width])).all()
    assert int(extents[:, 2:].prod(1).sum()) == len(bits)
    assert ((bits == 0) | (bits == 1)).all()


def resize_picture(draw):
    sides = [draw.whole(1, 70) for _ in range(4)]
    picture = torch.randint(0, 256, (*sides[:2], 3), generator=draw.generator).to(torch.uint8)
    out = torch.full((sides[2], sides[3] + draw.whole(0, 3), 3), 7, dtype=torch.uint8)
    top, left = draw.whole(0, 40), draw.whole(0, 40)
    whole = (top + sides[2] + draw.whole(0, 30), left + sides[3] + draw.whole(0, 30))
    resize_bytes(picture, out[:, : sides[3]], whole, (top, left), mirrored=bool(draw.whole(0, 2)))
    assert (out[:, sides[3] :] == 7).all()
    low, high = (picture.amin((0, 1)), picture.amax((0, 1)))
    assert ((out[:, : sides[3]] >= low) & (out[:, : sides[3]] <= high)).all()


def read_runs(draw):
    count = draw.whole(0, 6)
    lengths = torch.randint(0, 20, (count,), generator=draw.generator)
    text = torch.randint(40, 120, (int(lengths.sum()),), generator=draw.generator).to(torch.uint8)
    pixels = torch.randint(0, 10**9, (count,), generator=draw.generator)
    areas = rle_areas(text, lengths.cumsum(0), pixels)
    assert ((areas >= -1) & (areas <= pixels)).all()


def check_geometries(seeds):
    for seed in seeds:
        draw = Draw(seed)
        for operator in (pool, suppress, cut, encode, draw_polygons, resize_picture, read_runs):
            operator(draw)


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_random_geometry(first):
    check_geometries(range(first, first + 250))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1000, 10000, 1000))
def test_many_random_geometries(first):
    check_geometries(range(first, first + 1000))

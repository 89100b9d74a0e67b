"""Anchors against torchvision's generator, live, and against their definition."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from model.anchors import all_cell_anchors, cell_anchors, pyramid_anchors
from model.config import AnchorConfig
from model.presets import DETECTORS
from model.rpn import RegionProposals, RpnHead

STRIDES = (4, 8, 16, 32, 64)


def maps(height, width):
    """Empty feature maps of a picture: P2..P5 divide it, P6 is every other cell of P5."""
    sizes = [(height // stride, width // stride) for stride in STRIDES[:4]]
    sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return [torch.zeros(2, 1, *size) for size in sizes]


# Sides that are odd multiples of 32 have a P6 that does not divide them: 800 = 13 * 61 + 7.
@pytest.mark.parametrize("size", [(128, 192), (64, 64), (96, 160), (800, 1344), (1344, 800)], ids=str)
@pytest.mark.parametrize("ratios", [(0.5, 1.0, 2.0), (0.37, 1.9)], ids=str)
def test_rounded_and_fitted_anchors_equal_torchvision_s(size, ratios):
    sizes = (32.0, 64.0, 128.0, 256.0, 512.0)
    features = maps(*size)
    generator = AnchorGenerator(tuple((int(side),) for side in sizes), (ratios,) * 5)
    theirs = generator(ImageList(torch.zeros(2, 3, *size), [size, size]), features)
    ours = pyramid_anchors(
        all_cell_anchors(AnchorConfig(sizes, ratios, rounded=True), 5), features, STRIDES, fitted=True
    )
    assert torch.equal(torch.cat(ours), theirs[0])
    assert [len(level) for level in ours] == [len(ratios) * f.shape[-2] * f.shape[-1] for f in features]


@pytest.mark.parametrize("size", [16.0, 50.0])
def test_a_cell_s_anchors_have_the_asked_area_and_ratio(size):
    ratios = (0.5, 1.0, 2.0, 3.3)
    anchors = cell_anchors(size, ratios, rounded=False)
    width, height = (anchors[:, 2] - anchors[:, 0]), (anchors[:, 3] - anchors[:, 1])
    torch.testing.assert_close(width * height, torch.full((4,), size * size))
    torch.testing.assert_close(height / width, torch.tensor(ratios))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])
    assert torch.equal(cell_anchors(size, ratios, rounded=True), anchors.round())


@pytest.mark.parametrize("size", [(128, 192), (96, 160)], ids=str)
def test_anchors_lie_on_the_cells_corners_in_the_order_y_x_anchor(size):
    config = AnchorConfig()
    features = maps(*size)
    for level, anchors in enumerate(pyramid_anchors(all_cell_anchors(config, 5), features, STRIDES)):
        rows, columns = features[level].shape[-2:]
        cell = cell_anchors(config.sizes_px[level], config.ratios, rounded=False)
        wanted = [
            [x * STRIDES[level], y * STRIDES[level], x * STRIDES[level], y * STRIDES[level]]
            for y in range(rows)
            for x in range(columns)
            for _ in cell
        ]
        torch.testing.assert_close(anchors, torch.tensor(wanted) + cell.repeat(rows * columns, 1))


@pytest.mark.parametrize(("name", "stride"), [("torchvision_mask_rcnn_r50_fpn", 61), ("mask_rcnn_r50_fpn", 64)])
def test_a_preset_decides_the_stride_of_p6(name, stride):
    config = DETECTORS[name]()
    rpn = RegionProposals(RpnHead(1, 3), config.anchors, STRIDES, config.rpn)
    corners = rpn(maps(800, 800)).anchors[-1].view(13, 13, 3, 4)[..., :2]
    torch.testing.assert_close(corners.diff(dim=1)[..., 0], torch.full((13, 12, 3), float(stride)))
    torch.testing.assert_close(corners.diff(dim=0)[..., 1], torch.full((12, 13, 3), float(stride)))


def test_levels_and_sizes_must_be_as_many():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        pyramid_anchors(all_cell_anchors(AnchorConfig(), 5), maps(64, 64)[:4], STRIDES)

"""RoIAlign refuses input that does not fit, with one line that says what, got and wanted."""

import math

import pytest
import torch

from model.ops import extension
from model.ops.roi_align import pyramid_roi_align, roi_align

NAN = math.nan


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


MAPS, BOX = torch.zeros(2, 3, 8, 8), torch.zeros(1, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roi_align(MAPS, row(2, 0, 0, 4, 4), 7), r"RoI 0 has batch index 2, wanted 0\.\.1"),
        (lambda: roi_align(MAPS, row(-1, 0, 0, 4, 4), 7), r"batch index -1, wanted 0\.\.1"),
        (lambda: roi_align(MAPS, row(NAN, 0, 0, 4, 4), 7), r"batch index nan, wanted 0\.\.1"),
        (lambda: roi_align(MAPS, torch.zeros(1, 4), 7), r"rois are \[1, 4\].*wanted \[R, 5\]"),
        (lambda: roi_align(MAPS[0], BOX, 7), r"map 0 is torch.float32 \[3, 8, 8\], wanted \[N, C, H, W\]"),
        (lambda: roi_align(MAPS.int(), BOX, 7), "feature map 0 is torch.int32"),
        (lambda: roi_align(MAPS, BOX, 0), r"output_size \(0, 0\).*wanted at least 1 bin"),
        (lambda: roi_align(MAPS, BOX, 7, sampling_ratio=-1), r"sampling_ratio -1"),
        (lambda: pyramid_roi_align([], BOX, torch.zeros(1, dtype=torch.int64), 7, []), "0 feature maps"),
        (
            lambda: pyramid_roi_align([MAPS, MAPS], BOX, torch.tensor([2]), 7, [1.0, 0.5]),
            r"RoI 0 has level 2, wanted 0\.\.1",
        ),
        (
            lambda: pyramid_roi_align([MAPS, MAPS[:, :2]], BOX, torch.tensor([0]), 7, [1.0, 0.5]),
            "feature map 1 is .* with 2 channels",
        ),
        (lambda: pyramid_roi_align([MAPS], BOX, torch.tensor([0.0]), 7, [1.0]), "levels are torch.float32"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_cuda_without_kernels_says_so():
    if extension.has_cuda():
        pytest.skip("this build has the CUDA kernels")
    with pytest.raises(ValueError, match="built without CUDA"):
        roi_align(MAPS.cuda(), BOX.cuda(), 7)

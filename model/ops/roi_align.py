"""RoIAlign over one feature map or a pyramid of them: forward, backward, deterministic, channels last.

R RoIs, C channels, N images, L levels.  RoIs are rows (image index, x1, y1, x2, y2) in pixels of the picture.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from model.ops import extension

Mode = Literal["average", "max"]
"""What becomes of the samples of a bin."""

FEATURE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

extension.load()


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: Mode = "average",
) -> Tensor:
    """Average of bilinear samples in each bin of each RoI, as ``torchvision.ops.roi_align`` defines it.

    Args:
        features: [N, C, H, W], float32, float64, bfloat16 or float16; 16-bit types are summed in float32.
            Channels-last memory is used as it is, any other is copied to it.
        rois: [R, 5], image index in 0..N-1, then x1, y1, x2, y2 in pixels of the picture.
        output_size: Bins along y and x; one number for both.
        spatial_scale: Cells of the map per pixel of the picture, e.g. 1/4.
        sampling_ratio: Samples per bin along each axis; 0: as many as the bin has cells, rounded up.
        aligned: Shift by half a cell, so that a pixel's centre lies at .5; False also makes an RoI at least
            one cell wide and high, as torchvision does by default.
        mode: "average", or "max": the largest sample of each bin, with a fixed ``sampling_ratio`` only; its
            gradient goes to that sample, in equal parts where several are largest.

    Returns:
        [R, C, h, w] in the type of ``features``, channels-last memory. Samples more than one cell outside the
        map count as 0, as do RoIs with NaN.

    Raises:
        ValueError: A shape, type or device does not fit, or an image index is out of range. On CUDA, where looking
            at the RoIs would mean waiting, a wrong index stops the device with an assertion that names it.
    """
    levels = torch.zeros(rois.shape[:1], dtype=torch.int64, device=rois.device)
    return pyramid_roi_align([features], rois, levels, output_size, [spatial_scale], sampling_ratio, aligned, mode)


def pyramid_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    mode: Mode = "average",
) -> Tensor:
    """RoIAlign in one call over a pyramid, each RoI on the level named for it.

    Args:
        features: One map [N, C, H_l, W_l] a level, of one type and one C.
        rois: [R, 5], as for :func:`roi_align`.
        levels: int64 [R], index into ``features``, 0..L-1.
        output_size: Bins along y and x; one number for both.
        spatial_scales: Cells per pixel, one number a level.
        sampling_ratio: Samples per bin along each axis; 0: as many as the bin has cells, rounded up.
        aligned: As for :func:`roi_align`.
        mode: As for :func:`roi_align`.

    Returns:
        [R, C, h, w] in the type of the features, channels-last memory.

    Raises:
        ValueError: A shape, type or device does not fit, or an image or level index is out of range; on CUDA as for
            :func:`roi_align`.
    """
    _check(features, rois, levels, spatial_scales)
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if height < 1 or width < 1 or sampling_ratio < 0:
        raise ValueError(
            f"RoIAlign with output_size {(height, width)} and sampling_ratio {sampling_ratio}: wanted at "
            "least 1 bin along each axis, and a sampling ratio of 0 (adaptive) or more"
        )
    if mode == "max":
        return _max_of_samples(features, rois, levels, (height, width), spatial_scales, sampling_ratio, aligned)
    precision = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    pooled = extension.call(
        torch.ops.maskray.roi_align,
        list(features),
        rois.detach().to(precision),
        levels,
        height,
        width,
        [float(scale) for scale in spatial_scales],
        sampling_ratio,
        aligned,
    )
    return cast(Tensor, pooled)


def roi_warp(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    mode: Mode = "average",
) -> Tensor:
    """RoIWarp, of the paper's ablation: RoIAlign of RoIs whose corners are rounded to whole cells.

    Corners go to the nearest cell (halves away from zero), as in MNC, and the samples then lie where
    :func:`roi_align` with ``aligned=False`` puts them.

    Args:
        features: [N, C, H, W], float32, float64, bfloat16 or float16.
        rois: [R, 5], image index in 0..N-1, then x1, y1, x2, y2 in pixels of the picture.
        output_size: Bins along y and x; one number for both.
        spatial_scale: Cells of the map per pixel of the picture, e.g. 1/16.
        sampling_ratio: Samples per bin along each axis; 0 (adaptive) with mode "average" only.
        mode: "average" or "max" of a bin's samples.

    Returns:
        [R, C, h, w] in the type of ``features``.

    Raises:
        ValueError: A shape, type or device does not fit, or an image index is out of range.
    """
    wide = rois.detach().to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    cells = wide[:, 1:] * spatial_scale
    whole = torch.cat([wide[:, :1], cells.sign() * (cells.abs() + 0.5).floor()], 1)
    return roi_align(features, whole, output_size, 1.0, sampling_ratio, aligned=False, mode=mode)


def _max_of_samples(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    size_hw: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    # s x s samples a bin are one sample in each of s x s smaller bins.
    if sampling_ratio < 1:
        raise ValueError(
            "RoIAlign with mode 'max' got sampling_ratio 0 (adaptive), wanted at least 1: the paper takes 2"
        )
    fine = (size_hw[0] * sampling_ratio, size_hw[1] * sampling_ratio)
    samples = pyramid_roi_align(features, rois, levels, fine, scales, 1, aligned)
    count, channels = samples.shape[:2]
    by_bin = samples.reshape(count, channels, size_hw[0], sampling_ratio, size_hw[1], sampling_ratio)
    # amax, not max_pool2d, whose gradient on a GPU counts as not deterministic.
    return torch.amax(by_bin, (3, 5)).contiguous(memory_format=torch.channels_last)


def _check(features: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float]) -> None:
    if len(features) == 0 or len(features) != len(scales):
        raise ValueError(
            f"RoIAlign got {len(features)} feature maps and {len(scales)} spatial scales: give one scale a "
            "map, and at least one map"
        )
    first = features[0]
    for level, map_ in enumerate(features):
        if map_.dim() != 4 or map_.dtype not in FEATURE_TYPES:
            raise ValueError(
                f"feature map {level} is {map_.dtype} {list(map_.shape)}, wanted [N, C, H, W] of float32, "
                "float64, bfloat16 or float16"
            )
        if (map_.dtype, map_.shape[1], map_.device) != (first.dtype, first.shape[1], first.device):
            raise ValueError(
                f"feature map {level} is {map_.dtype} with {map_.shape[1]} channels on {map_.device}, map 0 "
                f"is {first.dtype} with {first.shape[1]} on {first.device}: all levels must agree"
            )
    if rois.dim() != 2 or rois.shape[1] != 5 or rois.device != first.device:
        raise ValueError(
            f"rois are {list(rois.shape)} on {rois.device}, wanted [R, 5] (image index, x1, y1, x2, y2) on "
            f"{first.device}"
        )
    if levels.dtype != torch.int64 or levels.shape != rois.shape[:1] or levels.device != first.device:
        raise ValueError(
            f"levels are {levels.dtype} {list(levels.shape)} on {levels.device}, wanted int64 "
            f"[{rois.shape[0]}], one a RoI, on {first.device}"
        )
    extension.check_device("the feature map", first)


def _roi_align_fake(
    features: list[Tensor], rois: Tensor, levels: Tensor, height: int, width: int, *settings: object
) -> Tensor:
    shape = (rois.shape[0], features[0].shape[1], height, width)
    return features[0].new_empty(shape).to(memory_format=torch.channels_last)


def _roi_align_backward_fake(
    grad: Tensor, rois: Tensor, levels: Tensor, sizes: list[int], *settings: object
) -> list[Tensor]:
    shapes = [sizes[i : i + 4] for i in range(0, len(sizes), 4)]
    return [grad.new_empty(shape).to(memory_format=torch.channels_last) for shape in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, levels, _, _, scales, sampling_ratio, aligned = inputs
    ctx.save_for_backward(rois, levels)
    ctx.sizes = [size for map_ in features for size in map_.shape]
    ctx.settings = (scales, sampling_ratio, aligned)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[object, ...]:
    rois, levels = ctx.saved_tensors
    grads = torch.ops.maskray.roi_align_backward(grad, rois, levels, ctx.sizes, *ctx.settings)
    return grads, None, None, None, None, None, None, None


torch.library.register_autograd("maskray::roi_align", _differentiate, setup_context=_save)
torch.library.register_fake("maskray::roi_align", _roi_align_fake)
torch.library.register_fake("maskray::roi_align_backward", _roi_align_backward_fake)

"""Instance masks: polygons to packed crops, those to training targets, predicted probabilities to COCO run lengths.

A packed crop is the tight bitmap of one instance: ``data`` uint8 [S] holds the crops' rows one after another,
and each instance has an ``offset`` into it and an ``extent`` (y0, x0, h, w, H, W) - rows y0..y0+h and columns
x0..x0+w of an H x W mask that is zero elsewhere.
"""

import itertools
from typing import NamedTuple, cast

import torch
from torch import Tensor

from model.ops import extension

extension.load()


class MaskRuns(NamedTuple):
    """D masks as COCO compressed run lengths."""

    counts: list[bytes]
    """The ``counts`` string of each mask, as ``pycocotools.mask.encode`` writes it."""
    areas: Tensor
    """Pixels in each mask, int64 [D]."""
    boxes_xywh: Tensor
    """The tight box of each mask in pixels, float32 [D, 4]; zeros for an empty mask."""


def mask_targets(
    data: Tensor,
    offsets: Tensor,
    extents: Tensor,
    rois: Tensor,
    crop_index: Tensor,
    size: int,
    *,
    aligned: bool,
    binarise: bool,
) -> Tensor:
    """Mask of each RoI's instance inside the RoI, on a ``size`` x ``size`` grid.

    Exactly RoIAlign (scale 1, adaptive sampling, float32) of the whole mask that the crop stands for, so that
    the rule at the border of a mask and of a picture is the whole mask's. MMDetection and Detectron2 use
    aligned and binarised targets, torchvision neither. Not differentiable.

    Args:
        data: Mask pixels 0 or 1, uint8 [S].
        offsets: Start of each crop in ``data``, int64 [T].
        extents: (y0, x0, h, w, H, W) of each crop, int64 [T, 6].
        rois: x1, y1, x2, y2 in pixels, [R, 4].
        crop_index: Which crop belongs to each RoI, int64 [R], 0..T-1; -1 gives a target of zeros.
        size: Side of a target in bins, 14 or 28.
        aligned: As for :func:`model.ops.roi_align.roi_align`.
        binarise: True: 1 where the average is at least 0.5, else 0; False: the average, 0..1.

    Returns:
        float32 [R, size, size].

    Raises:
        ValueError: A shape, type or device does not fit, a crop reaches out of its data or picture, or an
            index is out of range. On CUDA, where looking at the data would mean waiting, a wrong crop or index
            stops the device with an assertion that names it.
    """
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"mask data is {data.dtype} {list(data.shape)}, wanted uint8 [S] of 0 and 1")
    if offsets.dtype != torch.int64 or extents.dtype != torch.int64 or crop_index.dtype != torch.int64:
        raise ValueError(
            f"mask targets got offsets of {offsets.dtype}, extents of {extents.dtype} and crop_index of "
            f"{crop_index.dtype}, wanted int64 for all three"
        )
    if offsets.dim() != 1 or extents.shape != (*offsets.shape, 6):
        raise ValueError(
            f"mask targets got offsets {list(offsets.shape)} and extents {list(extents.shape)}, wanted [T] and [T, 6]"
        )
    if rois.dim() != 2 or rois.shape[1] != 4 or crop_index.shape != rois.shape[:1] or size < 1:
        raise ValueError(
            f"mask targets got rois {list(rois.shape)}, crop_index {list(crop_index.shape)} and size "
            f"{size}, wanted [R, 4], [R] and at least 1"
        )
    if any(tensor.device != data.device for tensor in (offsets, extents, rois, crop_index)):
        raise ValueError(
            f"mask targets got data on {data.device}, offsets on {offsets.device}, extents on {extents.device}, rois "
            f"on {rois.device} and crop_index on {crop_index.device}: move them to one device"
        )
    extension.check_device("mask data", data)
    operator = torch.ops.maskray.mask_targets
    targets = extension.call(
        operator, data, offsets, extents, rois.detach().float(), crop_index, size, aligned, binarise
    )
    return cast(Tensor, targets)


def _mask_targets_fake(
    data: Tensor, offsets: Tensor, extents: Tensor, rois: Tensor, crop_index: Tensor, size: int, *rules: bool
) -> Tensor:
    return rois.new_empty((rois.shape[0], size, size), dtype=torch.float32)


def polygon_crops(
    points: Tensor, ring_ends: Tensor, object_ends: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Tight bitmaps of objects given as polygons, on the CPU; the pixels are those of pycocotools' rasteriser.

    An object covers what any of its rings covers, each by the even-odd rule.

    Args:
        points: Corners x, y of all rings, one after the other, in pixels of the picture, float64 [P, 2]. They may lie
            outside the picture, 2^27 pixels at most.
        ring_ends: One past the last corner of each ring, int64 [R], ascending.
        object_ends: One past the last ring of each object, int64 [G], ascending.
        height: Of the picture, pixels.
        width: Of the picture, pixels.

    Returns:
        Pixels 0 or 1 of the bitmaps, row by row and one after the other, uint8 [S], and their extents (y0, x0, h, w)
        in the picture, int64 [G, 4]; an object that covers no pixel has zeros.

    Raises:
        ValueError: A shape, type, size or device does not fit, a corner is not finite or too far, ends do not ascend
            to the number of corners and rings, or the objects' boxes hold more than 2^40 pixels.
    """
    if points.dtype != torch.float64 or points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"polygons got corners {points.dtype} {list(points.shape)}, wanted float64 [P, 2]")
    for name, ends in (("ring_ends", ring_ends), ("object_ends", object_ends)):
        if ends.dtype != torch.int64 or ends.dim() != 1:
            raise ValueError(f"polygons got {name} {ends.dtype} {list(ends.shape)}, wanted int64, one number each")
    if not (1 <= height < 2**26 and 1 <= width < 2**26):
        raise ValueError(f"polygons got a picture of {height} x {width} pixels, wanted 1 to 2^26 - 1 a side")
    if any(tensor.device.type != "cpu" for tensor in (points, ring_ends, object_ends)):
        raise ValueError("polygons are rasterised on the CPU: move corners and ends there")
    operator = torch.ops.maskray.polygon_crops
    return cast(tuple[Tensor, Tensor], extension.call(operator, points, ring_ends, object_ends, height, width))


def _polygon_crops_fake(
    points: Tensor, ring_ends: Tensor, object_ends: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    return points.new_empty((total,), dtype=torch.uint8), object_ends.new_empty((object_ends.shape[0], 4))


def rle_areas(counts: Tensor, ends: Tensor, pixels: Tensor) -> Tensor:
    """Areas of masks from their compressed run lengths, on the CPU, where these are certainly sound.

    Args:
        counts: COCO's strings one after the other, uint8 [S].
        ends: One past the last byte of each string, int64 [N], ascending.
        pixels: Height times width of each mask's picture, int64 [N].

    Returns:
        int64 [N]: pixels set; -1 of a string that is empty, unsound, not as pycocotools would write it, does not sum to
        its picture, or has a number of more than 30 bits.

    Raises:
        ValueError: A shape, type or device does not fit, or ends do not ascend within ``counts``.
    """
    wanted = ((counts, torch.uint8), (ends, torch.int64), (pixels, torch.int64))
    if any(t.dtype != dtype or t.dim() != 1 or t.device.type != "cpu" for t, dtype in wanted) or (
        ends.shape != pixels.shape
    ):
        got = ", ".join(f"{t.dtype} {list(t.shape)} on {t.device}" for t, _ in wanted)
        raise ValueError(f"rle_areas got {got}; wanted uint8 [S], int64 [N] and int64 [N] on the CPU")
    return cast(Tensor, extension.call(torch.ops.maskray.rle_areas, counts, ends, pixels))


def _rle_areas_fake(counts: Tensor, ends: Tensor, pixels: Tensor) -> Tensor:
    return torch.empty_like(ends)


def mask_rle(probs: Tensor, boxes: Tensor, sizes_hw: Tensor, threshold: float = 0.5, *, padded: bool) -> MaskRuns:
    """Run lengths of predicted masks pasted into their pictures, without ever making a full-size mask.

    ``padded=False`` is the rule of Detectron2 and MMDetection: ``grid_sample`` at pixel centres, and a pixel
    belongs to the mask if its probability is at least the threshold. It covers the whole picture, as those
    two do on a GPU; on a CPU they stop one pixel outside the box, which at a threshold of 0.5 or more changes
    nothing. ``padded=True`` is torchvision's: map padded by one cell, box grown and cut to whole pixels,
    bilinear resize, above the threshold. Run lengths are made on the CPU: inputs on a GPU are copied there, M x M
    numbers a detection, and that waits for them.

    Args:
        probs: Probabilities, [D, M, M], 0..1.
        boxes: x1, y1, x2, y2 in pixels of the picture, [D, 4].
        sizes_hw: Height and width of each detection's picture, int64 [D, 2].
        threshold: Strictly between 0 and 1.
        padded: Which paste rule.

    Returns:
        Strings, areas and tight boxes, on the CPU. A box with NaN gives an empty mask, and so does one without extent,
        unless torchvision's rule rounds it to a pixel.

    Raises:
        ValueError: A shape, type, device or the threshold does not fit, or a picture has 2^31 pixels or more.
    """
    shape = probs.shape
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 1:
        raise ValueError(f"mask_rle got probabilities {list(shape)}, wanted [D, M, M]")
    if boxes.shape != (shape[0], 4) or sizes_hw.shape != (shape[0], 2) or sizes_hw.dtype != torch.int64:
        raise ValueError(
            f"mask_rle got boxes {list(boxes.shape)} and sizes_hw {sizes_hw.dtype} {list(sizes_hw.shape)}, "
            f"wanted [{shape[0]}, 4] and int64 [{shape[0]}, 2]"
        )
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"mask_rle got threshold {threshold}, wanted a number strictly between 0 and 1")
    operator = torch.ops.maskray.mask_rle
    joined, ends, areas, tight = extension.call(
        operator,
        probs.detach().float().cpu(),
        boxes.detach().float().cpu(),
        sizes_hw.cpu(),
        float(threshold),
        padded,
    )
    text = joined.numpy().tobytes()
    bounds = [0, *ends.tolist()]
    counts = [text[begin:end] for begin, end in itertools.pairwise(bounds)]
    return MaskRuns(counts, areas, tight)


def _mask_rle_fake(
    probs: Tensor, boxes: Tensor, sizes_hw: Tensor, threshold: float, padded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = probs.shape[0]
    total = torch.library.get_ctx().new_dynamic_size()
    return (
        probs.new_empty((total,), dtype=torch.uint8),
        probs.new_empty((count,), dtype=torch.int64),
        probs.new_empty((count,), dtype=torch.int64),
        probs.new_empty((count, 4), dtype=torch.float32),
    )


torch.library.register_fake("maskray::mask_targets", _mask_targets_fake)
torch.library.register_fake("maskray::polygon_crops", _polygon_crops_fake)
torch.library.register_fake("maskray::rle_areas", _rle_areas_fake)
torch.library.register_fake("maskray::mask_rle", _mask_rle_fake)

"""Mask targets are RoIAlign of the whole mask bit for bit; run lengths are pycocotools' of a whole paste."""

import math

import numpy as np
import pytest
import torch
import torchvision
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from model.ops.masks import mask_rle, mask_targets, rle_areas
from tests.oracles import roi_align as naive
from tests.oracles.paste import paste

HEIGHT, WIDTH = 61, 83


def pack(masks):
    """Masks uint8 [T, H, W] as data, offsets, extents of tight crops."""
    data, offsets, extents, start = [], [], [], 0
    for mask in masks:
        rows, columns = (torch.nonzero(mask.any(axis))[:, 0].tolist() for axis in (1, 0))
        y0, y1 = (rows[0], rows[-1] + 1) if rows else (0, 0)
        x0, x1 = (columns[0], columns[-1] + 1) if columns else (0, 0)
        data.append(mask[y0:y1, x0:x1].reshape(-1))
        offsets.append(start)
        extents.append([y0, x0, y1 - y0, x1 - x0, *mask.shape])
        start += len(data[-1])
    return torch.cat(data), torch.tensor(offsets), torch.tensor(extents)


def masks():
    """Ellipses, one over the border; a full, an empty, a one-pixel and a speckled mask."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    shapes = [(20, 30, 12, 20), (50, 10, 30, 15), (30, 80, 10, 22), (5, 5, 3, 3)]
    drawn = [((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 for cy, cx, ry, rx in shapes]
    one_pixel = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    one_pixel[17, 40] = True
    speckled = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) < 0.5
    drawn += [torch.ones(HEIGHT, WIDTH, dtype=torch.bool), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)]
    return torch.stack([*drawn, one_pixel, speckled]).to(torch.uint8)


def rois(count=40):
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) - 10
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 70 + 0.2], 1)
    edges = [[-30.0, -30, 120, 100], [0, 0, WIDTH, HEIGHT], [200, 200, 260, 260], [40, 30, 20, 10], [10, 10, 10, 10]]
    return torch.cat([boxes, torch.tensor(edges), boxes[:10].round()])


@pytest.mark.parametrize("size", [1, 5, 14, 28])
@pytest.mark.parametrize("aligned", [True, False])
def test_targets_are_roi_align_of_the_whole_mask_bit_for_bit(size, aligned):
    whole, boxes = masks(), rois()
    index = torch.arange(len(boxes)) % len(whole)
    image = torch.cat([index[:, None].float(), boxes], 1)
    expected = torchvision.ops.roi_align(whole[:, None].float(), image, size, 1.0, 0, aligned)[:, 0]
    packed = pack(whole)
    assert torch.equal(mask_targets(*packed, boxes, index, size, aligned=aligned, binarise=False), expected)
    binary = mask_targets(*packed, boxes, index, size, aligned=aligned, binarise=True)
    assert torch.equal(binary, (expected >= 0.5).float())


def test_targets_match_the_naive_loop():
    whole, boxes = masks(), rois(3)[:3]
    index = torch.tensor([0, 2, 7])
    image = torch.cat([index[:, None].float(), boxes], 1)
    expected = naive.roi_align(whole[:, None], image, (6, 6), 1.0, 0, True)[:, 0]
    soft = mask_targets(*pack(whole), boxes, index, 6, aligned=True, binarise=False)
    torch.testing.assert_close(soft.double(), expected, atol=1e-5, rtol=0)


def test_soft_targets_are_torchvisions():
    whole, boxes = masks(), rois()
    index = torch.arange(len(boxes)) % len(whole)
    expected = project_masks_on_boxes(whole, boxes, index, 28)
    assert torch.equal(mask_targets(*pack(whole), boxes, index, 28, aligned=False, binarise=False), expected)


def test_no_crop_no_target():
    packed, boxes = pack(masks()), rois(2)[:2]
    targets = mask_targets(*packed, boxes, torch.tensor([-1, 4]), 14, aligned=True, binarise=True)
    assert not targets[0].any()
    nothing = (torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    extents = torch.zeros(0, 6, dtype=torch.int64)
    targets = mask_targets(*nothing, extents, boxes, torch.tensor([-1, -1]), 14, aligned=True, binarise=True)
    assert targets.shape == (2, 14, 14)
    assert not targets.any()
    none = mask_targets(*packed, boxes[:0], torch.tensor([]).long(), 14, aligned=True, binarise=True)
    assert none.shape == (0, 14, 14)


@pytest.mark.parametrize("corners", [[math.nan, 0, 9, 9], [0, 0, math.inf, 9], [-1e30, -1e30, 1e30, 1e30]])
def test_boxes_that_are_not_boxes_give_finite_targets(corners):
    boxes = torch.tensor([corners])
    for aligned in (True, False):
        targets = mask_targets(*pack(masks()), boxes, torch.tensor([4]), 14, aligned=aligned, binarise=False)
        assert targets.isfinite().all()


def test_targets_do_not_depend_on_the_simd_variant(use_simd):
    whole, boxes = masks(), rois()
    index = torch.arange(len(boxes)) % len(whole)
    results = []
    for variant in range(torch.ops.maskray.simd_variants()):
        use_simd(variant)
        results.append(mask_targets(*pack(whole), boxes, index, 28, aligned=True, binarise=False))
    assert all(torch.equal(results[0], other) for other in results)


def test_targets_compile_as_one_graph_and_pass_opcheck():
    boxes = rois(4)
    index = torch.arange(len(boxes)) % 8
    inputs = (*pack(masks()), boxes, index)

    def targets(*tensors):
        return mask_targets(*tensors, 14, aligned=True, binarise=True)

    compiled = torch.compile(targets, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), targets(*inputs))
    torch.library.opcheck(torch.ops.maskray.mask_targets.default, (*inputs, 14, True, True))


def crop(extent, index=0, pixels=12):
    boxes = torch.tensor([[0.0, 0, 4, 4]])
    arguments = (torch.zeros(pixels, dtype=torch.uint8), torch.tensor([0]), torch.tensor([extent]), boxes)
    return mask_targets(*arguments, torch.tensor([index]), 14, aligned=True, binarise=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop([0, 0, 3, 4, 10, 10], index=1), "RoI 0 wants crop 1, there are 1"),
        (lambda: crop([0, 0, 3, 4, 10, 10], index=-2), "RoI 0 wants crop -2"),
        (lambda: crop([0, 0, 3, 5, 10, 10]), "crop 0 of 3 x 5 at offset 0 is not inside the 12 bytes"),
        (lambda: crop([8, 0, 3, 4, 10, 10]), "crop 0 has extent .* wanted it inside its H x W picture"),
        (lambda: crop([-1, 0, 3, 4, 10, 10]), "crop 0 has extent"),
        (lambda: crop([0, 0, 2**40, 2**40, 2**62, 2**62]), "is not inside the 12 bytes"),
        (lambda: crop([0, 0, 3, 4, 10]), r"extents \[1, 5\], wanted \[T\] and \[T, 6\]"),
    ],
)
def test_wrong_crops_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def detections(size, count=40):
    """Smooth random probabilities and boxes, inside, across and outside the picture."""
    generator = torch.Generator().manual_seed(size)
    coarse = torch.rand(count, 1, size // 4 + 2, size // 4 + 2, generator=generator)
    probs = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[:, 0]
    probs[0], probs[1], probs[2] = 1.0, 0.0, 0.5
    probs[3] = torch.rand(size, size, generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    half = torch.rand(count, 2, generator=generator) * 30 + 0.2
    boxes = torch.cat([centre - half, centre + half], 1)
    boxes[0], boxes[4] = torch.tensor([0.0, 0, WIDTH, HEIGHT]), torch.tensor([-50.0, -50, 200, 200])
    boxes[5] += 1000
    boxes[6] = boxes[6].round()
    return probs, boxes, torch.tensor([[HEIGHT, WIDTH]]).expand(count, 2)


def soft_pastes(probs, boxes, padded):
    pairs = zip(probs.numpy(), boxes.numpy(), strict=True)
    return np.stack([paste(prob, box, (HEIGHT, WIDTH), padded) for prob, box in pairs])


@pytest.mark.parametrize("size", [1, 3, 14, 28])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.75])
def test_runs_are_pycocotools_of_the_whole_paste(size, padded, threshold):
    probs, boxes, sizes = detections(size)
    soft = soft_pastes(probs, boxes, padded)
    whole = soft > np.float32(threshold) if padded else soft >= np.float32(threshold)
    encoded = coco_mask.encode(np.asfortranarray(whole.transpose(1, 2, 0).astype(np.uint8)))
    runs = mask_rle(probs, boxes, sizes, threshold, padded=padded)
    assert runs.counts == [code["counts"] for code in encoded]
    assert runs.areas.tolist() == coco_mask.area(encoded).tolist()
    assert runs.boxes_xywh.tolist() == coco_mask.toBbox(encoded).tolist()


def grid_sampled(probs, boxes):
    """The paste of Detectron2 and MMDetection over the whole picture."""
    y, x = torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5
    y = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    shape = (len(boxes), HEIGHT, WIDTH)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    return torch.nn.functional.grid_sample(probs[:, None], grid, align_corners=False)[:, 0].numpy()


@pytest.mark.parametrize("padded", [False, True])
def test_the_paste_is_the_peers(padded):
    probs, boxes, _ = detections(28)
    if padded:
        theirs = paste_masks_in_image(probs[:, None], boxes, (HEIGHT, WIDTH))[:, 0].numpy()
    else:
        theirs = grid_sampled(probs, boxes)
    assert np.abs(soft_pastes(probs, boxes, padded) - theirs).max() < 1e-5


@pytest.mark.parametrize("padded", [False, True])
def test_boxes_without_extent_or_number(padded):
    odd = [[5.0, 5, 5, 5], [math.nan, 0, 5, 5], [0, 0, math.inf, 5], [0, 0, 1e30, 5], [-1e8, 0, 1e8, 9]]
    boxes = torch.tensor(odd)
    runs = mask_rle(torch.ones(5, 14, 14), boxes, torch.tensor([[20, 30]]).expand(5, 2), padded=padded)
    assert runs.areas[1:4].tolist() == [0, 0, 0]
    assert runs.boxes_xywh[1:4].tolist() == [[0.0] * 4] * 3
    assert runs.areas[4] >= 8 * 30
    assert int(runs.areas[0]) == int(padded)


def test_no_detections_and_empty_pictures():
    runs = mask_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), torch.zeros(0, 2).long(), padded=False)
    assert runs.counts == []
    box, size_hw = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0, 7]])
    runs = mask_rle(torch.ones(1, 28, 28), box, size_hw, padded=False)
    assert runs.counts == [coco_mask.encode(np.zeros((0, 7), np.uint8, order="F"))["counts"]]


def test_run_lengths_pass_opcheck():
    probs, boxes, sizes = detections(14, count=8)
    torch.library.opcheck(torch.ops.maskray.mask_rle.default, (probs, boxes, sizes.contiguous(), 0.5, False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 14, 7), torch.zeros(1, 4), torch.ones(1, 2).long()), r"\[1, 14, 7\], wanted \[D, M, M\]"),
        ((torch.ones(1, 14, 14), torch.zeros(2, 4), torch.ones(1, 2).long()), r"boxes \[2, 4\]"),
        ((torch.ones(1, 14, 14), torch.zeros(1, 4), torch.ones(1, 2)), "sizes_hw torch.float32"),
        ((torch.ones(1, 14, 14), torch.zeros(1, 4), torch.ones(1, 2).long(), 0.0), "threshold 0.0"),
        ((torch.ones(1, 14, 14), torch.zeros(1, 4), torch.tensor([[2**20, 2**20]])), r"picture size 1048576 x 1048576"),
    ],
)
def test_wrong_detections_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        mask_rle(*arguments, padded=False)
    assert "\n" not in str(error.value)


def test_areas_of_run_lengths_pass_opcheck_and_wrong_input_is_named():
    text = torch.frombuffer(bytearray(b"052"), dtype=torch.uint8)
    ends, pixels = torch.tensor([3]), torch.tensor([7])
    assert rle_areas(text, ends, pixels).tolist() == [5]
    torch.library.opcheck(torch.ops.maskray.rle_areas.default, (text, ends, pixels))
    with pytest.raises(ValueError, match=r"rle_areas got torch.int8 \[3\] on cpu"):
        rle_areas(text.to(torch.int8), ends, pixels)
    with pytest.raises(ValueError, match=r"torch.int64 \[1\] on cpu, torch.int64 \[2\] on cpu; wanted"):
        rle_areas(text, ends, pixels.repeat(2))
    with pytest.raises(ValueError, match=r"string 0 ends at 4 of 3 bytes, wanted 0\.\.3"):
        rle_areas(text, ends + 1, pixels)

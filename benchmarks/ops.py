"""One table: the compiled operators beside torchvision and pycocotools, same input, same process, taking turns.

    PYTHONPATH=. python benchmarks/ops.py [--threads 1] [--rounds 9] [--only roi_align] [--device cuda]

Times are medians in milliseconds. "bound" is the least time the memory needs for the bytes that must move, at the
bandwidth measured in the same run (a sum over a large tensor, read only).
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from model.ops.conv import conv2d
from model.ops.masks import mask_rle, mask_targets, polygon_crops
from model.ops.nms import nms
from model.ops.pictures import resize_bytes
from model.ops.roi_align import pyramid_roi_align, roi_align

IMAGES, CHANNELS, HEIGHT, WIDTH, STRIDE = 2, 256, 200, 272, 4


class Case(NamedTuple):
    """Two ways to the same result, and the bytes that either must move (0: not stated)."""

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    num_bytes: int = 0


def wait_for_device() -> None:
    """Until everything asked of the GPU so far is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def median_ms(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median of each function's times, the functions taking turns."""
    times: list[list[float]] = [[] for _ in functions]
    for i in range(rounds + 1):
        for function, spent in zip(functions, times, strict=True):
            wait_for_device()
            start = time.perf_counter()
            result = function()
            wait_for_device()
            if i > 0:  # the first turn warms up
                spent.append((time.perf_counter() - start) * 1e3)
            del result
    return [statistics.median(spent) for spent in times]


def random_rois(count: int) -> torch.Tensor:
    """[count, 5]: sides log-uniform from 16 to 224 pixels, the range of an FPN's finest levels."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.tensor([WIDTH * STRIDE, HEIGHT * STRIDE])
    centre = torch.rand(count, 2, generator=generator) * picture
    half = torch.exp2(torch.rand(count, 2, generator=generator) * 3.8 + 3)
    corners = torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, picture)], 1)
    return torch.cat([torch.randint(0, IMAGES, (count, 1), generator=generator).float(), corners], 1)


def touched_cells(rois: torch.Tensor) -> int:
    """Distinct cells of the map under the RoIs: what a perfect cache would read once."""
    seen = np.zeros((IMAGES, HEIGHT, WIDTH), bool)
    for image, x1, y1, x2, y2 in (rois / torch.tensor([1.0] + [STRIDE] * 4)).int().tolist():
        seen[image, y1 : y2 + 1, x1 : x2 + 1] = True
    return int(seen.sum())


def roi_align_cases(device: str, dtype: torch.dtype = torch.float32) -> list[Case]:
    """Forward, and forward with backward, each side in the memory layout it is made for."""
    nchw = torch.randn(IMAGES, CHANNELS, HEIGHT, WIDTH).to(device, dtype)
    nhwc = nchw.contiguous(memory_format=torch.channels_last)
    cases = []
    for count, size in ((512, 7), (128, 14)):
        rois = random_rois(count).to(device)
        for sampling, aligned in ((2, False), (0, True)):
            settings = (size, 1 / STRIDE, sampling, aligned)
            kind = f"{count} RoIs {size}x{size}, {'sampling 2' if sampling else 'adaptive, aligned'}"
            kind += ", bfloat16" if dtype == torch.bfloat16 else ""
            grad = torch.randn(count, CHANNELS, size, size).to(device, dtype)
            ours_grad = grad.contiguous(memory_format=torch.channels_last)

            def ours(rois: torch.Tensor = rois, settings: tuple = settings) -> torch.Tensor:
                return roi_align(nhwc, rois, *settings)

            def theirs(rois: torch.Tensor = rois, settings: tuple = settings) -> torch.Tensor:
                return torchvision.ops.roi_align(nchw, rois.to(dtype), *settings)

            def ours_both(
                rois: torch.Tensor = rois, settings: tuple = settings, grad: torch.Tensor = ours_grad
            ) -> torch.Tensor:
                maps = nhwc.detach().requires_grad_()
                return torch.autograd.grad(roi_align(maps, rois, *settings), maps, grad)[0]

            def theirs_both(
                rois: torch.Tensor = rois, settings: tuple = settings, grad: torch.Tensor = grad
            ) -> torch.Tensor:
                maps = nchw.detach().requires_grad_()
                pooled = torchvision.ops.roi_align(maps, rois.to(dtype), *settings)
                return torch.autograd.grad(pooled, maps, grad)[0]

            once = (touched_cells(rois.cpu()) * CHANNELS + grad.numel()) * nchw.element_size()
            whole = nchw.numel() * nchw.element_size()
            cases.append(Case(f"roi_align forward, {kind}", ours, theirs, once))
            cases.append(Case(f"roi_align forward + backward, {kind}", ours_both, theirs_both, 2 * once + whole))
    return cases


def gradient_cases(device: str) -> list[Case]:
    """The backward pass alone, and the part of it that writes a fresh gradient of zeros (no RoIs)."""
    rois = random_rois(512).to(device)
    grad = torch.randn(512, CHANNELS, 7, 7, device=device)
    ours_grad = grad.contiguous(memory_format=torch.channels_last)
    size = (IMAGES, CHANNELS, HEIGHT, WIDTH)
    cases = []
    for count, name in ((512, "roi_align backward alone, 512 RoIs 7x7, sampling 2"), (0, "  of that the fill")):
        levels = torch.zeros(count, dtype=torch.int64, device=device)

        def ours(count: int = count, levels: torch.Tensor = levels) -> object:
            settings = (list(size), [1 / STRIDE], 2, False)
            return torch.ops.maskray.roi_align_backward(ours_grad[:count], rois[:count], levels, *settings)

        def theirs(count: int = count) -> object:
            operator = torch.ops.torchvision._roi_align_backward
            return operator(grad[:count], rois[:count], 1 / STRIDE, 7, 7, *size, 2, False)

        moved = grad[:count].numel() + size[0] * size[1] * size[2] * size[3]
        cases.append(Case(name, ours, theirs, moved * 4))
    return cases


def pyramid_cases(device: str) -> list[Case]:
    """Four levels in one call beside four calls that split the RoIs and put the results together."""
    maps = [
        torch.randn(IMAGES, CHANNELS, HEIGHT >> i, WIDTH >> i, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for i in range(4)
    ]
    scales = [1 / (STRIDE << i) for i in range(4)]
    rois = random_rois(512).to(device)
    levels = torch.randint(0, 4, (512,), generator=torch.Generator().manual_seed(2)).to(device)

    def one_call() -> torch.Tensor:
        return pyramid_roi_align(maps, rois, levels, 7, scales, 2, aligned=False)

    def four_calls() -> torch.Tensor:
        out = torch.empty(512, CHANNELS, 7, 7, device=device).contiguous(memory_format=torch.channels_last)
        for i, (map_, scale) in enumerate(zip(maps, scales, strict=True)):
            (index,) = torch.nonzero(levels == i, as_tuple=True)
            out[index] = roi_align(map_, rois[index], 7, scale, 2, aligned=False)
        return out

    return [Case("pyramid of 4 levels, 512 RoIs 7x7 (beside our four calls)", one_call, four_calls)]


def nms_cases(device: str) -> list[Case]:
    """Two images; dense candidates in one group, five levels, and few valid among many."""
    cases = []
    for groups, count, valid_count in ((1, 4000, 4000), (5, 5000, 5000), (80, 80000, 400)):
        generator = torch.Generator().manual_seed(count)
        centre = torch.rand(IMAGES, count, 2, generator=generator) * 800
        half = torch.rand(IMAGES, count, 2, generator=generator) * 60 + 8
        boxes = torch.cat([centre - half, centre + half], -1)
        scores = torch.rand(IMAGES, count, generator=generator)
        group = torch.randint(0, groups, (IMAGES, count), generator=generator)
        valid = torch.zeros(IMAGES, count, dtype=torch.bool)
        valid[:, torch.randperm(count, generator=generator)[:valid_count]] = True
        inputs = tuple(tensor.to(device) for tensor in (boxes, scores, group, valid))

        def ours(inputs: tuple = inputs) -> torch.Tensor:
            return nms(*inputs, 0.5)

        def theirs(inputs: tuple = inputs) -> list[torch.Tensor]:
            kept = []
            for boxes, scores, group, valid in zip(*inputs, strict=True):
                (index,) = torch.nonzero(valid, as_tuple=True)
                kept.append(torchvision.ops.batched_nms(boxes[index], scores[index], group[index], 0.5))
            return kept

        cases.append(Case(f"nms, 2 x {count} boxes, {valid_count} valid, {groups} groups", ours, theirs))
    return cases


def mask_cases(device: str) -> list[Case]:
    """Targets of 128 RoIs from 20 masks, and run lengths."""
    generator = torch.Generator().manual_seed(5)
    height, width, num_masks = 800, 1067, 20
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.rand(num_masks, 2, generator=generator) * torch.tensor([width, height])
    radius = torch.rand(num_masks, 2, generator=generator) * 120 + 10
    inside = ((x - centre[:, 0, None, None]) / radius[:, 0, None, None]) ** 2
    masks = (inside + ((y - centre[:, 1, None, None]) / radius[:, 1, None, None]) ** 2 < 1).to(torch.uint8)
    low = (centre - radius).floor().clamp(min=0).long()
    high = torch.minimum((centre + radius).ceil().long() + 1, torch.tensor([width, height]))
    crops = [mask[a[1] : b[1], a[0] : b[0]] for mask, a, b in zip(masks, low.tolist(), high.tolist(), strict=True)]
    sizes = torch.tensor([crop.shape for crop in crops])
    extents = torch.cat([low.flip(1), sizes, torch.tensor([[height, width]]).expand(num_masks, 2)], 1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.prod(1).cumsum(0)[:-1]])
    data = torch.cat([crop.reshape(-1) for crop in crops])
    index = torch.randint(0, num_masks, (128,), generator=generator)
    shift = torch.randn(128, 4, generator=generator) * 8
    rois = torch.cat([low, high], 1)[index] + shift
    data, offsets, extents, masks = (tensor.to(device) for tensor in (data, offsets, extents, masks))
    rois, index = rois.to(device), index.to(device)

    def ours() -> torch.Tensor:
        return mask_targets(data, offsets, extents, rois, index, 28, aligned=False, binarise=False)

    def theirs() -> torch.Tensor:
        return project_masks_on_boxes(masks, rois, index, 28)

    cases = [Case("mask_targets, 128 RoIs 28x28, 20 masks 800x1067", ours, theirs)]
    if device == "cuda":
        return cases  # the others are made on the CPU
    return [*cases, run_length_case(generator), polygon_case(num_masks, height, width)]


def polygon_case(num_masks: int, height: int, width: int) -> Case:
    """Tight bitmaps of outlines of 60 corners, beside pycocotools' whole ones."""
    rng = np.random.default_rng(6)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], 1)
    sides = rng.uniform(20, 240, (num_masks, 1, 2)) / 2
    points = rng.uniform(0.2, 0.8, (num_masks, 1, 2)) * [width, height] + outline * sides * rng.uniform(
        0.7, 1, (num_masks, 60, 1)
    )
    ends = torch.arange(1, num_masks + 1)

    def ours_drawn() -> object:
        return polygon_crops(torch.from_numpy(points.reshape(-1, 2)), ends * 60, ends, height, width)

    def theirs_drawn() -> object:
        return [coco_mask.decode(coco_mask.frPyObjects([ring.ravel()], height, width)) for ring in points]

    return Case(
        f"polygon_crops, {num_masks} outlines in {height}x{width} (beside pycocotools)", ours_drawn, theirs_drawn
    )


def run_length_case(generator: torch.Generator) -> Case:
    """Run lengths of 100 detections in a 640 x 480 picture, beside a paste and an encoding."""
    coarse = torch.rand(100, 1, 7, 7, generator=generator)
    probs = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear")[:, 0]
    centre = torch.rand(100, 2, generator=generator) * torch.tensor([640, 480])
    half = torch.exp2(torch.rand(100, 2, generator=generator) * 4 + 3.3)
    boxes = torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, torch.tensor([640, 480]))], 1)
    sizes_hw = torch.tensor([[480, 640]]).expand(100, 2).contiguous()

    def ours_runs() -> object:
        return mask_rle(probs, boxes, sizes_hw, padded=True)

    def theirs_runs() -> object:
        pasted = paste_masks_in_image(probs[:, None], boxes, (480, 640))[:, 0] > 0.5
        return coco_mask.encode(np.asfortranarray(pasted.numpy().transpose(1, 2, 0).astype(np.uint8)))

    return Case("mask_rle, 100 detections at 640x480 (beside paste + encode)", ours_runs, theirs_runs)


def picture_cases(device: str) -> list[Case]:
    """A picture of 480 x 640 resized to 800 x 1066, beside OpenCV on one thread."""
    if device != "cpu":
        return []
    cv2.setNumThreads(1)
    picture = np.random.default_rng(7).integers(0, 256, (480, 640, 3), np.uint8)
    out = np.empty((800, 1066, 3), np.uint8)
    tensors = torch.from_numpy(picture), torch.from_numpy(out)
    ours = functools.partial(resize_bytes, *tensors)
    theirs = functools.partial(cv2.resize, picture, (1066, 800), dst=out, interpolation=cv2.INTER_LINEAR)
    return [Case("resize_bytes, 480x640 to 800x1066 (beside OpenCV)", ours, theirs, out.nbytes + picture.nbytes)]


def convolution_cases(device: str) -> list[Case]:
    """3 x 3 convolutions of 256 channels beside torch's on contiguous maps: a finest level, and 128 RoI crops."""
    if device != "cpu":
        return []
    cases = []
    for shape, kind in (((1, 256, HEIGHT, WIDTH), "P2 of a picture"), ((128, 256, 14, 14), "128 RoIs 14x14")):
        maps, grad = torch.randn(shape), torch.randn(shape)
        filters = torch.randn(256, 256, 3, 3) / 48
        last = [value.contiguous(memory_format=torch.channels_last) for value in (maps, filters, grad)]

        def ours(last: list[torch.Tensor] = last) -> object:
            return conv2d(last[0], last[1], padding=(1, 1))

        def theirs(maps: torch.Tensor = maps, filters: torch.Tensor = filters) -> object:
            return torch.nn.functional.conv2d(maps, filters, padding=1)

        def ours_both(last: list[torch.Tensor] = last) -> object:
            maps, filters = (value.detach().requires_grad_() for value in last[:2])
            return torch.autograd.grad(conv2d(maps, filters, padding=(1, 1)), (maps, filters), last[2])

        def theirs_both(all_: tuple[torch.Tensor, ...] = (maps, filters, grad)) -> object:
            maps, filters = (value.detach().requires_grad_() for value in all_[:2])
            return torch.autograd.grad(torch.nn.functional.conv2d(maps, filters, padding=1), (maps, filters), all_[2])

        cases.append(Case(f"conv 3x3 forward, {kind} (beside torch's)", ours, theirs))
        cases.append(Case(f"conv 3x3 forward + backward, {kind} (beside torch's)", ours_both, theirs_both))
    return cases


def bandwidth(device: str) -> float:
    """Bytes a millisecond of a read-only pass over 256 MB, on a GPU over 4 GB."""
    data = torch.ones((64 if device == "cpu" else 1024) << 20, device=device)
    (spent,) = median_ms([data.sum], 9)
    return data.numel() * 4 / spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    groups: dict[str, Callable[[str], list[Case]]] = {
        "roi_align": roi_align_cases,
        "bfloat16": lambda device: roi_align_cases(device, torch.bfloat16) if device == "cuda" else [],
        "gradient": gradient_cases,
        "pyramid": pyramid_cases,
        "nms": nms_cases,
        "mask": mask_cases,
        "picture": picture_cases,
        "conv": convolution_cases,
    }
    rate = bandwidth(args.device)
    variant = ("base", "AVX2", "AVX-512")[torch.ops.maskray.simd_variants() - 1]
    machine = f"{args.threads} thread(s), {variant}" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {machine}")
    print(f"memory read {rate / 1e6:.1f} GB/s, load before the run {os.getloadavg()[0]:.1f}\n")
    print(
        f"| {'case':72} | ours ms | peer ms | ratio | bound ms |\n|{'-' * 74}|---------|---------|-------|----------|"
    )
    for prefix, build in groups.items():
        if args.only and not args.only.startswith(prefix):
            continue
        for case in build(args.device):
            ours, theirs = median_ms([case.ours, case.theirs], args.rounds)
            bound = f"{case.num_bytes / rate:8.1f}" if case.num_bytes else " " * 8
            print(f"| {case.name:72} | {ours:7.2f} | {theirs:7.2f} | {theirs / ours:5.1f} | {bound} |", flush=True)


if __name__ == "__main__":
    main()

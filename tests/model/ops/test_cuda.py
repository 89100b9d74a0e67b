"""The CUDA kernels: the CPU's results bit for bit, no wait for the device, graphs, and wrong indices that stop it."""

import math
import shutil
import subprocess
import sys

import pytest
import torch

from model.ops import extension
from model.ops.masks import mask_rle, mask_targets
from model.ops.nms import nms
from model.ops.roi_align import pyramid_roi_align, roi_align, roi_warp
from model.ops.roi_pool import roi_pool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(not extension.has_cuda(), reason="the operators were built without CUDA: install nvcc"),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rois(count, reach=40.0, seed=1):
    corner = random(count, 2, seed=seed) * reach + 30
    size = random(count, 2, seed=seed + 1).abs() * reach
    image = torch.arange(count)[:, None] % 2
    return torch.cat([image.float(), corner, corner + size], 1)


def same_bits(first, second):
    """Equal in every bit, but for what NaN carries."""
    first, second = first.cpu(), second.cpu()
    plain = [torch.where(t.isnan(), torch.full_like(t, 7.0), t).contiguous().view(torch.uint8) for t in (first, second)]
    return first.dtype == second.dtype and torch.equal(*plain)


def pooled_and_grads(maps, boxes, levels, size, scales, sampling_ratio, aligned):
    maps = [map_.detach().requires_grad_() for map_ in maps]
    pooled = pyramid_roi_align(maps, boxes, levels, size, scales, sampling_ratio, aligned)
    grad = random(*pooled.shape, seed=9).to(pooled)
    return [pooled.detach(), *torch.autograd.grad(pooled, maps, grad)]


def check_roi_align(maps, boxes, levels, size, sampling_ratio, aligned):
    scales = [0.25 / 2**i for i in range(len(maps))]
    on_cpu = pooled_and_grads(maps, boxes, levels, size, scales, sampling_ratio, aligned)
    on_gpu = pooled_and_grads(
        [map_.cuda() for map_ in maps], boxes.cuda(), levels.cuda(), size, scales, sampling_ratio, aligned
    )
    assert all(same_bits(a, b) for a, b in zip(on_gpu, on_cpu, strict=True))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in on_gpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 8, 33, 256, 300])
@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(0, True), (2, False), (3, True)])
def test_roi_align_has_the_cpus_bits(dtype, channels, sampling_ratio, aligned):
    maps = [random(2, channels, 37, 51).to(dtype), random(2, channels, 18, 25).to(dtype)]
    boxes = rois(70)
    for size in (1, 7, 14, (40, 3)):
        check_roi_align(maps, boxes, torch.arange(70) % 2, size, sampling_ratio, aligned)


def test_roi_align_of_more_rois_than_a_block_lists():
    check_roi_align([random(2, 64, 50, 68)], rois(900, reach=60), torch.zeros(900, dtype=torch.int64), 7, 2, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 70])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_of_odd_boxes_has_the_cpus_bits(dtype, sampling_ratio, aligned):
    odd = [
        [0, 60, 50, 20, 10],  # inverted
        [0, 30.1, 20.2, 30.3, 20.4],  # sub-pixel
        [1, 10, 10, 10, 10],  # a point
        [0, 900, 900, 950, 950],  # outside
        [1, -3000, -2000, 4000, 3500],
        [0, -1e9, -1e9, 1e9, 1e9],
        [0, -1e18, 5, 1e18, 9],
        [1, math.nan, 0, 9, 9],
        [0, 0, math.inf, 9, -math.inf],
    ]
    boxes = torch.tensor(odd, dtype=torch.float64)
    check_roi_align(
        [random(2, 40, 21, 30).to(dtype)], boxes, torch.zeros(9, dtype=torch.int64), 7, sampling_ratio, aligned
    )


def test_roi_align_of_a_map_wider_than_shared_memory_counts():
    check_roi_align([random(2, 4, 5, 2100)], torch.tensor([[0.0, -50, 0, 9000, 20]]), torch.tensor([0]), 7, 0, True)


@pytest.mark.parametrize("shape", [(2, 0, 8, 8), (0, 8, 8, 8), (2, 8, 0, 8), (2, 8, 8, 0)])
def test_roi_align_of_nothing(shape):
    count = 0 if shape[0] == 0 else 3
    check_roi_align([torch.zeros(shape)], rois(count), torch.zeros(count, dtype=torch.int64), 7, 2, False)
    check_roi_align([torch.zeros(2, 8, 9, 9)], rois(0), torch.zeros(0, dtype=torch.int64), 7, 2, False)


def test_roi_align_of_features_and_gradients_that_start_between_packs():
    whole = random(1 + 2 * 9 * 11 * 8).cuda()
    maps = whole[1:].view(2, 9, 11, 8).permute(0, 3, 1, 2).requires_grad_()
    boxes = rois(5).cuda()
    pooled = roi_align(maps, boxes, 3, 0.25)
    grad = random(1 + pooled.numel()).cuda()[1:].view(5, 3, 3, 8).permute(0, 3, 1, 2)
    (from_slice,) = torch.autograd.grad(pooled, maps, grad)
    fresh = maps.detach().clone(memory_format=torch.channels_last).requires_grad_()
    again = roi_align(fresh, boxes, 3, 0.25)
    (from_fresh,) = torch.autograd.grad(again, fresh, grad.clone(memory_format=torch.channels_last))
    assert same_bits(pooled.detach(), again.detach())
    assert same_bits(from_slice, from_fresh)


def test_roi_align_of_nan_and_infinite_features():
    maps = random(2, 8, 12, 12)
    maps[0, 0, 3, 3], maps[1, 2, 5, 5] = math.nan, math.inf
    for dtype in DTYPES:
        check_roi_align([maps.to(dtype)], rois(30), torch.zeros(30, dtype=torch.int64), 7, 2, True)


def test_gradient_is_right_and_repeats():
    maps, boxes = random(2, 3, 9, 11).double().cuda().requires_grad_(), rois(4).double().cuda()
    assert torch.autograd.gradcheck(lambda value: roi_align(value, boxes, (3, 2), 0.25), (maps,))
    assert torch.autograd.gradcheck(lambda value: roi_align(value, boxes, (3, 2), 0.25, 2, mode="max"), (maps,))


def test_more_levels_than_cuda_takes():
    maps = [torch.zeros(1, 1, 2, 2, device="cuda")] * 17
    box, level = torch.zeros(1, 5, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    with pytest.raises(ValueError, match="got 17 feature maps, CUDA takes at most 16"):
        pyramid_roi_align(maps, box, level, 7, [1.0] * 17)


def candidates(images, count, groups=3, whole=False):
    corner = torch.rand(images, count, 2, generator=torch.Generator().manual_seed(3)) * 300
    boxes = torch.cat([corner, corner + random(images, count, 2, seed=4).abs() * 40], -1)
    scores = random(images, count, seed=5)
    if whole:
        boxes, scores = (boxes / 20).round() * 20, (scores * 4).round() / 4
    group = torch.randint(0, groups, (images, count), generator=torch.Generator().manual_seed(6))
    return boxes, scores, group, random(images, count, seed=7) > -1


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 4096, 4097, 9000])
@pytest.mark.parametrize("whole", [False, True])
def test_nms_keeps_the_cpus_boxes(count, whole):
    inputs = candidates(2, count, whole=whole)
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):
        on_gpu = nms(*(tensor.cuda() for tensor in inputs), threshold)
        assert torch.equal(on_gpu.cpu(), nms(*inputs, threshold))


def test_nms_of_few_valid_among_many_and_of_odd_numbers():
    boxes, scores, groups, valid = candidates(3, 40000, groups=80)
    valid &= random(3, 40000, seed=8) > 2
    boxes[0, :50, 1], scores[1, :50], scores[2, :50], scores[2, 50:90] = math.nan, math.nan, math.inf, -math.inf
    scores[0, :20], scores[0, 20:40] = 0.0, -0.0
    valid[:, :90] = True
    on_gpu = nms(*(tensor.cuda() for tensor in (boxes, scores, groups, valid)), 0.5)
    assert torch.equal(on_gpu.cpu(), nms(boxes, scores, groups, valid, 0.5))


def test_nms_of_boxes_that_start_between_two():
    boxes, scores, groups, valid = candidates(1, 200)
    sliced = torch.cat([torch.zeros(2), boxes.flatten()]).cuda()[2:].view(1, 200, 4)
    on_gpu = nms(sliced, scores.cuda(), groups.cuda(), valid.cuda(), 0.5)
    assert torch.equal(on_gpu.cpu(), nms(boxes, scores, groups, valid, 0.5))


def crops():
    height, width = 61, 83
    extents = [[0, 0, 61, 83], [10, 20, 30, 17], [60, 82, 1, 1], [5, 5, 0, 0]]
    sizes = torch.tensor([h * w for _, _, h, w in extents])
    offsets = sizes.cumsum(0) - sizes
    data = (random(int(sizes.sum())) > 0).to(torch.uint8)
    return data, offsets, torch.tensor([[*extent, height, width] for extent in extents])


@pytest.mark.parametrize("size", [1, 14, 28])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("binarise", [True, False])
def test_mask_targets_have_the_cpus_bits(size, aligned, binarise):
    odd = [[40.0, 30, 20, 10], [10, 10, 10, 10], [200, 200, 260, 260], [math.nan, 0, 9, 9], [0, 0, math.inf, 9]]
    boxes = torch.cat([rois(60)[:, 1:], torch.tensor([*odd, [-1e30, -1e30, 1e30, 1e30]])])
    index = torch.arange(len(boxes)) % 5 - 1
    inputs = (*crops(), boxes, index)
    on_gpu = mask_targets(*(tensor.cuda() for tensor in inputs), size, aligned=aligned, binarise=binarise)
    assert same_bits(on_gpu, mask_targets(*inputs, size, aligned=aligned, binarise=binarise))


def test_run_lengths_of_tensors_on_the_gpu_are_the_cpus():
    probs, boxes = torch.rand(6, 28, 28), rois(6)[:, 1:]
    sizes = torch.tensor([[90, 120]]).expand(6, 2)
    on_gpu = mask_rle(probs.cuda(), boxes.cuda(), sizes.cuda(), padded=True)
    on_cpu = mask_rle(probs, boxes, sizes, padded=True)
    assert on_gpu.counts == on_cpu.counts
    assert torch.equal(on_gpu.areas, on_cpu.areas)


def test_ablation_operators_agree_with_the_cpu():
    maps, boxes = random(2, 5, 17, 23), rois(20)
    for pool in (roi_pool, roi_warp, lambda *args: roi_warp(*args, 2, "max")):
        torch.testing.assert_close(pool(maps.cuda(), boxes.cuda(), 7, 0.25).cpu(), pool(maps, boxes, 7, 0.25))


def step_inputs():
    maps = [random(2, 32, 40, 50).cuda().requires_grad_(), random(2, 32, 20, 25).cuda().requires_grad_()]
    boxes, levels = rois(64).cuda(), (torch.arange(64) % 2).cuda()
    candidate = tuple(tensor.cuda() for tensor in candidates(2, 5000))
    masks = tuple(tensor.cuda() for tensor in (*crops(), boxes[:, 1:], torch.arange(64) % 4))
    return maps, boxes, levels, candidate, masks


def step(maps, boxes, levels, candidate, masks):
    """Every operator of a training step."""
    pooled = pyramid_roi_align(maps, boxes, levels, 7, [0.25, 0.125], 2)
    grads = torch.autograd.grad(pooled.square().sum(), maps)
    return [pooled.detach(), *grads, nms(*candidate, 0.5), mask_targets(*masks, 28, aligned=True, binarise=True)]


@pytest.fixture
def waiting_is_an_error():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode(before)


def test_a_step_does_not_wait_for_the_device(waiting_is_an_error):
    inputs = step_inputs()
    waiting_is_an_error()
    step(*inputs)


def test_a_step_runs_on_the_current_stream_and_as_a_graph():
    inputs = step_inputs()
    expected = [tensor.clone() for tensor in step(*inputs)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # graphs want a warm-up on a side stream
            beside = step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(beside, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*inputs)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_operators_pass_opcheck_and_compile():
    maps, boxes, levels, candidate, masks = step_inputs()
    torch.library.opcheck(torch.ops.maskray.roi_align.default, (maps, boxes, levels, 3, 2, [0.25, 0.125], 2, True))
    torch.library.opcheck(torch.ops.maskray.nms.default, (*(tensor[:, :50] for tensor in candidate), 0.5))
    torch.library.opcheck(torch.ops.maskray.mask_targets.default, (*masks, 14, True, True))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    pairs = zip(
        compiled(maps, boxes, levels, candidate, masks), step(maps, boxes, levels, candidate, masks), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


WRONG = {
    "RoI batch index out of": "roi_align(torch.zeros(2, 3, 8, 8).cuda(), torch.tensor([[2.0, 0, 0, 4, 4]]).cuda(), 7)",
    "RoI level out of": (
        "pyramid_roi_align([torch.zeros(2, 3, 8, 8).cuda()], torch.zeros(1, 5).cuda(), torch.tensor([1]).cuda(), 7, "
        "[1.0])"
    ),
    "crop_index out of": (
        "mask_targets(torch.zeros(9, dtype=torch.uint8).cuda(), torch.tensor([0]).cuda(), "
        "torch.tensor([[0, 0, 3, 3, 9, 9]]).cuda(), torch.zeros(1, 4).cuda(), torch.tensor([1]).cuda(), 7, "
        "aligned=True, binarise=True)"
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_an_index_out_of_range_stops_the_device(message):
    code = "import torch\nfrom model.ops.masks import mask_targets\nfrom model.ops.roi_align import *\n"
    code += f"{WRONG[message]}\ntorch.cuda.synchronize()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert "device-side assert" in done.stderr


def test_compute_sanitizer_finds_nothing():
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer (CUDA toolkit) is not installed")
    code = (
        "import torch\nfrom tests.model.ops import test_cuda as t\nt.step(*t.step_inputs())\ntorch.cuda.synchronize()"
    )
    done = subprocess.run(
        [tool, "--error-exitcode", "99", sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    if "ERROR SUMMARY" not in done.stdout:
        pytest.skip(f"compute-sanitizer does not run here: {done.stdout.strip().splitlines()[-1:]}")
    assert "ERROR SUMMARY: 0 errors" in done.stdout

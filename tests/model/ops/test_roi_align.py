"""RoIAlign: against a naive loop and torchvision, by its mathematics, at its edges, and bit for bit."""

import math

import pytest
import torch
import torchvision

from model.ops.roi_align import pyramid_roi_align, roi_align
from tests.oracles import roi_align as naive

HEIGHT, WIDTH, SCALE = 17, 23, 0.25
NAN = math.nan


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def features(channels=5, dtype=torch.float64, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, HEIGHT, WIDTH, dtype=torch.float64, generator=generator).to(dtype)


def rois(count, dtype=torch.float64, seed=1, images=2):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60 + 1
    image = torch.randint(0, images, (count, 1), generator=generator).double()
    return torch.cat([image, corner, corner + size], 1).to(dtype)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


BOXES = [
    pytest.param(rois(6), id="typical"),
    pytest.param(rois(0), id="no-rois"),
    pytest.param(row(0, 500, 500, 600, 600), id="outside"),
    pytest.param(row(1, -40, -30, 60, 50), id="half-outside"),
    pytest.param(row(0, 60, 50, 20, 10), id="inverted"),
    pytest.param(row(0, 30.1, 20.2, 30.3, 20.4), id="sub-pixel"),
    pytest.param(row(0, 10, 10, 10, 10), id="point"),
    pytest.param(row(1, -900, -800, 900, 900), id="large"),
]


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("boxes", BOXES)
def test_matches_the_naive_loop_and_torchvision(boxes, aligned, sampling_ratio):
    maps = features(3)
    if len(boxes) and boxes[0, 3] > 600:
        sampling_ratio = max(sampling_ratio, 1)  # the loop would take a minute over adaptive samples
    settings = (boxes, (4, 3), SCALE, sampling_ratio, aligned)
    pooled = roi_align(maps, *settings)
    assert pooled.shape == (len(boxes), 3, 4, 3)
    torch.testing.assert_close(pooled, naive.roi_align(maps, *settings), atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(pooled, torchvision.ops.roi_align(maps, *settings), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("channels", [1, 3, 16, 33, 64, 70])
@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_backward_match_torchvision(channels, size, dtype):
    maps = features(channels, dtype).requires_grad_()
    boxes = rois(20, dtype)
    for sampling_ratio, aligned in ((0, True), (2, False)):
        settings = (boxes, size, SCALE, sampling_ratio, aligned)
        ours, theirs = roi_align(maps, *settings), torchvision.ops.roi_align(maps, *settings)
        grad = torch.randn_like(theirs)
        tolerance = {"atol": 1e-10, "rtol": 1e-10} if dtype == torch.float64 else {"atol": 5e-5, "rtol": 1e-4}
        torch.testing.assert_close(ours, theirs, **tolerance)
        (ours_grad,) = torch.autograd.grad(ours, maps, grad)
        (theirs_grad,) = torch.autograd.grad(theirs, maps, grad)
        torch.testing.assert_close(ours_grad, theirs_grad, **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_features_are_summed_in_float32(dtype):
    maps = features(40, dtype).requires_grad_()
    wide = maps.detach().float().requires_grad_()
    boxes = rois(12, torch.float32)
    ours, exact = roi_align(maps, boxes, 7, SCALE), roi_align(wide, boxes, 7, SCALE)
    assert torch.equal(ours, exact.to(dtype))
    grad = torch.randn_like(exact).to(dtype)
    (ours_grad,) = torch.autograd.grad(ours, maps, grad)
    (exact_grad,) = torch.autograd.grad(exact, wide, grad.float())
    assert torch.equal(ours_grad, exact_grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_conversions_are_torchs(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    maps = every.reshape(1, -1, 1, 1)
    copied = roi_align(maps, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), 1, sampling_ratio=1)
    assert torch.equal(copied.view(-1).isnan(), every.isnan())
    assert torch.equal(copied.view(-1).nan_to_num(0), every.nan_to_num(0))
    # Halfway values, and what lies next to them, through the rounding at the end.
    numbers = every.float()[every.isfinite()]
    between = torch.cat([numbers * (1 + 2.0**-k) for k in (8, 9, 11, 12, 20)])
    wide = between.to(torch.float32)
    pair = torch.stack([wide.to(dtype), wide.to(dtype).nextafter(torch.tensor(math.inf, dtype=dtype))], -1)
    pair = pair[pair.isfinite().all(-1)]
    maps = pair.reshape(1, -1, 1, 2)
    middle = roi_align(maps, torch.tensor([[0.0, 0.5, 0.0, 1.5, 1.0]]), 1, sampling_ratio=1)
    wide_middle = roi_align(maps.float(), torch.tensor([[0.0, 0.5, 0.0, 1.5, 1.0]]), 1, sampling_ratio=1)
    assert torch.equal(middle, wide_middle.to(dtype))


def test_contiguous_and_channels_last_features_agree():
    maps, boxes = features(8, torch.float32), rois(9, torch.float32)
    other = maps.contiguous(memory_format=torch.channels_last)
    first, second = roi_align(maps, boxes, 7, SCALE), roi_align(other, boxes, 7, SCALE)
    assert torch.equal(first, second)
    assert first.is_contiguous(memory_format=torch.channels_last)
    strided = torch.cat([maps, maps], 1)[:, :8]
    assert torch.equal(roi_align(strided, boxes, 7, SCALE), first)


def test_gradcheck():
    maps = features(2).requires_grad_()
    boxes = rois(4)
    for sampling_ratio, aligned in ((0, True), (2, False)):

        def pooled(value, sampling_ratio=sampling_ratio, aligned=aligned):
            return roi_align(value, boxes, (3, 2), SCALE, sampling_ratio, aligned)

        assert torch.autograd.gradcheck(pooled, (maps,))


def test_opcheck():
    whole = features(3, torch.float32)
    maps = [whole.clone().requires_grad_(), whole[:, :, ::2].requires_grad_()]
    boxes = rois(5, torch.float32)
    levels = torch.tensor([0, 1, 1, 0, 1])
    arguments = (maps, boxes, levels, 3, 2, [0.25, 0.125], 2, True)
    torch.library.opcheck(torch.ops.maskray.roi_align.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    maps, boxes = features(4, torch.float32).requires_grad_(), rois(5, torch.float32)

    def loss(value):
        return roi_align(value, boxes, 7, SCALE).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(maps), maps)
    (grad,) = torch.autograd.grad(compiled(maps), maps)
    assert torch.equal(grad, expected)


def test_is_exact_on_a_plane():
    y, x = torch.meshgrid(torch.arange(HEIGHT).double(), torch.arange(WIDTH).double(), indexing="ij")
    plane = (2.0 * x - 3.0 * y + 1.0).expand(1, 1, HEIGHT, WIDTH)
    boxes = torch.tensor([[0, 3.0, 4.0, 15.0, 12.0], [0, 5.5, 2.25, 9.75, 13.5]], dtype=torch.float64)
    pooled = roi_align(plane, boxes, 4, sampling_ratio=0)
    for box, values in zip(boxes[:, 1:], pooled, strict=True):
        centres = [
            low + (high - low) * (torch.arange(4) + 0.5) / 4 - 0.5
            for low, high in zip(box[:2].tolist(), box[2:].tolist(), strict=True)
        ]
        expected = 2.0 * centres[0][None, :] - 3.0 * centres[1][:, None] + 1.0
        torch.testing.assert_close(values[0], expected.double(), atol=1e-13, rtol=0)


def test_is_linear_in_the_features():
    first, second, boxes = features(seed=1), features(seed=2), rois(8)
    together = roi_align(2 * first - 3 * second, boxes, 7, SCALE)
    apart = 2 * roi_align(first, boxes, 7, SCALE) - 3 * roi_align(second, boxes, 7, SCALE)
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=1e-12)


def test_gradient_of_a_sum_counts_each_roi_once():
    maps = features(1).requires_grad_()
    boxes = torch.tensor([[0.0, 8.0, 8.0, 40.0, 40.0], [1.0, 12.0, 20.0, 60.0, 50.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(roi_align(maps, boxes, 7, SCALE).sum(), maps)
    torch.testing.assert_close(grad.sum((1, 2, 3)), torch.tensor([49.0, 49.0], dtype=torch.float64))


@pytest.mark.parametrize("corners", [(NAN, 0, 9, 9), (0, 0, NAN, NAN), (0, 0, math.inf, 9), (-math.inf, 0, 9, 9)])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_boxes_that_are_not_numbers_give_zeros(corners, sampling_ratio, aligned):
    maps = features().requires_grad_()
    pooled = roi_align(maps, row(0, *corners), 7, SCALE, sampling_ratio, aligned)
    (grad,) = torch.autograd.grad(pooled.sum(), maps)
    assert not pooled.any()
    assert not grad.any()


@pytest.mark.parametrize("reach", [1e5, 1e9, 1e18, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_boxes_are_quick_and_finite(reach, dtype):
    pooled = roi_align(features(2, dtype), row(0, -reach, -reach, reach, reach).to(dtype), 7, SCALE)
    assert pooled.isfinite().all()


def test_large_adaptive_boxes_match_torchvision():
    maps, boxes = features(2), row(0, -3000, -2000, 4000, 3500)
    theirs = torchvision.ops.roi_align(maps, boxes, 7, SCALE, 0, True)
    torch.testing.assert_close(roi_align(maps, boxes, 7, SCALE), theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(2, 0, 8, 8), (0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)])
def test_empty_features(shape):
    maps = torch.zeros(shape, requires_grad=True)
    boxes = rois(0 if shape[0] == 0 else 3, torch.float32)
    pooled = roi_align(maps, boxes, 7)
    pooled.sum().backward()
    assert pooled.shape == (len(boxes), shape[1], 7, 7)
    assert not pooled.any()
    assert maps.grad.shape == shape


def test_pyramid_is_the_levels_apart():
    scales = [0.25, 0.125, 0.0625]
    maps = [torch.randn(2, 6, 32 >> i, 40 >> i, requires_grad=True) for i in range(3)]
    boxes = rois(30, torch.float32)
    levels = torch.arange(30) % 3
    pooled = pyramid_roi_align(maps, boxes, levels, 7, scales, 2, aligned=False)
    grads = torch.autograd.grad(pooled.square().sum(), maps)
    for i, (map_, scale) in enumerate(zip(maps, scales, strict=True)):
        alone = roi_align(map_, boxes[levels == i], 7, scale, 2, aligned=False)
        assert torch.equal(pooled[levels == i], alone)
        (grad,) = torch.autograd.grad(alone.square().sum(), map_)
        assert torch.equal(grads[i], grad)


def forward_and_backward(dtype, sampling_ratio):
    maps, boxes = features(37, dtype).requires_grad_(), rois(60, torch.float32)
    results = []
    for size in (7, 14):
        pooled = roi_align(maps, boxes, size, SCALE, sampling_ratio)
        (grad,) = torch.autograd.grad(pooled.square().sum(), maps)
        results += [pooled.detach(), grad]
    return results


def same_bits(first, second):
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, sampling_ratio, num_threads):
    results = []
    for count in (1, 2, 3, 5):
        num_threads(count)
        results.append([t.contiguous() for t in forward_and_backward(dtype, sampling_ratio)])
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_bits_do_not_depend_on_the_simd_variant(dtype, sampling_ratio, use_simd):
    results = []
    for variant in range(torch.ops.maskray.simd_variants()):
        use_simd(variant)
        results.append([t.contiguous() for t in forward_and_backward(dtype, sampling_ratio)])
    assert all(same_bits(results[0], other) for other in results[1:])
